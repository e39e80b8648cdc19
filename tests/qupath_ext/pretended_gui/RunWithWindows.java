import com.google.gson.Gson;
import java.awt.Rectangle;
import java.awt.Robot;
import java.awt.image.BufferedImage;
import java.io.File;
import java.nio.file.Files;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeSet;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import java.util.function.Supplier;
import javafx.application.Platform;
import javafx.scene.Scene;
import javafx.scene.control.Button;
import javafx.scene.control.Label;
import javafx.scene.control.ProgressBar;
import javafx.scene.input.KeyCombination;
import javafx.stage.Stage;
import javafx.stage.Window;
import javax.imageio.ImageIO;
import javax.script.ScriptContext;
import javax.script.ScriptEngineManager;
import javax.script.SimpleScriptContext;
import qupath.fx.dialogs.Dialogs;
import qupath.lib.gui.QuPathGUI;
import qupath.lib.projects.ProjectIO;
import qupath.lib.scripting.QP;

/**
 * Runs a script for the first image of a project as Run > Run does, with a window in place of QuPath's.
 *
 * Arguments: PROJECT SCRIPT PICTURE TEXT HOW. Once the window of the script says TEXT, the screen is saved as PICTURE; then
 * HOW is "cancel" or "close" (the window), or "wait". Without a TEXT no window is waited for; if HOW is "keys" then, F6, F7
 * and F8 are pressed in the end. A line "SEEN {...}" says what there was.
 */
public class RunWithWindows {

    public static void main(String[] arguments) throws Exception {
        QP.getCoreClasses();
        var project = ProjectIO.loadProject(new File(arguments[0]), BufferedImage.class);
        var image = project.getImageList().get(0).readImageData();
        var hierarchy = image.getHierarchy();
        for (var annotation : hierarchy.getAnnotationObjects())
            if ("region".equals(annotation.getName()))
                hierarchy.getSelectionModel().setSelectedObject(annotation);
        var ready = new CompletableFuture<Void>();
        Platform.setImplicitExit(false);
        Platform.startup(() -> {
            var stage = new Stage();
            stage.setScene(new Scene(new Label("QuPath"), 640, 320));
            stage.show();
            new QuPathGUI(stage, project, image);
            ready.complete(null);
        });
        ready.get(60, TimeUnit.SECONDS);
        Map<String, Object> seen = new LinkedHashMap<>();
        seen.put("objects_before", hierarchy.nObjects());
        seen.put("was_changed", image.isChanged());
        var result = CompletableFuture.supplyAsync(() -> {
            try {
                QP.setBatchProjectAndImage(project, image);
                var context = new SimpleScriptContext();
                context.setAttribute("qupath.script.file", arguments[1], ScriptContext.ENGINE_SCOPE);
                context.setAttribute("qupath.script.batchSize", 1, ScriptContext.ENGINE_SCOPE);
                var text = Files.readString(new File(arguments[1]).toPath());
                var engine = new ScriptEngineManager().getEngineByName("groovy");
                return String.valueOf(engine.eval("import static qupath.lib.scripting.QP.*\n" + text, context));
            } catch (Exception e) {
                Throwable cause = e;
                while (cause.getCause() != null)
                    cause = cause.getCause();
                return "failed: " + cause.getMessage();
            }
        });
        if (!arguments[3].isEmpty()) {
            Stage window = waitFor(() -> find(arguments[3]), result);
            seen.put("title", window.getTitle());
            Thread.sleep(500);  // until it is drawn
            var size = java.awt.Toolkit.getDefaultToolkit().getScreenSize();
            ImageIO.write(new Robot().createScreenCapture(new Rectangle(size)), "png", new File(arguments[2]));
            seen.put("modal", onFx(() -> window.getModality().toString()));
            seen.put("owner", onFx(() -> window.getOwner() == QuPathGUI.getInstance().getStage()));
            seen.put("progress", onFx(() -> part(window, ProgressBar.class).getProgress()));
            if (arguments[4].equals("cancel"))
                onFx(() -> { part(window, Button.class).fire(); return null; });
            if (arguments[4].equals("close"))
                onFx(() -> {
                    window.getOnCloseRequest().handle(new javafx.stage.WindowEvent(window, javafx.stage.WindowEvent.WINDOW_CLOSE_REQUEST));
                    return null;
                });
            if (!arguments[4].equals("wait")) {
                seen.put("text", onFx(() -> part(window, Label.class).getText()));
                seen.put("disabled", onFx(() -> part(window, Button.class).isDisabled()));
            }
        }
        seen.put("result", result.get(300, TimeUnit.SECONDS));
        Thread.sleep(500);  // what the script left to the thread of the windows
        if (arguments[4].equals("keys")) {
            onFx(() -> {
                var keys = QuPathGUI.getInstance().getStage().getScene().getAccelerators();
                for (var key : List.of("F6", "F7", "F8"))
                    keys.get(KeyCombination.keyCombination(key)).run();
                return null;
            });
            Thread.sleep(500);
        }
        seen.put("run", new TreeSet<>(QuPathGUI.RUN));
        seen.put("windows", onFx(() -> Window.getWindows().size()));
        seen.put("objects", hierarchy.nObjects());
        seen.put("changed", image.isChanged());
        seen.put("shown", new ArrayList<>(Dialogs.SHOWN));
        seen.put("viewer", QuPathGUI.getInstance().getViewer().at());
        seen.put("classes", onFx(() -> QuPathGUI.getInstance().getAvailablePathClasses().stream().map(Object::toString).toArray()));
        System.out.println("SEEN " + new Gson().toJson(seen));
        System.exit(0);
    }

    private static Stage find(String text) {
        for (Window window : Window.getWindows())
            if (window != QuPathGUI.getInstance().getStage() && part(window, Label.class).getText().equals(text))
                return (Stage) window;
        return null;
    }

    private static <T> T part(Window window, Class<T> type) {
        for (var node : window.getScene().getRoot().getChildrenUnmodifiable())
            if (type.isInstance(node))
                return type.cast(node);
        throw new IllegalStateException("no " + type);
    }

    private static Stage waitFor(Supplier<Stage> look, CompletableFuture<String> result) throws Exception {
        for (int i = 0; i < 1200; i++) {
            Stage found = onFx(look);
            if (found != null)
                return found;
            if (result.isDone())
                throw new IllegalStateException("the script ended without the window: " + result.get());
            Thread.sleep(100);
        }
        throw new IllegalStateException("no window came");
    }

    private static <T> T onFx(Supplier<T> work) throws Exception {
        var done = new CompletableFuture<T>();
        Platform.runLater(() -> {
            try {
                done.complete(work.get());
            } catch (RuntimeException e) {
                done.completeExceptionally(e);
            }
        });
        return done.get(60, TimeUnit.SECONDS);
    }
}
