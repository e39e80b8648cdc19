"""Data sets in the JSON of COCO: polygons or run lengths (https://cocodataset.org/#format-data)."""

from __future__ import annotations

import json
from collections.abc import Callable, Set
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from qupath_ext.errors import FormatError
from qupath_ext.exchange.layouts.classmap import ClassMap
from qupath_ext.exchange.layouts.outlines import label_outlines
from qupath_ext.exchange.layouts.truth import Frame, Truth, areas_of, clip_truth

__all__ = ["CocoFile", "decode_runs"]


class CocoFile:
    """Annotations of all images in one file.

    Parameters
    ----------
    path
        The file.
    classes
        Class by category name; the names stand for themselves if it is empty.
    key_of
        Gives the name of an image for its ``file_name``.
    boxes
        Take the centre of its box for an object without outline, which is a point then; refused otherwise.

    Raises
    ------
    FormatError
        If it cannot be read, or is no COCO file.
    """

    def __init__(self, path: Path, classes: ClassMap, key_of: Callable[[str], str], *, boxes: bool = False) -> None:
        self._path = path
        self._classes = classes
        self._boxes = boxes
        try:
            content = json.loads(path.read_text(encoding="utf-8-sig"))
            self._categories = {item["id"]: str(item["name"]) for item in content["categories"]}
            names = {item["id"]: key_of(str(item["file_name"])) for item in content["images"]}
            self._annotations: dict[str, list[dict[str, Any]]] = {name: [] for name in names.values()}
            for annotation in content["annotations"]:
                self._annotations[names[annotation["image_id"]]].append(annotation)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FormatError(
                f"{path} cannot be read ({type(error).__name__}: {error})",
                expected="COCO JSON with images, annotations and categories that refer to each other",
            ) from error
        if len(self._annotations) < len(names):
            raise FormatError(f"{path} names an image twice", expected="images of different names")

    @property
    def keys(self) -> Set[str]:
        """Names of the images in the file."""
        return self._annotations.keys()

    def read(self, key: str, frame: Frame) -> Truth:
        """Read the labels of an image."""
        annotations = self._annotations[key]
        shapes = np.empty(len(annotations), dtype=object)
        try:
            classes = self._classes.classes_of(self._categories[item["category_id"]] for item in annotations)
            shapes[:] = [self._shape(item, frame) for item in annotations]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise FormatError(
                f"{self._path.name}, image {key}: annotation that is damaged ({type(error).__name__}: {error})",
                expected="category_id, and segmentation as polygons or run lengths",
            ) from error
        return clip_truth(shapes, classes, frame, f"{self._path.name}, image {key}")

    def _shape(self, item: dict[str, Any], frame: Frame) -> Any:
        """Return the outline of an annotation in px of the file; None if it has no area."""
        outline = item.get("segmentation")
        if not outline:
            if not self._boxes:
                raise FormatError(
                    f"{self._path.name}: annotation {item.get('id')} has no outline",
                    expected="a segmentation",
                    remedy="import the centres of the boxes with --as points",
                )
            x, y, width, height = item["bbox"]
            return shapely.Point(x + width / 2, y + height / 2)
        if isinstance(outline, dict):
            mask = decode_runs(outline)
            if mask.shape != frame.size[::-1]:
                raise ValueError(f"a mask of {mask.shape[1]} x {mask.shape[0]} px")
            shapes = label_outlines(mask)[1]
            return shapes[0] if len(shapes) else None
        rings = [np.asarray(ring, dtype=np.float64).reshape(-1, 2) for ring in outline]
        polygons = [shapely.make_valid(shapely.Polygon(ring)) for ring in rings if len(ring) >= 3]
        return areas_of(shapely.union_all(polygons))


def decode_runs(runs: dict[str, Any]) -> npt.NDArray[np.uint8]:
    """Return the mask of run lengths, uint8 (height, width): ``{"size": [height, width], "counts": ...}``.

    Counts are of pixels column by column, of background and object in turn, as a list or as COCO's text: each count is
    written in groups of five bits, lowest first, the sixth bit says that more follow; from the fourth on, it is the
    difference to the count before the last (``rleToString`` of the COCO API).

    Raises
    ------
    ValueError
        If the counts do not fill the mask.

    Examples
    --------
    >>> decode_runs({"size": [2, 3], "counts": [1, 3, 2]}).tolist()
    [[0, 1, 0], [1, 1, 0]]
    """
    height, width = runs["size"]
    counts = runs["counts"] if isinstance(runs["counts"], list) else _parse_counts(str(runs["counts"]))
    if sum(counts) != height * width or min(counts, default=0) < 0:
        raise ValueError(f"run lengths of {sum(counts)} px in a mask of {height * width}")
    values = np.repeat(np.arange(len(counts)) % 2, counts)
    return values.reshape(width, height).T.astype(np.uint8)


def _parse_counts(text: str) -> list[int]:
    counts: list[int] = []
    value = shift = 0
    for character in text.encode("ascii"):
        group = character - 48
        value |= (group & 31) << shift
        shift += 5
        if not group & 32:
            if group & 16:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("run lengths that end too early")
    return counts
