// Evaluate against my annotations
//
// Compares what the last run wrote with what you annotated, in all images of this project, and shows a page with the
// figures and the worst cases. The open image is saved first: the comparison reads what is saved.

// Settings that you may change
def settings = [
    classes: [],                // classes to compare, such as ['Tumor']; []: all
]

// The rest is the same in all scripts of qupath-ext.
evaluate(new File(buildPathInProject('qupath_ext', 'groovy', 'QuPathExt.groovy'))).start('evaluate', settings)
