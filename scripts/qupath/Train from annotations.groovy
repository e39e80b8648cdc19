// Train from annotations
//
// Trains a model from what you annotated in all images of this project; the model becomes the one that the other
// scripts of this project use. The open image is saved first: training reads what is saved. It takes a while.

// Settings that you may change
def settings = [
    name   : null,              // name of the new model; null: one with today's date
    minutes: null,              // time for the training; null: as in the settings of the project
    classes: [],                // classes to learn, such as ['Tumor', 'Stroma']; []: all that you annotated
]

// The rest is the same in all scripts of qupath-ext.
evaluate(new File(buildPathInProject('qupath_ext', 'groovy', 'QuPathExt.groovy'))).start('train', settings)
