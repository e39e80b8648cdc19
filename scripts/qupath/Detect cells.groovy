// Detect cells
//
// Finds cells without any model, as QuPath's own cell detection does: in the selected annotations, else in those of the
// class Tumor, else in the tissue.
//
// What you drew or changed stays. Run it again, and only what it wrote itself is replaced.

// Settings that you may change
def settings = [
    classes          : ['Tumor'],  // where to look if nothing is selected
    automatic        : false,      // true: threshold and stains are derived from the slide
    threshold        : null,       // optical density of a nucleus, such as 0.2; null: 0.1, as QuPath has it
    cell_expansion_um: null,       // growth of a nucleus to its cell, such as 5; null: as in the settings of the project
]

// The rest is the same in all scripts of qupath-ext.
evaluate(new File(buildPathInProject('qupath_ext', 'groovy', 'QuPathExt.groovy'))).start('detect-cells', settings)
