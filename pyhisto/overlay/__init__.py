"""Pictures of a slide with its objects drawn on it, and the field that is worth a closer look."""

from pyhisto.overlay.field import densest_field
from pyhisto.overlay.picture import draw_overlay, encode_png, overlay_png, save_png

__all__ = ["densest_field", "draw_overlay", "encode_png", "overlay_png", "save_png"]
