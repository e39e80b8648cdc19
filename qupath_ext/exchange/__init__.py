"""The path-object table as files that other programs read, and back: GeoJSON, measurement tables, label masks."""
