// Ki-67 on whole slide
//
// Segments the tumour with the model of the project, finds the cells in it and says which are positive. Without such a
// model it looks in the annotations of the class Tumor, and if there are none in the tissue.
//
// What you drew or changed stays. Run it again, and only what it wrote itself is replaced.

// Settings that you may change
def settings = [
    classical    : false,       // true: find cells without a model, even if the project has one
    dab_threshold: null,        // DAB from which a nucleus is positive, such as 0.2; null: derived from the slide
]

// The rest is the same in all scripts of qupath-ext.
evaluate(new File(buildPathInProject('qupath_ext', 'groovy', 'QuPathExt.groovy'))).start('ki67-slide', settings)
