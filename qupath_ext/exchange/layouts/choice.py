"""The layouts by name, with what is usual for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path

from qupath_ext.errors import ProjectError
from qupath_ext.exchange.layouts.classmap import ClassMap
from qupath_ext.exchange.layouts.coco import CocoFile
from qupath_ext.exchange.layouts.masks import ClassMasks, InstanceMasks
from qupath_ext.exchange.layouts.names import LAYOUTS, key_of, keyed
from qupath_ext.exchange.layouts.points import PointFiles, PointTable
from qupath_ext.exchange.layouts.truth import TruthSource

__all__ = ["LabelSettings", "is_one_file", "open_labels"]

TABLES = (".csv", ".tsv", ".txt", ".json")
_OPTIONS = {
    "instances": ("array", "types"),
    "points": ("columns", "image_column"),
    "masks": ("array", "border", "reach", "colour_tolerance"),
    "coco": (),
    "deepliif": ("reach", "colour_tolerance"),
    "nucls": (),
}
DEEPLIIF = {"#ff0000": "Positive", "#0000ff": "Negative"}
DEEPLIIF_BORDER = "#00ff00"
DEEPLIIF_REACH = 2.0
"""Half the width of the border, which is drawn over the nuclei's edge."""
DEEPLIIF_TOLERANCE = 100.0
"""Some of its pixels have a red of 210 in the place of 255."""
NUCLS_TYPES = {"1": "Non-Tumor", "2": "Tumor"}
NUCLS_POINTS = {"0": "Tumor", "1": "Stroma", "2": "Immune cells", "3": "Other"}
"""tumor_any, nonTIL_stromal, sTIL and other_nucleus under QuPath's own names."""


@dataclass(frozen=True)
class LabelSettings:
    """How labels are read.

    Attributes
    ----------
    layout
        One of :data:`~.names.LAYOUTS`.
    classes
        Class by value, in the place of those that are usual for the layout.
    match
        Regular expression whose first group is what names of images and labels share; see :func:`~.names.key_of`.
    shape
        ``"points"`` if centres are wanted, for which boxes without outline do; ``"polygons"`` if outlines are, which
        points do not have; None: what there is.
    array, types, columns, image_column, border, reach, colour_tolerance
        As in :class:`~.masks.InstanceMasks`, :class:`~.masks.ClassMasks` and :class:`~.points.PointTable`; None is what
        is usual for the layout.
    """

    layout: str
    classes: Mapping[str, str] = field(default_factory=dict)
    match: str = ""
    shape: str | None = None
    array: str | None = None
    types: tuple[Path, ...] | None = None
    columns: tuple[str, ...] | None = None
    image_column: str | None = None
    border: str | None = None
    reach: float | None = None
    colour_tolerance: float | None = None

    def check(self) -> None:
        """Refuse what does not belong to the layout.

        Raises
        ------
        ProjectError
            If the layout is not known, or a setting is of another one.
        """
        if self.layout not in _OPTIONS:
            raise ProjectError(f"layout {self.layout!r}", expected=f"one of {', '.join(LAYOUTS)}")
        if self.layout == "points" and self.shape == "polygons":
            raise ProjectError("--as polygons with layout points", expected="labels with outlines")
        known = ("layout", "classes", "match", "shape", *_OPTIONS[self.layout])
        for setting in fields(self):
            if setting.name not in known and getattr(self, setting.name) is not None:
                option = setting.name.replace("_", "-")
                of = [layout for layout, options in _OPTIONS.items() if setting.name in options]
                raise ProjectError(f"--{option} with layout {self.layout}", expected=f"a layout among {', '.join(of)}")


def is_one_file(settings: LabelSettings, labels: Sequence[Path]) -> bool:
    """Whether the labels of all images are in one file."""
    return settings.layout == "coco" or (bool(settings.image_column) and len(labels) == 1)


def open_labels(settings: LabelSettings, labels: Sequence[Path]) -> TruthSource:
    """Open the labels of a data set; one file for all images is read, others are only listed.

    Raises
    ------
    ProjectError
        If settings or files do not fit the layout.
    """
    settings.check()
    name_of = partial(key_of, pattern=settings.match)
    if is_one_file(settings, labels):
        if len(labels) != 1:
            raise ProjectError(f"{len(labels)} files of labels", expected="one file for all images")
        if settings.layout == "coco":
            return CocoFile(labels[0], ClassMap.parse((), settings.classes), name_of, boxes=settings.shape == "points")
        classes = ClassMap.parse((), settings.classes)
        return PointTable(labels[0], classes, _columns(settings), settings.image_column or "", name_of)
    if settings.image_column:
        raise ProjectError(f"{len(labels)} files of labels with --image-column", expected="one file for all images")
    return _open_files(settings, keyed(labels, settings.match, "labels"))


def _open_files(settings: LabelSettings, files: Mapping[str, Path]) -> TruthSource:
    layout, array = settings.layout, settings.array or ""
    if layout == "nucls":
        as_points = next(iter(files.values())).suffix.lower() in TABLES
        layout = "points" if as_points else "instances"
        classes = ClassMap.parse((), dict(settings.classes) or (NUCLS_POINTS if as_points else NUCLS_TYPES))
    elif layout == "deepliif":
        classes = ClassMap.parse((), dict(settings.classes) or DEEPLIIF)
    else:
        classes = ClassMap.parse((), settings.classes)
    if layout == "points":
        return PointFiles(files, classes, _columns(settings))
    if layout == "instances":
        types = keyed(settings.types, settings.match, "types") if settings.types else {}
        if types and (lacking := sorted(files.keys() - types.keys())):
            raise ProjectError(
                f"{len(lacking)} labels have no types, the first is {lacking[0]!r}", expected="all or none"
            )
        return InstanceMasks(files, classes, array, types)
    of_deepliif = layout == "deepliif"
    reach = settings.reach if settings.reach is not None else DEEPLIIF_REACH if of_deepliif else 0.0
    tolerance = settings.colour_tolerance
    if tolerance is None:
        tolerance = DEEPLIIF_TOLERANCE if of_deepliif else 0.0
    border = DEEPLIIF_BORDER if of_deepliif else settings.border or ""
    return ClassMasks(files, classes, array, border, reach, tolerance)


def _columns(settings: LabelSettings) -> tuple[str, ...]:
    return settings.columns or ("x", "y", "class")
