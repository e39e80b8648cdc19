"""Small annotated projects to train on: pale slides with dark nuclei, half of them brown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import shapely
import tifffile

from pyhisto.objects import concat_objects, make_objects
from qupath_ext.project import Project, create_project

SIDE = 160
"""Side of a slide, px of 0.5 µm."""

PLACES = [(x, y) for x in (30, 60, 90, 120) for y in (30, 60, 90, 120)]
"""Centres of the nuclei, px; every other one, in this order, is positive."""

RADIUS = 8.0
"""Of the nuclei, px: 4 µm."""

STUDY = """
kind = "cells"
classes = ["Tumor: Positive", "Tumor: Negative"]
validation_windows = 2
[model]
architecture = "attention-unet"
decoder_channels = [16, 8]
tile_size = 64
overlap = 8
[training]
steps = 6
batch_size = 2
learning_rate = 1e-2
workers = 0
checkpoint_every = 2
validate_every = 3
"""


def write_slide(path: Path, seed: int) -> Path:
    """Write a slide with a nucleus at each of :data:`PLACES`."""
    rng = np.random.default_rng(seed)
    image = np.full((SIDE, SIDE, 3), (235, 230, 238), dtype=float)
    y, x = np.mgrid[0:SIDE, 0:SIDE] + 0.5
    for number, (cx, cy) in enumerate(PLACES):
        inside = (x - cx) ** 2 + (y - cy) ** 2 < RADIUS**2
        image[inside] = (120, 80, 50) if number % 2 == 0 else (90, 100, 160)
    image += rng.normal(0, 4, image.shape)
    tifffile.imwrite(
        path,
        image.clip(0, 255).astype(np.uint8),
        tile=(16, 16),
        photometric="rgb",
        compression="adobe_deflate",
        resolution=(20000, 20000),
        resolutionunit="CENTIMETER",
    )
    return path


def annotations(*, outlines: bool = False, frame: str = "Training") -> Any:
    """Return the nuclei as points, or as polygons, inside an area of the class `frame`, px of the slide."""
    area = make_objects([shapely.box(10, 10, 150, 150)], object_type="annotation", classification=frame)
    parts = [area]
    for name, first in (("Tumor: Positive", 0), ("Tumor: Negative", 1)):
        points = [shapely.Point(place) for place in PLACES[first::2]]
        shapes = [point.buffer(RADIUS) for point in points] if outlines else [shapely.MultiPoint(points)]
        parts.append(make_objects(shapes, object_type="annotation", classification=name))
    return concat_objects(parts)


def make_project(
    folder: Path, patients: Sequence[str] = ("A", "B", "C"), *, outlines: bool = False, **metadata: Sequence[str]
) -> Project:
    """Make a project with one annotated slide a patient; an empty name leaves the metadata away."""
    folder.mkdir(parents=True)
    project = create_project(folder / "project")
    for number, patient in enumerate(patients):
        given = {"Patient": patient} if patient else {}
        given |= {key: values[number] for key, values in metadata.items()}
        slide = write_slide(folder / f"{folder.name}-{number}.tif", 100 * len(folder.name) + number)
        project.add_image(slide, metadata=given).write_objects(add=annotations(outlines=outlines))
    return project
