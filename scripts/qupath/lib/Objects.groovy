/*
 * Objects of the open image: written for Python, read back, and put below their parents.
 */

import com.google.gson.Gson
import com.google.gson.JsonElement
import com.google.gson.JsonObject
import com.google.gson.stream.JsonReader
import groovy.transform.CompileStatic
import groovy.transform.Field
import java.awt.geom.Rectangle2D
import java.util.function.Function
import java.util.stream.Collectors
import org.slf4j.Logger
import org.slf4j.LoggerFactory
import qupath.lib.io.GsonTools
import qupath.lib.objects.PathObject
import qupath.lib.objects.hierarchy.PathObjectHierarchy
import qupath.lib.roi.interfaces.ROI

@Field final Logger log = LoggerFactory.getLogger('qupath-ext')
@Field final Gson gson = GsonTools.getInstance()
@Field final String PROPERTIES = '"properties":{'
@Field final int AT_ONCE = 2000

/** All objects, parents first; of the detections only those in or near some annotations, if these are given. */
@CompileStatic
List<PathObject> objectsOf(PathObjectHierarchy hierarchy, Collection<PathObject> within) {
    List<Rectangle2D> boxes = []
    for (PathObject annotation : within)
        boxes << bounds(annotation.getROI())
    List<PathObject> found = []
    addChildren(hierarchy.getRootObject(), boxes.isEmpty(), within, boxes, found)
    found
}

@CompileStatic
void addChildren(PathObject parent, boolean inside, Collection<PathObject> within, List<Rectangle2D> boxes,
                 List<PathObject> found) {
    for (PathObject child : parent.getChildObjectsAsArray()) {
        boolean all = inside || within.contains(child)
        if (all || !child.isDetection() || isNear(child.getROI(), boxes))
            found << child
        if (child.hasChildObjects())
            addChildren(child, all, within, boxes, found)
    }
}

@CompileStatic
boolean isNear(ROI roi, List<Rectangle2D> boxes) {
    Rectangle2D own = bounds(roi)
    for (Rectangle2D box : boxes)
        if (box.intersects(own))
            return true
    false
}

@CompileStatic
Rectangle2D bounds(ROI roi) {
    new Rectangle2D.Double(roi.getBoundsX() - 1d, roi.getBoundsY() - 1d, roi.getBoundsWidth() + 2d,
        roi.getBoundsHeight() + 2d)
}

/** As QuPath's own exporter writes them, and the id of the parent with each. */
@CompileStatic
void write(File file, List<PathObject> objects) {
    Set<PathObject> leftOut = new HashSet<PathObject>()
    String before = '\n'
    BufferedWriter out = new BufferedWriter(new OutputStreamWriter(new FileOutputStream(file), 'UTF-8'), 1 << 20)
    try {
        out.write('{"type":"FeatureCollection","features":[')
        for (List<PathObject> some : objects.collate(AT_ONCE)) {
            List<String> features = features(some)
            for (int i = 0; i < some.size(); i++) {
                String feature = features.get(i)
                if (feature == null) {
                    leftOut.add(some.get(i))
                    continue
                }
                PathObject parent = some.get(i).getParent()
                int at = feature.indexOf(PROPERTIES) + PROPERTIES.length()
                out.write(before)
                out.write(feature, 0, at)
                if (!parent.isRootObject() && !leftOut.contains(parent))
                    out.write('"parentId":"' + parent.getID() + '",')
                out.write(feature, at, feature.length() - at)
                before = ',\n'
            }
        }
        out.write('\n]}\n')
    } finally {
        out.close()
    }
}

/** What QuPath writes for each object, on all processors: most of the time goes into outlines. */
@CompileStatic
List<String> features(List<PathObject> objects) {
    Function<PathObject, String> one = { PathObject object -> feature(object) } as Function<PathObject, String>
    objects.parallelStream().map(one).collect(Collectors.toList())
}

/** What QuPath writes for an object; null for lines of several parts, which its exporter cannot write before 0.7. */
@CompileStatic
String feature(PathObject object) {
    try {
        return gson.toJson(object, PathObject)
    } catch (StackOverflowError e) {
        log.warn('{} has an outline that this QuPath cannot hand over ({}); it stays, and is not looked at.',
            object, object.getROI().getRoiName())
        return null
    }
}

/**
 * Does what the answer says to the objects; all is looked up before the first change, one event at the end. False, and
 * nothing is changed, if an object is missing that new ones belong below.
 */
boolean change(Map answer, File folder, PathObjectHierarchy hierarchy) {
    def parents = answer.add ? read(new File(folder, answer.add)) : [:]
    def (removed, locked, unlocked) = [answer.remove, answer.lock, answer.unlock].collect { uuids(it ?: []) }
    def known = find(parents.keySet(), parents.values())
    [parents.values(), removed, locked, unlocked].each { known += find(hierarchy.getAllObjects(false), it) }
    if (!known.keySet().containsAll(parents.values().findAll { it != null }))
        return false
    remove(of(removed, known))
    add(parents, known, hierarchy.rootObject)
    of(locked, known).each { it.locked = true }
    of(unlocked, known).each { it.locked = false }
    if (parents || removed || locked || unlocked)
        hierarchy.fireHierarchyChangedEvent(this)
    true
}

@CompileStatic
List<UUID> uuids(Collection<String> texts) {
    List<UUID> ids = new ArrayList<UUID>(texts.size())
    for (String text : texts)
        ids.add(UUID.fromString(text))
    ids
}

/** The objects of a file in its order, each with the id of its parent, or null for none. */
@CompileStatic
Map<PathObject, UUID> read(File file) {
    Map<PathObject, UUID> parents = new LinkedHashMap<PathObject, UUID>()
    Reader text = new BufferedReader(new InputStreamReader(new FileInputStream(file), 'UTF-8'), 1 << 20)
    JsonReader json = new JsonReader(text)
    try {
        json.beginObject()
        while (json.hasNext()) {
            if (json.nextName() != 'features') {
                json.skipValue()
                continue
            }
            json.beginArray()
            while (json.hasNext()) {
                JsonObject feature = (JsonObject) gson.fromJson(json, JsonObject)
                JsonElement parent = feature.getAsJsonObject('properties').get('parentId')
                UUID id = parent == null || parent.isJsonNull() ? null : UUID.fromString(parent.getAsString())
                parents.put((PathObject) gson.fromJson(feature, PathObject), id)
            }
            json.endArray()
        }
    } finally {
        json.close()
    }
    parents
}

/** Those of some objects that have one of the ids, by id. */
@CompileStatic
Map<UUID, PathObject> find(Collection<PathObject> objects, Collection<UUID> ids) {
    Set<UUID> wanted = new HashSet<UUID>(ids)
    Map<UUID, PathObject> found = new HashMap<UUID, PathObject>()
    if (!wanted.isEmpty())
        for (PathObject object : objects)
            if (wanted.contains(object.getID()))
                found.put(object.getID(), object)
    found
}

/** The objects with the ids; an id that is not known has none. */
@CompileStatic
List<PathObject> of(Collection<UUID> ids, Map<UUID, PathObject> known) {
    List<PathObject> found = new ArrayList<PathObject>(ids.size())
    for (UUID id : ids)
        if (known.containsKey(id))
            found.add(known.get(id))
    found
}

/** Adds objects below their parents, all of one parent in one call. */
@CompileStatic
void add(Map<PathObject, UUID> parents, Map<UUID, PathObject> known, PathObject root) {
    Map<UUID, List<PathObject>> children = new LinkedHashMap<UUID, List<PathObject>>()
    for (Map.Entry<PathObject, UUID> one : parents.entrySet()) {
        if (!children.containsKey(one.getValue()))
            children.put(one.getValue(), new ArrayList<PathObject>())
        children.get(one.getValue()).add(one.getKey())
    }
    for (Map.Entry<UUID, List<PathObject>> group : children.entrySet())
        (group.getKey() == null ? root : known.get(group.getKey())).addChildObjects(group.getValue())
}

/** Removes objects; children that stay move up to the nearest ancestor that stays. */
void remove(List<PathObject> objects) {
    def gone = new HashSet(objects)
    def stays = new LinkedHashMap()
    objects.findAll { it.hasChildObjects() }.each { object ->
        def ancestor = object.parent
        while (gone.contains(ancestor))
            ancestor = ancestor.parent
        stays.get(ancestor, []).addAll(object.childObjectsAsArray.findAll { !gone.contains(it) })
    }
    objects.groupBy { it.parent }.each { parent, children -> parent.removeChildObjects(children) }
    stays.each { ancestor, children -> ancestor.addChildObjects(children) }
}

return this
