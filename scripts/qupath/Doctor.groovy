// Doctor
//
// Looks whether this computer and this project are fit for qupath-ext, and says what to do if not.

def settings = [:]

// The rest is the same in all scripts of qupath-ext.
evaluate(new File(buildPathInProject('qupath_ext', 'groovy', 'QuPathExt.groovy'))).start('doctor', settings)
