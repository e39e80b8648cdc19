/*
 * Regions that were proposed for annotation: going from one to the next, and saying what became of them. They are
 * annotations of the class Region* with names such as "Round 2 #3 0.71 entropy". Nothing of it needs Python.
 */

import groovy.transform.Field
import java.time.Instant
import java.time.temporal.ChronoUnit
import org.slf4j.Logger
import org.slf4j.LoggerFactory
import qupath.lib.common.ColorTools
import qupath.lib.objects.classes.PathClass

@Field final Logger log = LoggerFactory.getLogger('qupath-ext')
@Field final String OPEN = 'Region*'
@Field final Map ANSWERS = [done    : PathClass.fromString('Done*', ColorTools.packRGB(0, 140, 60)),
                            rejected: PathClass.fromString('Rejected*', ColorTools.packRGB(120, 120, 120))]
@Field final String UNDER_WAY = 'qupath-ext.region.'

/** Selects the next open region of the image and returns it; null if the image has none. */
def next(imageData, entry) {
    def hierarchy = imageData.hierarchy
    def regions = open(hierarchy)
    if (!regions)
        return null
    def last = selected(hierarchy)[0] ?: underWay(hierarchy, entry)
    def region = regions.find { last != null && order(it, last) > 0 } ?: regions[0]
    hierarchy.selectionModel.setSelectedObject(region)
    System.setProperty(UNDER_WAY + entry.getID(), region.getID().toString())
    region
}

/** The next image of the project with open regions, as it is saved; null if none has any. */
def imageWithOpen(project, entry) {
    def images = project.imageList
    int at = images.findIndexOf { it.getID() == entry.getID() }
    (images.drop(at + 1) + images.take(at)).find { it.hasImageData() && open(it.readHierarchy()) }
}

/** The regions that an answer is about: those selected, else those around what is selected, else the one under way. */
List meant(imageData, entry) {
    def hierarchy = imageData.hierarchy
    def regions = selected(hierarchy)
    if (regions)
        return regions
    def inside = hierarchy.selectionModel.selectedObjects.findAll { it.hasROI() }
    regions = open(hierarchy).findAll { region -> inside.any { holds(region, it) } }
    if (regions)
        return regions
    def region = underWay(hierarchy, entry)
    region == null ? [] : [region]
}

/** Gives regions the class of an answer, "done" or "rejected", and notes when; locks stay as they are. */
void answer(List regions, String what, imageData) {
    def time = Instant.now().truncatedTo(ChronoUnit.SECONDS).toString()
    regions.each {
        it.pathClass = ANSWERS[what]
        if (it.metaClass.respondsTo(it, 'getMetadata'))  // since QuPath 0.5
            it.metadata.put("qupath-ext: ${what} at".toString(), time)
        else
            log.debug('This QuPath keeps no metadata of objects')
    }
    imageData.hierarchy.fireObjectClassificationsChangedEvent(this, regions)
}

/** The open regions in the order of round and rank; those that nobody proposed come last, from top to bottom. */
List open(hierarchy) {
    hierarchy.annotationObjects.findAll { className(it) == OPEN }.sort { a, b -> order(a, b) }
}

int order(one, other) {
    [place(one), place(other)].transpose().findResult(0) { a, b -> a <=> b ?: null }
}

List<Double> place(region) {
    def match = (region.name ?: '') =~ /Round (\d+) #(\d+)\b.*/
    def (round, rank) = match.matches() ? [match.group(1), match.group(2)] : ['1e9', '1e9']
    [round as double, rank as double, region.getROI().boundsY, region.getROI().boundsX]
}

/** The selected regions, whatever became of them. */
List selected(hierarchy) {
    hierarchy.selectionModel.selectedObjects.findAll { it.isAnnotation() && isRegion(it) }.sort { a, b -> order(a, b) }
}

boolean isRegion(annotation) {
    className(annotation) == OPEN || ANSWERS.containsValue(annotation.pathClass)
}

boolean holds(region, object) {
    region.getROI().contains(object.getROI().centroidX, object.getROI().centroidY)
}

/** The region of this image that was gone to last since QuPath started. */
def underWay(hierarchy, entry) {
    def last = System.getProperty(UNDER_WAY + entry.getID())
    hierarchy.annotationObjects.find { it.getID().toString() == last }
}

String className(annotation) {
    annotation.pathClass == null ? '' : annotation.pathClass.toString()
}

return this
