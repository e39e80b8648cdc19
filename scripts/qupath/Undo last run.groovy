// Undo last run
//
// Takes back what the newest run wrote into the open image. Objects that you changed since stay, as do all your own.

def settings = [:]

// The rest is the same in all scripts of qupath-ext.
evaluate(new File(buildPathInProject('qupath_ext', 'groovy', 'QuPathExt.groovy'))).start('undo', settings)
