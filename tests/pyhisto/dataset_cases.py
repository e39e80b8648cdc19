"""Slides with annotations for the tests of data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pyhisto.dataset import TrainingImage
from pyhisto.objects import make_objects

Pixels = np.ndarray[Any, Any]


def image_of(
    *objects: tuple[str | None, Any], path: Path = Path("none.tif"), kind: str = "annotation", **options: Any
) -> TrainingImage:
    """Return an image with objects (class, geometry) of one type; a pair of geometries is a cell and its nucleus."""
    shapes = [shape if isinstance(shape, tuple) else (shape, None) for _, shape in objects]
    table = make_objects(
        [outer for outer, _ in shapes],
        object_type=kind,
        nucleus=[inner for _, inner in shapes] if kind == "cell" else None,
        classification=[name for name, _ in objects],
    )
    return TrainingImage(path, table, **options)
