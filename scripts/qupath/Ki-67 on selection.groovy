// Ki-67 on selection
//
// Finds the cells in the selected annotations and says which are positive. If nothing is selected it looks in the
// annotations of the class Tumor, and if there are none in the tissue. The percentage then stands in the measurements
// of the annotation ("Tumor: Positive %").
//
// What you drew or changed stays. Run it again, and only what it wrote itself is replaced.

// Settings that you may change
def settings = [
    classes      : ['Tumor'],   // where to look if nothing is selected
    classical    : false,       // true: find cells without a model, even if the project has one
    dab_threshold: null,        // DAB from which a nucleus is positive, such as 0.2; null: derived from the slide
]

// The rest is the same in all scripts of qupath-ext.
evaluate(new File(buildPathInProject('qupath_ext', 'groovy', 'QuPathExt.groovy'))).start('ki67-selection', settings)
