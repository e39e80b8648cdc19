"""What decides the pixels and labels of patches, as a checksum."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import shapely

from pyhisto.dataset.images import TrainingImage, labelled_objects

__all__ = ["describe_images"]


def describe_images(images: Sequence[TrainingImage]) -> str:
    """Return a SHA-256 of slides (name, size of the file, how they are opened), objects with a class, and weights."""
    found = hashlib.sha256()
    for image in images:
        size = image.path.stat().st_size if image.path.is_file() else None
        own = (
            image.path.name,
            size,
            image.mpp,
            image.crop_to_bounds,
            image.series,
            image.part,
            image.white,
            image.stains,
            image.lens,
        )
        objects = labelled_objects(image)
        found.update(repr((own, len(objects.name))).encode())
        for area in image.weights:
            found.update(shapely.to_wkb(area.geometry) + repr(area.weight).encode())
        for column in (objects.kind, objects.name):
            found.update("\0".join(map(str, column)).encode())
        for shapes in (objects.geometry, objects.nucleus):
            outlines = [b"" if outline is None else outline for outline in shapely.to_wkb(shapes)]
            found.update(np.array([len(outline) for outline in outlines]).tobytes())
            found.update(b"".join(outlines))
    return found.hexdigest()
