// Segment tumour
//
// Draws annotations around the tumour, with the model of the project ("qupath-ext install-scripts --tumour", or the
// script "Train from annotations"): inside the selected annotations, else in all of the tissue.
//
// What you drew or changed stays. Run it again, and only what it wrote itself is replaced.

// Settings that you may change
def settings = [
    region: 'selection',        // 'tissue': everywhere, whatever is selected
]

// The rest is the same in all scripts of qupath-ext.
evaluate(new File(buildPathInProject('qupath_ext', 'groovy', 'QuPathExt.groovy'))).start('tumour', settings)
