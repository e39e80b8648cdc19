package qupath.lib.gui;

import java.awt.image.BufferedImage;
import java.io.File;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import javafx.collections.FXCollections;
import javafx.collections.ObservableList;
import javafx.scene.layout.Pane;
import javafx.stage.Stage;
import qupath.lib.images.ImageData;
import qupath.lib.objects.classes.PathClass;
import qupath.lib.projects.Project;
import qupath.lib.roi.interfaces.ROI;

/** What the scripts use of QuPath's main window, by the names and types that QuPath 0.4 to 0.7 have. */
public class QuPathGUI {

    public static final List<String> RUN = Collections.synchronizedList(new ArrayList<>());

    private static QuPathGUI instance;

    private final Stage stage;
    private final Project<BufferedImage> project;
    private final Viewer viewer;
    private final ObservableList<PathClass> classes = FXCollections.observableArrayList();

    public QuPathGUI(Stage stage, Project<BufferedImage> project, ImageData<BufferedImage> imageData) {
        this.stage = stage;
        this.project = project;
        this.viewer = new Viewer(imageData);
        instance = this;
    }

    public static QuPathGUI getInstance() {
        return instance;
    }

    public Stage getStage() {
        return stage;
    }

    public Project<BufferedImage> getProject() {
        return project;
    }

    public Viewer getViewer() {
        return viewer;
    }

    public ObservableList<PathClass> getAvailablePathClasses() {
        return classes;
    }

    /** Notes which scripts were run. */
    public Object runScript(File file, String script) {
        RUN.add(file.getName());
        return null;
    }

    /** The viewer; notes where it was sent. */
    public static class Viewer {

        private final ImageData<BufferedImage> imageData;
        private final Pane view = new Pane();
        private double downsample;
        private ROI centred;

        Viewer(ImageData<BufferedImage> imageData) {
            this.imageData = imageData;
            view.resize(400, 200);
        }

        public ImageData<BufferedImage> getImageData() {
            return imageData;
        }

        public Pane getView() {
            return view;
        }

        public void setDownsampleFactor(double factor) {
            downsample = factor;
        }

        public void centerROI(ROI roi) {
            centred = roi;
        }

        public double[] at() {
            return centred == null ? new double[0]
                : new double[] {downsample, centred.getCentroidX(), centred.getCentroidY()};
        }
    }
}
