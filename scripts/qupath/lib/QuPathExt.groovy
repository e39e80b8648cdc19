/*
 * What the scripts of qupath-ext share: hands the open image to Python, waits, and puts the answer into the image.
 *
 * Written by "qupath-ext install-scripts"; run that again instead of changing this file. A script calls it with
 *
 *     evaluate(new File(buildPathInProject('qupath_ext', 'groovy', 'QuPathExt.groovy'))).start('ki67-selection', [:])
 *
 * Only classes of QuPath's core are used, the same in 0.4 to 0.7. The objects are the matter of Objects.groovy, the
 * worker that of Worker.groovy, and QuPath's windows that of Windows.groovy. For Groovy 2.4 to 4.
 */

import groovy.transform.CompileStatic
import groovy.transform.Field
import java.nio.file.Files
import java.nio.file.StandardCopyOption
import java.util.concurrent.TimeUnit
import java.util.function.BooleanSupplier
import java.util.function.Consumer
import org.slf4j.Logger
import org.slf4j.LoggerFactory
import qupath.lib.color.ColorDeconvolutionStains
import qupath.lib.common.ColorTools
import qupath.lib.common.GeneralTools
import qupath.lib.images.servers.ImageServerBuilder.ServerBuilder
import qupath.lib.io.GsonTools
import qupath.lib.objects.classes.PathClass
import qupath.lib.objects.classes.PathClass.StandardPathClasses
import qupath.lib.plugins.workflow.DefaultScriptableWorkflowStep
import qupath.lib.scripting.QP

// Set by "qupath-ext install-scripts".
@Field final String PYTHON = '@PYTHON@'
@Field final String VERSION = '@VERSION@'

@Field final int JOB_VERSION = 1
@Field final List WITHOUT_IMAGE = ['doctor', 'ping']
@Field final List WHOLE_PROJECT = ['train', 'evaluate', 'export']
@Field final List ON_SELECTION = ['ki67-selection', 'tumour', 'detect-cells']
@Field final List STANDARD_CLASSES = [PathClass.NULL_CLASS, StandardPathClasses.TUMOR, StandardPathClasses.STROMA,
    StandardPathClasses.IMMUNE_CELLS, StandardPathClasses.NECROSIS, StandardPathClasses.OTHER,
    StandardPathClasses.REGION, StandardPathClasses.IGNORE, StandardPathClasses.POSITIVE, StandardPathClasses.NEGATIVE]
@Field final String LIBRARY = "evaluate(new File(buildPathInProject('qupath_ext', 'groovy', 'QuPathExt.groovy')))"
@Field final Map KEYS = [F6: 'Next region', F7: 'Mark done', F8: 'Reject region']
@Field final Logger log = LoggerFactory.getLogger('qupath-ext')
@Field final gson = GsonTools.getInstance()
@Field final Map parts = [:]

/** Does a task with the open image; settings and what --args says ("name=value") are the options of the task. */
def start(String task, Map settings) {
    def project = QP.getProject()
    def imageData = QP.getCurrentImageData()
    def entry = entryOf(project, imageData)
    if (task in WHOLE_PROJECT && variable('qupath.script.batchLast', true) == false) {
        log.info('{} is done once, with the last image', task)
        return null
    }
    if (!(task in WITHOUT_IMAGE))
        checkImage(imageData, entry)
    checkPython()
    if (task in WHOLE_PROJECT) {
        log.info('Saving {}: {} reads what is saved', entry.imageName, task)
        entry.saveImageData(imageData)
        project.syncChanges()
    }
    def folder = newJobFolder(project)
    try {
        writeJob(folder, task, settings + arguments(), project, entry, imageData)
        def answer = ask(folder, title(task))
        return finish(answer, folder, project, entry, imageData)
    } finally {
        folder.deleteDir()
    }
}

// ------------------------------------------------------------------------------------------------ without Python
/** Goes to the next region that waits for annotation, or says where there is one. */
def nextRegion() {
    def (project, imageData, entry) = current()
    def region = part('Regions').next(imageData, entry)
    def keys = part('Windows').addKeys(KEYS)
    if (region != null) {
        part('Windows').show(imageData, region.getROI())
        return told("${region.name ?: 'Region'} (${openRegions(imageData)})" +
            (keys ? '. From now on ' + KEYS.collect { key, name -> "${key} is ${name}" }.join(', ') : ''))
    }
    if (isBatch())
        return told('No region of this image is open.')
    def other = part('Regions').imageWithOpen(project, entry)
    told('No region of this image is open' +
        (other == null ? ', nor of another one.' : "; ${other.imageName} has the next one."))
}

/** Notes that regions are "done" or "rejected"; ids say which ones, as a workflow that is repeated does. */
def markRegions(String what, List ids = null) {
    def (project, imageData, entry) = current()
    def regions = ids == null ? part('Regions').meant(imageData, entry) :
        imageData.hierarchy.annotationObjects.findAll { it.getID().toString() in ids }
    def wanted = part('Regions').ANSWERS[what]
    def changed = regions.findAll { it.pathClass != wanted }
    if (!changed && ids != null)
        return told("Nothing to mark as ${what}.")
    if (!changed)
        throw failure(regions ? "${regions[0].name ?: 'The region'} is ${what} already." :
            'No region is meant. Select one of the class Region*, or run "Next region" first.')
    part('Regions').answer(changed, what, imageData)
    addClasses([wanted], project)
    def marked = changed.collect { "'" + it.getID() + "'" }
    imageData.historyWorkflow.addStep(new DefaultScriptableWorkflowStep("Mark ${what}",
        "${LIBRARY}.markRegions('${what}', ${marked})".toString()))
    told("${changed.collect { it.name ?: 'Region' }.join(', ')}: ${what} (${openRegions(imageData)})")
}

String openRegions(imageData) {
    def n = part('Regions').open(imageData.hierarchy).size()
    "${n ?: 'none'} of this image ${n > 1 ? 'are' : 'is'} open"
}

/** Says something in the log, and in a window if there is one. */
def told(String message) {
    log.info('{}', message)
    part('Windows').tell([message: message])
    message
}

// ------------------------------------------------------------------------------------------------ before the job
def variable(String name, otherwise) {
    binding.hasVariable(name) ? binding.getVariable(name) : otherwise
}

def title(String task) {
    def file = variable('qupath.script.file', null)
    file == null ? task : new File(file.toString()).name - '.groovy'
}

def arguments() {
    def options = [:]
    (variable('args', null) ?: []).each { argument ->
        def parts = argument.toString().split('=', 2)
        if (parts.length < 2)
            throw failure("The argument '${argument}' is not understood. Write name=value, such as region=tissue.")
        options[parts[0].trim()] = parsed(parts[1].trim())
    }
    options
}

/** Numbers, true, false and lists as JSON writes them; all else is a text. */
def parsed(String text) {
    text ==~ /-?[0-9.]+([eE][-+]?[0-9]+)?|true|false|null|\[.*\]/ ? gson.fromJson(text, Object) : text
}

/** Project, open image and its entry; all are there. */
List current() {
    def project = QP.getProject()
    def imageData = QP.getCurrentImageData()
    def entry = entryOf(project, imageData)
    checkImage(imageData, entry)
    [project, imageData, entry]
}

def entryOf(project, imageData) {
    project == null || imageData == null ? null : project.getEntry(imageData)
}

boolean isBatch() {
    variable('qupath.script.batchSize', 1) > 1
}

void checkImage(imageData, entry) {
    if (imageData == null)
        throw failure('No image is open. Open one of the project with a double click.')
    if (entry == null)
        throw failure('The open image is in no project. Add it with File > Project > Add images, and open it from there.')
}

/** The self-check, once while QuPath runs: is Python where it was, and of the version of these scripts? */
void checkPython() {
    def checked = "${PYTHON} ${VERSION}".toString()
    if (System.getProperty('qupath-ext.checked') == checked)
        return
    def again = 'Run "qupath-ext install-scripts" for this project again, on this computer.'
    if (!new File(PYTHON).isFile())
        throw failure("Python is not at ${PYTHON}: qupath-ext was moved or removed, or was installed " +
            "on another computer. ${again}")
    def lines = Collections.synchronizedList([])
    def code = execute([PYTHON, '-m', 'qupath_ext', '--version'], new File(PYTHON).parentFile,
        { lines << it } as Consumer, { false } as BooleanSupplier)
    def found = code == 0 && lines ? lines[-1].tokenize(' ')[-1] : null
    if (found == null)
        throw failure("Python at ${PYTHON} does not find qupath-ext (${lines ? lines[-1] : code}). " +
            "Install qupath-ext there. ${again}")
    if (found != VERSION)
        throw failure("qupath-ext is version ${found}, these scripts are of ${VERSION}. ${again}")
    System.setProperty('qupath-ext.checked', checked)
}

// ------------------------------------------------------------------------------------------------ the job
File newJobFolder(project) {
    def jobs = new File(project.path.parent.toFile(), 'qupath_ext/jobs')
    def day = 24L * 3600 * 1000
    (jobs.listFiles() ?: []).findAll { System.currentTimeMillis() - it.lastModified() > day }.each { it.deleteDir() }
    def folder = new File(jobs, UUID.randomUUID().toString())
    if (!folder.mkdirs())
        throw failure("The folder ${folder} cannot be made. Check that you may write to the folder of the project.")
    folder
}

void writeJob(File folder, String task, Map options, project, entry, imageData) {
    def job = [version: JOB_VERSION, task: task, qupath: GeneralTools.getVersion().toString(), options: options,
               project: project.path.toAbsolutePath().toString()]
    if (entry != null) {
        def server = imageData.server
        def calibration = server.pixelCalibration
        def stains = imageData.colorDeconvolutionStains
        def selected = imageData.hierarchy.selectionModel.selectedObjects.findAll { it.isAnnotation() }
        job.entry = [id: entry.getID(), name: entry.imageName]
        job.server = [uris: server.getURIs().collect { it.toString() },
                      builder: server.builder == null ? null : gson.toJsonTree(server.builder, ServerBuilder)]
        job.image = [width: server.width, height: server.height, type: imageData.imageType.name(),
                     mpp: calibration.hasPixelSizeMicrons() ?
                         [calibration.pixelWidthMicrons, calibration.pixelHeightMicrons] : null,
                     stains: stains == null ? null :
                         ColorDeconvolutionStains.getColorDeconvolutionStainsAsString(stains, 10)]
        job.selected = selected.collect { it.getID().toString() }
        if (!(task in WHOLE_PROJECT + WITHOUT_IMAGE)) {  // those read what is saved, or no objects
            job.objects = 'objects.geojson'
            def within = task in ON_SELECTION && (options.region ?: 'selection') == 'selection' ? selected : []
            part('Objects').write(new File(folder, job.objects), part('Objects').objectsOf(imageData.hierarchy, within))
        }
    }
    def unfinished = new File(folder, 'job.json.tmp')
    unfinished.setText(gson.toJson(job), 'UTF-8')
    Files.move(unfinished.toPath(), new File(folder, 'job.json').toPath(), StandardCopyOption.ATOMIC_MOVE)
}

// ------------------------------------------------------------------------------------------------ asking Python
/** Gives the job to the worker if one is alive, else to a process of its own, and returns the answer. */
Map ask(File folder, String title) {
    def window = part('Windows').progress(title, library())
    try {
        return part('Worker').ask(folder, VERSION, window) ?: askProcess(folder, window)
    } finally {
        window.close()
    }
}

Map askProcess(File folder, window) {
    def last = null
    def code = execute([PYTHON, '-m', 'qupath_ext', 'job', folder.path], folder, { line ->
        if (!window.show(line))
            log.info('{}', last = line)
    } as Consumer, { window.isCancelled() } as BooleanSupplier)
    if (window.isCancelled() || code == 3)
        return [status: 'cancelled']
    def file = new File(folder, 'answer.json')
    if (file.isFile())
        return gson.fromJson(file.getText('UTF-8'), Map)
    [status: 'failed', message: "Python stopped without an answer (exit code ${code}): ${last ?: 'nothing was said'}. " +
        'See View > Show log.']
}

/** Runs a program without a shell; each line it prints is handed on; killed with its children if cancelled. */
@CompileStatic
int execute(List<String> command, File folder, Consumer<String> line, BooleanSupplier cancelled) {
    ProcessBuilder builder = new ProcessBuilder(command)
    builder.directory(folder)
    builder.redirectErrorStream(true)
    builder.environment().put('PYTHONUTF8', '1')
    builder.environment().put('PYTHONUNBUFFERED', '1')
    Process process = builder.start()
    process.getOutputStream().close()
    Thread reader = Thread.startDaemon('qupath-ext output') {
        BufferedReader lines = new BufferedReader(new InputStreamReader(process.getInputStream(), 'UTF-8'))
        String text = readLine(lines)
        while (text != null) {
            line.accept(text)
            text = readLine(lines)
        }
    }
    try {
        while (!process.waitFor(50, TimeUnit.MILLISECONDS))
            if (cancelled.getAsBoolean())
                kill(process, folder)
    } catch (InterruptedException e) {
        kill(process, folder)
        throw e
    }
    reader.join(5000)
    process.exitValue()
}

/** The next line; none either when the program was killed while it wrote. */
@CompileStatic
String readLine(BufferedReader lines) {
    try {
        return lines.readLine()
    } catch (IOException e) {
        log.debug('output ended: {}', e.message)
        return null
    }
}

/** Asks the program to stop, and ends it with all that it started if it has not after two seconds. */
@CompileStatic
void kill(Process process, File folder) {
    new File(folder, 'cancel').createNewFile()
    List<ProcessHandle> all = new ArrayList<ProcessHandle>()
    Iterator<ProcessHandle> children = process.descendants().iterator()
    while (children.hasNext())
        all.add(children.next())
    process.waitFor(2, TimeUnit.SECONDS)
    process.destroyForcibly()
    for (ProcessHandle one : all)
        one.destroyForcibly()
    process.waitFor(10, TimeUnit.SECONDS)
}

// ------------------------------------------------------------------------------------------------ the answer
/** Does what the answer says; an answer that is not "done" changes nothing. */
def finish(Map answer, File folder, project, entry, imageData) {
    if (answer.status == 'cancelled') {
        log.info('Cancelled. Nothing was changed.')
        return 'Cancelled'
    }
    if (answer.status != 'done')
        throw failure(answer.message)
    if (imageData != null)
        change(answer, folder, imageData)
    addClasses((answer.classes ?: []).collect { pathClass(it) }, project)
    (answer.metadata ?: [:]).each { key, value -> entry.putMetadataValue(key, value) }
    part('Windows').tell(answer)
    answer.message
}

/** Changes the open image; QuPath saves it. */
void change(Map answer, File folder, imageData) {
    if (!part('Objects').change(answer, folder, imageData.hierarchy))
        throw failure('An annotation was deleted while it was being analysed. Nothing was changed; run the script again.')
    if (answer.workflow)
        imageData.historyWorkflow.addStep(
            new DefaultScriptableWorkflowStep(answer.workflow.name, answer.workflow.script))
}

PathClass pathClass(Map one) {
    def (red, green, blue) = one.color.collect { it as int }
    PathClass.fromString(one.name, ColorTools.packRGB(red, green, blue))
}

/** Appends classes to the list of the project; those that are there keep their colours. */
void addClasses(List wanted, project) {
    if (part('Windows').addClasses(wanted, project))
        return
    def known = project.pathClasses ?: STANDARD_CLASSES
    def missing = wanted.findAll { !known.contains(it) }
    if (missing)
        project.setPathClasses(known + missing)
}

/** Another file of the library, loaded when it is needed first. */
def part(String name) {
    if (!parts.containsKey(name))
        parts[name] = evaluate(new File(library(), name + '.groovy'))
    parts[name]
}

File library() {
    new File(QP.getProject().path.parent.toFile(), 'qupath_ext/groovy')
}

/** The exception that ends a script; its text is also shown in a window if there is one. */
RuntimeException failure(String message) {
    part('Windows').warn(message)
    new RuntimeException(message)
}

return this
