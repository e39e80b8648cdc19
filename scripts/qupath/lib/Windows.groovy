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
