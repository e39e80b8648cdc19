package qupath.fx.dialogs;

import java.util.ArrayList;
import java.util.Collections;
import java.util.List;

/** What the scripts use of QuPath's message boxes; notes what they say. */
public class Dialogs {

    public static final List<String> SHOWN = Collections.synchronizedList(new ArrayList<>());

    public static void showErrorMessage(String title, String message) {
        SHOWN.add("error: " + message);
    }

    public static void showPlainMessage(String title, String message) {
        SHOWN.add("message: " + message);
    }

    public static void showInfoNotification(String title, String message) {
        SHOWN.add("notification: " + message);
    }
}
