"""Slides, tissue, tiles, models and path objects for digital pathology. Knows no QuPath and no command line."""

__version__ = "0.1.0"
