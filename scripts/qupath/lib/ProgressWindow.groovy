/*
 * The window that shows how far Python is, with a button to cancel. Loaded only where QuPath has windows.
 */

import javafx.application.Platform
import javafx.geometry.Insets
import javafx.scene.Scene
import javafx.scene.control.Button
import javafx.scene.control.Label
import javafx.scene.control.ProgressBar
import javafx.scene.layout.VBox
import javafx.stage.Modality
import javafx.stage.Stage

/** Shows the window in front of QuPath's, which waits until it is closed; called from a script's thread. */
def open(String title, owner) {
    def state = [cancelled: false, closed: false, stage: null]
    def label = new Label('Starting Python')
    def bar = new ProgressBar()
    def button = new Button('Cancel')
    def cancel = {
        state.cancelled = true
        button.disable = true
        label.text = 'Stopping; nothing will be changed'
    }
    Platform.runLater {
        if (state.closed)
            return
        def stage = new Stage()
        def box = new VBox(10, label, bar, button)
        box.padding = new Insets(15)
        bar.prefWidth = 400
        button.onAction = { cancel() }
        stage.onCloseRequest = { event -> event.consume(); cancel() }
        stage.initOwner(owner)
        stage.initModality(Modality.APPLICATION_MODAL)
        stage.title = title
        stage.scene = new Scene(box)
        state.stage = stage
        stage.show()
    }
    [
        /* Takes a line such as "PROGRESS 3/20 cells"; false if it is another kind of line. */
        show: { line ->
            def match = line =~ /PROGRESS (\d+)\/(\d+) (.*)/
            if (!match.matches())
                return false
            def (done, total, stage) = [match.group(1) as double, match.group(2) as double, match.group(3)]
            Platform.runLater {
                if (!state.cancelled)
                    label.text = "${stage}: ${done as long} of ${total as long}"
                bar.progress = total > 0 ? done / total : -1
            }
            true
        },
        isCancelled: { state.cancelled },
        close: { Platform.runLater { state.closed = true; state.stage?.close() } }
    ]
}

return this
