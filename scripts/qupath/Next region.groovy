// Next region
//
// Goes to the next region that waits for annotation (class Region*), in the order in which they were proposed: it is
// selected, in the middle of the viewer. If the image has none left, the image that has the next one is named.
//
// Once it ran, as long as QuPath does, the key F6 runs it again, F7 is "Mark done" and F8 is "Reject region".

evaluate(new File(buildPathInProject('qupath_ext', 'groovy', 'QuPathExt.groovy'))).nextRegion()
