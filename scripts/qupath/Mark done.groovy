// Mark done
//
// Says that all in a region is annotated as you want it: its class becomes Done*, and training learns from it. It is
// the selected region, else the one around what is selected, else the one that "Next region" went to.

evaluate(new File(buildPathInProject('qupath_ext', 'groovy', 'QuPathExt.groovy'))).markRegions('done')
