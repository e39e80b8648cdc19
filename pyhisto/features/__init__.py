"""Features of tiles: which network gives them, one file a slide. Importing this package loads nothing heavy."""
