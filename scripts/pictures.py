"""The pictures of the README: a synthetic slide with a selected annotation, before and after "Ki-67 on selection".

    python scripts/pictures.py [FOLDER]

Draws the slide, makes a project with one annotation in a temporary folder, does what the script of QuPath's menu
does, without a model, and draws what is in the project then, in its colours, as before.png and after.png in FOLDER
(default docs/pictures).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import shapely
from PIL import Image

from pyhisto.errors import PyhistoError
from pyhisto.objects import make_objects
from pyhisto.overlay import draw_overlay
from pyhisto.slide import Slide
from pyhisto.synth import SynthSettings, make_slide
from qupath_ext.project import create_project, pack_rgb
from qupath_ext.workflows.ki67 import CLASSES, Ki67Settings, annotate_project

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "pictures"
SIZE = (480, 360)
"""Width and height of the pictures, px; as many level-0 px of 0.5 µm."""

LIMIT = 150_000
"""Largest size of a picture, bytes."""

SELECTED = (255, 255, 0)
"""QuPath's colour of what is selected."""


def main(folder: Path = FOLDER) -> list[Path]:
    """Draw both pictures and return their paths."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        slide_path = work / "slide.tif"
        truth = make_slide(slide_path, SynthSettings(width=1200, height=1200, seed=3, proliferation=0.3, noise=0.0))
        area = _outline(truth.tumour)
        project = create_project(work / "project", classes=CLASSES, backend="native")
        entry = project.add_image(slide_path, image_type="BRIGHTFIELD_H_DAB")
        drawn = make_objects([area], object_type="annotation", classification="Tumor")
        with entry.edit() as change:
            change.add(drawn)
        settings = Ki67Settings(region="auto", selected=tuple(drawn.index))
        (result,) = annotate_project(project, [entry], settings)
        if isinstance(result, tuple):
            raise result[1]
        after = entry.read_objects()
        folder.mkdir(parents=True, exist_ok=True)
        return [
            _save(folder / "before.png", _draw(slide_path, drawn.assign(color=pack_rgb(*SELECTED)), area)),
            _save(folder / "after.png", _draw(slide_path, after, area)),
        ]


def _outline(tumour: gpd.GeoDataFrame) -> shapely.Polygon:
    """Return what a person would draw, level-0 px: the largest nest, rounded and cut to two thirds of the picture."""
    nest = max(shapely.get_parts(tumour.geometry.to_numpy()), key=shapely.area)
    x, y = nest.representative_point().coords[0]
    half = np.array(SIZE) / 3
    inside = nest.intersection(shapely.box(x - half[0], y - half[1], x + half[0], y + half[1]))
    largest = max(shapely.get_parts(inside), key=shapely.area)
    return shapely.Polygon(largest.buffer(-12).buffer(16).simplify(1.5).exterior)


def _draw(path: Path, objects: gpd.GeoDataFrame, area: shapely.Polygon) -> npt.NDArray[np.uint8]:
    x, y = area.envelope.centroid.coords[0]
    bounds = (x - SIZE[0] / 2, y - SIZE[1] / 2, x + SIZE[0] / 2, y + SIZE[1] / 2)
    with Slide(path) as slide:
        return draw_overlay(slide, objects, bounds=bounds, max_size=SIZE)


def _save(path: Path, rgb: npt.NDArray[np.uint8]) -> Path:
    """Write a picture with a palette, which is a third of the size."""
    picture = Image.fromarray(rgb).quantize(128, dither=Image.Dither.NONE)
    picture.save(path, optimize=True)
    if path.stat().st_size >= LIMIT:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; expected less than {LIMIT}")
    return path


if __name__ == "__main__":
    try:
        for written in main(*map(Path, sys.argv[1:2])):
            print(written)
    except PyhistoError as error:
        sys.exit(f"error: {error}")
