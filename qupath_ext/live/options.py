"""The options of a job's task: those of the command line, filled in from the settings of the project."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

from pyhisto.config import from_mapping
from pyhisto.errors import ConfigError
from qupath_ext.projectsettings import ProjectSettings

if TYPE_CHECKING:
    import geopandas as gpd

    from pyhisto.nuclei import CellDetectionSettings
    from qupath_ext.workflows.regions import RegionSource

__all__ = ["AnalysisOptions", "EvaluateOptions", "ExportOptions", "Place", "TrainOptions", "find_place", "read_options"]

Where: TypeAlias = Literal["selection", "auto", "tumour", "tissue", "image"]
T = TypeVar("T")


@dataclass(frozen=True)
class AnalysisOptions:
    """Options of the tasks that put objects into the open image.

    Attributes
    ----------
    region
        Where to look: ``"selection"`` in the selected annotations, and if nothing is selected as ``"auto"``, which is
        in annotations of `classes`, else in the tissue; ``"tumour"`` in annotations of `classes` only; ``"tissue"``
        in the tissue; ``"image"`` everywhere.
    classes
        Classes of annotations to look inside; that of the settings if empty.
    tumour, cells
        Folders of models, in place of those of the settings.
    classical
        Find cells without a model.
    device
        In place of that of the settings.
    stains, automatic, nucleus_size_um, stain_normalisation, classify, strict, flips
        As on the command line.
    detection
        Numbers of the classical detector, which stand beside the other options.
    """

    region: Where = "selection"
    classes: tuple[str, ...] = ()
    tumour: str | None = None
    cells: str | None = None
    classical: bool = False
    device: str | None = None
    stains: Literal["auto", "project", "default"] = "auto"
    automatic: bool | None = None
    nucleus_size_um: float | str = "auto"
    stain_normalisation: Literal["auto", "none", "macenko"] = "auto"
    classify: Literal["auto", "network", "dab"] = "auto"
    strict: bool = False
    flips: bool = False
    detection: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def detection_settings(self, settings: ProjectSettings) -> CellDetectionSettings:
        """Return the settings of the classical detector."""
        from pyhisto.nuclei import CellDetectionSettings

        given = {"cell_expansion_um": settings.cell_expansion_um, **self.detection}
        return from_mapping(CellDetectionSettings, given, "options of the job")

    def is_automatic(self, default: bool) -> bool:
        """Return whether thresholds come from the slide: not where one is given."""
        if self.automatic is None:
            return default and not {"threshold", "dab_threshold"} & set(self.detection)
        return self.automatic


@dataclass(frozen=True)
class TrainOptions:
    """Options of ``train``: those of the command line; `name` is that of the new model."""

    name: str | None = None
    task: Literal["cells", "tissue"] | None = None
    classes: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    init: str | None = None
    mpp: float | None = None
    minutes: float | None = None
    device: str | None = None


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of ``evaluate``: those of the command line; the prediction is the newest run if None."""

    prediction: str | None = None
    reference: str = "annotations"
    task: Literal["cells", "tissue"] | None = None
    classes: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    region: str | None = None
    radius_um: float = 4.0


@dataclass(frozen=True)
class ExportOptions:
    """Options of ``export``: files for each image in some formats, and tables of some rows for all images."""

    formats: tuple[str, ...] = ("geojson.gz", "parquet")
    rows: tuple[str, ...] = ("annotation", "summary")
    images: tuple[str, ...] = ()


def read_options(cls: type[T], options: Mapping[str, Any]) -> T:
    """Fill options from what a script says; null is the same as nothing.

    Raises
    ------
    ConfigError
        If one is unknown or wrong.
    """
    known = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    given = {key: value for key, value in options.items() if value is not None}
    if "detection" in known:
        from pyhisto.nuclei.settings import CellDetectionSettings

        numbers = {field.name for field in dataclasses.fields(CellDetectionSettings)}
        given["detection"] = {key: given.pop(key) for key in numbers & set(given)}
    return from_mapping(cls, given, "options of the job")


@dataclass(frozen=True)
class Place:
    """Where a task looks.

    Attributes
    ----------
    source, region_class
        As the analyses take them.
    selected
        Ids of the annotations to look inside; these go before `source`.
    words
        The place in words.
    """

    source: RegionSource
    region_class: str
    selected: tuple[str, ...]
    words: str


def find_place(
    options: AnalysisOptions, default_class: str | None, selected: tuple[str, ...], objects: gpd.GeoDataFrame
) -> Place:
    """Return where to look: the selected annotations, else those of the class that the task is for, else the tissue.

    Parameters
    ----------
    options
        Those of the job.
    default_class
        The class that the task is for, if there is one.
    selected
        Ids of what is selected in QuPath.
    objects
        All objects of the image.

    Raises
    ------
    ConfigError
        If annotations of a class are asked for and there are none.
    """
    is_annotation = (objects["object_type"] == "annotation").to_numpy()
    if options.region == "selection" and selected:
        return Place("auto", "", selected, _counted(len(selected), "selected annotation"))
    if options.region in ("tissue", "image"):
        return Place(options.region, "", (), f"the {options.region}")
    classes = options.classes or ((default_class,) if default_class else ())
    inside = objects.index[is_annotation & objects["classification"].isin(classes).to_numpy()]
    if len(inside) == 0:
        if options.region == "tumour":
            named = " or ".join(classes) or "of any class"
            raise ConfigError(f"no annotation of the class {named}", remedy="draw one, or select what to look inside")
        return Place("tissue", "", (), "the tissue")
    words = f"{_counted(len(inside), 'annotation')} of the class {' or '.join(classes)}"
    if len(classes) > 1:
        return Place("auto", "", tuple(map(str, inside)), words)
    return Place("tumour", classes[0], (), words)


def _counted(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"
