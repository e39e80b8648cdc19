"""Data sets of masks: a number for each object, or a number or colour for each class."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qupath_ext.errors import FormatError
from qupath_ext.exchange.layouts.arrays import ARRAY_ENDINGS, read_arrays, read_colours, read_labels
from qupath_ext.exchange.layouts.classmap import ClassMap, canonical, parse_colour
from qupath_ext.exchange.layouts.outlines import connected_parts, label_outlines
from qupath_ext.exchange.layouts.truth import Frame, Truth

__all__ = ["ClassMasks", "InstanceMasks"]

TYPES = "type_map"
"""The name that an array of the instances' types usually has."""
Pixels = npt.NDArray[Any]


@dataclass(frozen=True)
class InstanceMasks:
    """Masks with a number for each object.

    Attributes
    ----------
    files
        Mask of each image.
    classes
        Class by type; with :data:`~.classmap.REST` alone, all objects have one class.
    array
        Name of the array in a file with several.
    types
        File with the types of each image's objects: a mask of the same size, of whose values the most frequent one in
        an object counts, or CSV with rows ``object number,type``. By default the array ``type_map`` beside the
        instances, if there is one.
    """

    files: Mapping[str, Path]
    classes: ClassMap
    array: str = ""
    types: Mapping[str, Path] = field(default_factory=dict)

    @property
    def keys(self) -> Set[str]:
        """Names of the images with a mask."""
        return self.files.keys()

    def read(self, key: str, frame: Frame) -> Truth:
        """Read the labels of an image."""
        path = self.files[key]
        labels = frame.cut(read_labels(path, self.array), path)
        values, shapes = label_outlines(labels)
        types = self._types(key, labels, values, frame)
        return Truth.of(shapes, self.classes.classes_of(types))

    def _types(self, key: str, labels: Pixels, values: Pixels, frame: Frame) -> list[str]:
        """Return the type of each object; empty texts if nothing says them."""
        path = self.types.get(key, self.files[key])
        if path.suffix.lower() == ".csv":
            known = _read_types(path)
            missing = [value for value in values.tolist() if str(value) not in known]
            if missing:
                raise FormatError(f"{path.name} has no type of object {missing[0]}", expected="a row for each object")
            return [known[str(value)] for value in values.tolist()]
        if key in self.types:
            mask = read_labels(path)
        elif path.suffix.lower() in ARRAY_ENDINGS and TYPES in read_arrays(path):
            mask = read_labels(path, TYPES)
        else:
            return [""] * len(values)
        return [str(value) for value in _most_frequent(labels, values, frame.cut(mask, path)).tolist()]


def _most_frequent(labels: Pixels, values: Pixels, types: Pixels) -> Pixels:
    """Return the type that most pixels of each object have; of equals the smallest."""
    names, code = np.unique(types, return_inverse=True)
    inside = labels != 0
    row = np.searchsorted(values, labels[inside])
    pairs = row * len(names) + code.reshape(types.shape)[inside]
    counts = np.bincount(pairs, minlength=len(values) * len(names)).reshape(len(values), len(names))
    return np.asarray(names[counts.argmax(axis=1)]) if len(values) else names[:0]


def _read_types(path: Path) -> dict[str, str]:
    try:
        rows = [row for row in csv.reader(path.read_text(encoding="utf-8-sig").splitlines()) if row]
    except (OSError, ValueError) as error:
        raise FormatError(f"{path} cannot be read ({error})", expected="CSV of object numbers and types") from error
    if rows and not rows[0][0].strip().isdecimal():
        rows = rows[1:]
    if not all(len(row) == 2 for row in rows):
        raise FormatError(f"{path} has rows of other than two values", expected="rows object number,type")
    return {canonical(value): name.strip() for value, name in rows}


@dataclass(frozen=True)
class ClassMasks:
    """Masks with a number or colour for each class; every connected part is an object.

    Attributes
    ----------
    files
        Mask of each image.
    classes
        Class by number, or by colour. Number 0, or black, is background unless it has a class.
    array
        Name of the array in a file with several.
    border
        Number or colour of a border that is drawn between objects: it is no object itself.
    reach
        How far objects reach into the border, px: half its width gives them their own outline back.
    colour_tolerance
        How far a pixel may be from the nearest of the colours, as a distance in RGB; masks that were compressed or
        scaled have colours in between.
    """

    files: Mapping[str, Path]
    classes: ClassMap
    array: str = ""
    border: str = ""
    reach: float = 0.0
    colour_tolerance: float = 0.0

    @property
    def keys(self) -> Set[str]:
        """Names of the images with a mask."""
        return self.files.keys()

    def read(self, key: str, frame: Frame) -> Truth:
        """Read the labels of an image."""
        path = self.files[key]
        codes, values = self._coded(path)
        codes = frame.cut(codes, path)
        border = None
        if self.border:
            border = codes == values.index(canonical(self.border)) if canonical(self.border) in values else None
            codes = np.where(codes == 0 if border is None else border, 0, codes)
        labels, of_part = connected_parts(codes, border, self.reach)
        numbers, shapes = label_outlines(labels)
        return Truth.of(shapes, self.classes.classes_of(values[code] for code in of_part[numbers - 1].tolist()))

    def _coded(self, path: Path) -> tuple[Pixels, list[str]]:
        """Return the mask as numbers, and what each number stands for; 0 is background."""
        colours = self.classes.colours()
        if self.border and (rgb := parse_colour(self.border)) is not None:
            colours[rgb] = canonical(self.border)
        if colours:
            return self._coded_colours(path, colours)
        pixels = read_labels(path, self.array)
        found, index = np.unique(pixels, return_inverse=True)
        values = [str(value) for value in found.tolist()]
        if values[:1] == ["0"] and "0" not in self.classes.names:
            return index.reshape(pixels.shape), values
        return index.reshape(pixels.shape) + 1, ["", *values]

    def _coded_colours(self, path: Path, colours: dict[tuple[int, int, int], str]) -> tuple[Pixels, list[str]]:
        pixels = read_colours(path)
        packed = pixels.astype(np.int64) @ np.array([65536, 256, 1])
        found, index = np.unique(packed, return_inverse=True)
        rgb = np.stack([found >> 16, found >> 8 & 255, found & 255], axis=1)
        black = (0, 0, 0)
        listed = [black, *(colour for colour in colours if colour != black)]
        names = ["", *(colours[colour] for colour in listed[1:])]
        distance = np.linalg.norm(rgb[:, None] - np.array(listed)[None], axis=2)
        nearest = distance.argmin(axis=1)
        far = distance.min(axis=1) > self.colour_tolerance
        if far.any():
            stray = "#{:02x}{:02x}{:02x}".format(*rgb[far][0].tolist())
            raise FormatError(
                f"{path.name} has {int(far[index].sum())} px of other colours, such as {stray}",
                expected=f"black, {', '.join(names[1:])}",
                remedy="give --class for the colour, or a larger --colour-tolerance",
            )
        codes = nearest[index].reshape(packed.shape)
        if black in colours:
            return codes + 1, ["", colours[black], *names[1:]]
        return codes, names
