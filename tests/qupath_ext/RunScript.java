import com.google.gson.Gson;
import java.awt.image.BufferedImage;
import java.io.File;
import java.nio.file.Files;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import javax.script.ScriptContext;
import javax.script.ScriptEngine;
import javax.script.ScriptEngineManager;
import javax.script.SimpleScriptContext;
import qupath.lib.images.ImageData;
import qupath.lib.objects.PathCellObject;
import qupath.lib.objects.PathObject;
import qupath.lib.projects.Project;
import qupath.lib.projects.ProjectIO;
import qupath.lib.scripting.QP;

/**
 * Runs Groovy scripts for all images of a project as Run > Run for project does, and QuPath's command line ("QuPath script
 * --save -p P S --args A"), with QuPath's core and a Groovy on the class path.
 *
 * Arguments: PROJECT, then for each script: SCRIPT [select=NAME] [ARGS...], with "--" between scripts. select=NAME selects
 * the annotations of that name first. SCRIPT may be "workflow": what "Create workflow" makes of the image, after its
 * cells were taken out. After each script a line "SEEN {...}" says what QuPath has for each image.
 */
public class RunScript {

    public static void main(String[] arguments) throws Exception {
        QP.getCoreClasses();
        List<String> step = new ArrayList<>();
        for (int i = 1; i <= arguments.length; i++) {
            if (i < arguments.length && !arguments[i].equals("--")) {
                step.add(arguments[i]);
                continue;
            }
            runForAll(ProjectIO.loadProject(new File(arguments[0]), BufferedImage.class), step);
            step.clear();
        }
    }

    private static void runForAll(Project<BufferedImage> project, List<String> step) throws Exception {
        boolean workflow = step.get(0).equals("workflow");
        List<String> args = new ArrayList<>(step.subList(1, step.size()));
        String selected = null;
        if (!args.isEmpty() && args.get(0).startsWith("select="))
            selected = args.remove(0).substring(7);
        var entries = project.getImageList();
        for (int i = 0; i < entries.size(); i++) {
            ImageData<BufferedImage> image = entries.get(i).readImageData();
            var hierarchy = image.getHierarchy();
            List<PathObject> chosen = new ArrayList<>();
            for (PathObject annotation : hierarchy.getAnnotationObjects())
                if (selected != null && selected.equals(annotation.getName()))
                    chosen.add(annotation);
            hierarchy.getSelectionModel().setSelectedObjects(chosen, null);
            String text;
            if (workflow) {
                text = image.getHistoryWorkflow().createScript();
                hierarchy.removeObjects(hierarchy.getObjects(null, PathCellObject.class), true);
            } else
                text = Files.readString(new File(step.get(0)).toPath());
            image.setChanged(false);  // QuPath 0.6 notes an image type when it opens an image without one
            Map<String, Object> seen = new LinkedHashMap<>();
            seen.put("image", entries.get(i).getImageName());
            try {
                seen.put("result", run(text, step.get(0), project, image, args, i, entries.size()));
                seen.put("changed", image.isChanged());
            } catch (Exception e) {
                Throwable cause = e;
                while (cause.getCause() != null)
                    cause = cause.getCause();
                seen.put("failed", String.valueOf(cause.getMessage()));
            }
            entries.get(i).saveImageData(image);  // also after a script that failed, as Run for project does
            describe(image, project, seen);
            seen.put("metadata", entries.get(i).getMetadataMap());
            System.out.println("SEEN " + new Gson().toJson(seen));
            image.getServer().close();
        }
        project.syncChanges();
    }

    private static void describe(ImageData<BufferedImage> image, Project<BufferedImage> project, Map<String, Object> seen) {
        List<Object> objects = new ArrayList<>();
        for (PathObject o : image.getHierarchy().getFlattenedObjectList(null)) {
            if (o.isRootObject())
                continue;
            Map<String, Object> one = new LinkedHashMap<>();
            one.put("id", o.getID().toString());
            one.put("kind", o.isAnnotation() ? "annotation" : o.isCell() ? "cell" : "detection");
            one.put("name", o.getName());
            one.put("class", o.getPathClass() == null ? null : o.getPathClass().toString());
            one.put("locked", o.isLocked());
            one.put("parent", o.getParent().isRootObject() ? null : o.getParent().getID().toString());
            one.put("centre", List.of(o.getROI().getCentroidX(), o.getROI().getCentroidY()));
            one.put("area", o.getROI().getArea());
            one.put("measurements", o.getMeasurementList().size());
            objects.add(one);
        }
        seen.put("objects", objects);
        seen.put("selected", image.getHierarchy().getSelectionModel().getSelectedObjects().stream().map(o -> o.getName()).toArray());
        Map<String, Object> classes = new LinkedHashMap<>();
        for (var pathClass : project.getPathClasses())
            classes.put(pathClass.toString(), pathClass.getColor() == null ? null : pathClass.getColor());
        seen.put("classes", classes);
        seen.put("steps", image.getHistoryWorkflow().getSteps().stream().map(s -> s.getName()).toArray());
    }

    private static Object run(String text, String name, Project<BufferedImage> project, ImageData<BufferedImage> image,
            List<String> args, int index, int size) throws Exception {
        QP.setBatchProjectAndImage(project, image);
        ScriptEngine engine = new ScriptEngineManager().getEngineByName("groovy");
        var context = new SimpleScriptContext();
        int scope = ScriptContext.ENGINE_SCOPE;
        context.setAttribute("args", args.toArray(new String[0]), scope);
        context.setAttribute("qupath.script.file", name, scope);
        context.setAttribute("qupath.script.batchSize", size, scope);
        context.setAttribute("qupath.script.batchIndex", index, scope);
        context.setAttribute("qupath.script.batchLast", index == size - 1, scope);
        context.setAttribute("qupath.script.batchSave", true, scope);
        context.setAttribute(ScriptEngine.FILENAME, name, scope);
        Object result = engine.eval("import static qupath.lib.scripting.QP.*\n" + text, context);
        return result == null ? null : result.toString();
    }
}
