"""Readers of image files that OpenSlide refuses."""
