"""Pictures of a slide with its objects drawn on it, and the field that is worth a closer look."""

from pyhisto.overlay.comparison import Marks, draw_marks
from pyhisto.overlay.field import densest_field
from pyhisto.overlay.picture import draw_overlay, encode_png, overlay_png, save_png

__all__ = ["Marks", "densest_field", "draw_marks", "draw_overlay", "encode_png", "overlay_png", "save_png"]
