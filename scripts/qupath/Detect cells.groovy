// Detect cells
//
// Finds cells without any model, as QuPath's own cell detection does but with thresholds derived from the slide: in the
// selected annotations, else in those of the class Tumor, else in the tissue.
//
// What you drew or changed stays. Run it again, and only what it wrote itself is replaced.

// Settings that you may change
def settings = [
    classes          : ['Tumor'],  // where to look if nothing is selected
    threshold        : null,       // optical density of a nucleus, such as 0.1; null: derived from the slide
    cell_expansion_um: null,       // growth of a nucleus to its cell, such as 5; null: as in the settings of the project
]

// The rest is the same in all scripts of qupath-ext.
evaluate(new File(buildPathInProject('qupath_ext', 'groovy', 'QuPathExt.groovy'))).start('detect-cells', settings)
