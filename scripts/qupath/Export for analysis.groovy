// Export for analysis
//
// Writes the objects of all images of this project as GeoJSON and GeoParquet, and tables of their measurements, into
// the folder qupath_ext/export of the project. The open image is saved first: the export reads what is saved.

// Settings that you may change
def settings = [
    formats: ['geojson.gz', 'parquet'],
    rows   : ['annotation', 'summary'],
]

// The rest is the same in all scripts of qupath-ext.
evaluate(new File(buildPathInProject('qupath_ext', 'groovy', 'QuPathExt.groovy'))).start('export', settings)
