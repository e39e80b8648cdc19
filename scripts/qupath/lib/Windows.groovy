/*
 * What a person sees: progress and messages in QuPath's windows. All of these classes are looked up by name,
 * so that nothing of them is needed where QuPath runs without windows; a line in the log takes their place there.
 */

import groovy.transform.Field
import org.slf4j.Logger
import org.slf4j.LoggerFactory

@Field final Logger log = LoggerFactory.getLogger('qupath-ext')

/** QuPath's main window; null if it runs without windows. */
def gui() {
    try {
        return named('qupath.lib.gui.QuPathGUI').getInstance()
    } catch (ClassNotFoundException e) {
        log.debug('no windows: {}', e.message)
        return null
    }
}

Class named(String name) {
    Class.forName(name, true, Thread.currentThread().contextClassLoader)
}

/** Whether there are windows and the script runs for one image: nobody wants a message for each of many. */
boolean isAlone() {
    def size = 'qupath.script.batchSize'
    gui() != null && (!binding.hasVariable(size) || binding.getVariable(size) == 1)
}

/** The window with progress and a button to cancel; without windows, or for many images, a line in the log at times. */
def progress(String title, File library) {
    if (isAlone() && !named('javafx.application.Platform').isFxApplicationThread())
        return evaluate(new File(library, 'ProgressWindow.groovy')).open(title, gui().stage)
    def last = System.currentTimeMillis()
    [
        show: { line ->
            if (!line.startsWith('PROGRESS '))
                return false
            if (System.currentTimeMillis() - last > 10000) {
                log.info('{}', line)
                last = System.currentTimeMillis()
            }
            true
        },
        isCancelled: { false },
        close: { }
    ]
}

/** QuPath's message boxes, which moved from one package to another in 0.5. */
def dialogs() {
    try {
        return named('qupath.fx.dialogs.Dialogs')
    } catch (ClassNotFoundException e) {
        log.debug('before QuPath 0.5: {}', e.message)
        return named('qupath.lib.gui.dialogs.Dialogs')
    }
}

/** Adds classes to the list that is shown; false if QuPath does not show this project. */
boolean addClasses(List classes, project) {
    def main = gui()
    if (main == null || !main.project.is(project))
        return false
    named('javafx.application.Platform').runLater {
        main.availablePathClasses.addAll(classes.findAll { !main.availablePathClasses.contains(it) })
    }
    true
}

/** Shows a part of the open image in the middle of its viewer, as large as fits with some space around it. */
void show(imageData, roi) {
    def viewer = isAlone() ? gui().viewer : null
    if (viewer == null || !viewer.imageData.is(imageData))
        return
    named('javafx.application.Platform').runLater {
        def view = viewer.view
        viewer.downsampleFactor = 1.25 * Math.max(roi.boundsWidth / view.width, roi.boundsHeight / view.height)
        viewer.centerROI(roi)
    }
}

/** Lets keys run scripts of the menu as long as QuPath runs; true if they did not before. */
boolean addKeys(Map<String, String> names) {
    if (!isAlone())
        return false
    def main = gui()
    def keys = main.stage.scene.accelerators
    def missing = names.collectEntries { [named('javafx.scene.input.KeyCombination').keyCombination(it.key), it.value] }
        .findAll { !keys.containsKey(it.key) }  // what a key means already stays
    named('javafx.application.Platform').runLater {
        missing.each { key, name ->
            keys.put(key, { Thread.start('qupath-ext') { runFromMenu(main, name) } } as Runnable)
        }
    }
    !missing.isEmpty()
}

void runFromMenu(main, String name) {
    if (main.project != null)
        main.runScript(new File(main.project.path.parent.toFile(), "scripts/qupath-ext/${name}.groovy"), null)
}

/** Shows an answer; it stands in the log already. */
void tell(Map answer) {
    if (!isAlone())
        return
    if (answer.open)
        named('qupath.lib.gui.tools.GuiTools').openFile(new File(answer.open))
    if (answer.message.contains('\n'))
        dialogs().showPlainMessage('qupath-ext', answer.message)
    else
        dialogs().showInfoNotification('qupath-ext', answer.message)
}

/** Shows what went wrong; the exception that ends the script says it in the log. */
void warn(String message) {
    if (isAlone())
        dialogs().showErrorMessage('qupath-ext', message)
}

return this
