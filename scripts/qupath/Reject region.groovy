// Reject region
//
// Says that a region is of no use, such as one out of focus: its class becomes Rejected*, and training passes it over.
// It is the selected region, else the one around what is selected, else the one that "Next region" went to.

evaluate(new File(buildPathInProject('qupath_ext', 'groovy', 'QuPathExt.groovy'))).markRegions('rejected')
