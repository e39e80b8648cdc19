"""Slides with annotations, windows of them, and which of their objects can label anything."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import shapely

from pyhisto.errors import ConfigError
from pyhisto.slide import Slide
from pyhisto.stain import StainVectors

if TYPE_CHECKING:
    from pyhisto.inference import Lens

__all__ = [
    "HIDDEN",
    "IGNORED",
    "PARTS",
    "Labelled",
    "Part",
    "TrainingImage",
    "WeightedArea",
    "Window",
    "is_of",
    "labelled_objects",
]

IGNORED = 255
"""Label of pixels that the loss leaves out."""

HIDDEN = 254
"""Label, while a mask is drawn, of what is ignored whatever else is there: under ``Ignore*`` or held out."""

Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")
"""What a slide is used for."""

OBJECTS = "labelled objects"

T = TypeVar("T")


@dataclass(frozen=True)
class WeightedArea:
    """An area that counts more, or less, than the rest of the labels in training.

    Attributes
    ----------
    geometry
        shapely Polygon or MultiPolygon, level-0 px.
    weight
        What a pixel in it weighs in the loss; one in no area weighs 1.

    Raises
    ------
    ConfigError
        If the weight is not above 0.
    """

    geometry: Any
    weight: float

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise ConfigError(f"an area of weight {self.weight:g}", expected="more than 0")


@dataclass(frozen=True)
class TrainingImage:
    """A slide with annotations.

    Attributes
    ----------
    path
        The slide.
    objects
        Path-object table, level-0 px; not changed once labels were drawn from it.
    mpp
        Pixel size that overrides the file's, µm (x, y), or None.
    crop_to_bounds, series
        As in :class:`pyhisto.slide.Slide`.
    name
        What to call the image in messages; the file's name if empty.
    patient
        Whose slide it is; empty if not known.
    part
        What the slide is used for: ``"train"``, ``"validation"`` or ``"test"``.
    white
        Red, green and blue of its empty glass, 0 to 255; None for 255 each.
    stains
        Its stain vectors, or None; those that it has through the lens, where that changes colours.
    lens
        How a network sees the slide, in training and validation alike; None for as it is. Patches of a pixel size are
        read at ``lens.size`` times that, and have its colours.
    weights
        Areas whose pixels weigh more in training, in the losses that weigh pixels; where two overlap, the heavier
        counts.

    Raises
    ------
    ConfigError
        If the part is another word.
    """

    path: Path
    objects: gpd.GeoDataFrame
    mpp: tuple[float, float] | None = None
    crop_to_bounds: bool = True
    series: int = 0
    name: str = ""
    patient: str = ""
    part: Part = "train"
    white: tuple[float, float, float] | None = None
    stains: StainVectors | None = None
    lens: Lens | None = None
    weights: tuple[WeightedArea, ...] = ()
    _cache: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise ConfigError(f"{self.title}: part {self.part!r}", expected=f"one of {', '.join(PARTS)}")

    @property
    def title(self) -> str:
        """What to call the image in messages."""
        return self.name or self.path.name

    def open(self) -> Slide:
        """Open the slide; raises what :class:`pyhisto.slide.Slide` raises."""
        return Slide(self.path, mpp=self.mpp, crop_to_bounds=self.crop_to_bounds, series=self.series)

    def pixel_size(self) -> tuple[float, float]:
        """Return the pixel size of level 0 in µm, (x, y); opens the slide if it was not given."""
        if self.mpp is not None:
            return self.mpp

        def read() -> tuple[float, float]:
            with self.open() as slide:
                return slide.mpp

        return self.cached("pixel size", read)

    def seen_mpp(self, mpp: float) -> float:
        """Return the declared pixel size, µm, at which a network that works at `mpp` sees the slide."""
        return mpp if self.lens is None else mpp * self.lens.size

    def seen(self, rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Return pixels in the colours that a network sees, uint8 (H, W, 3 or more); only the first three change."""
        if self.lens is None or self.lens.colours is None:
            return rgb
        return np.concatenate([self.lens.see(np.ascontiguousarray(rgb[..., :3])), rgb[..., 3:]], axis=2)

    def cached(self, key: Hashable, build: Callable[[], T]) -> T:
        """Return what `build` made when it was first asked for under this key."""
        if key not in self._cache:
            self._cache[key] = build()
        found: T = self._cache[key]
        return found

    def without_objects(self) -> TrainingImage:
        """Return the image as it goes to worker processes: with what was made of its objects, but not with them."""
        bare = replace(self, objects=self.objects.iloc[:0])
        bare._cache.update({key: made for key, made in self._cache.items() if key != OBJECTS})
        return bare


@dataclass(frozen=True)
class Window:
    """The rectangle of a patch: top left corner in level-0 px, level-0 pixels to one patch pixel (x, y), side in px."""

    x: float
    y: float
    scale: tuple[float, float]
    size: int

    @property
    def box(self) -> Any:
        """The rectangle as a shapely polygon, level-0 px."""
        return shapely.box(self.x, self.y, self.x + self.size * self.scale[0], self.y + self.size * self.scale[1])

    def padded(self, margin: int) -> Window:
        """Return the window with `margin` more patch pixels on each side."""
        x, y = self.x - margin * self.scale[0], self.y - margin * self.scale[1]
        return Window(x, y, self.scale, self.size + 2 * margin)


@dataclass(frozen=True)
class Labelled:
    """The objects of an image that have a class and a shape, in their order: n rows.

    Attributes
    ----------
    kind, name
        Object type and class of each, str (n,).
    geometry, nucleus
        shapely geometries, level-0 px (n,); the nucleus is None where there is none.
    """

    kind: npt.NDArray[np.object_]
    name: npt.NDArray[np.object_]
    geometry: npt.NDArray[np.object_]
    nucleus: npt.NDArray[np.object_]

    def __getitem__(self, rows: npt.NDArray[Any]) -> Labelled:
        """Return some of the rows."""
        return Labelled(self.kind[rows], self.name[rows], self.geometry[rows], self.nucleus[rows])

    @property
    def areas(self) -> Labelled:
        """Those that are annotated areas."""
        return self[(self.kind == "annotation") & (shapely.get_dimensions(self.geometry) == 2)]


def labelled_objects(image: TrainingImage) -> Labelled:
    """Return the objects of an image that can label anything."""

    def build() -> Labelled:
        table = image.objects
        shapes = table.geometry.to_numpy()
        usable = table["classification"].notna().to_numpy() & ~shapely.is_missing(shapes) & ~shapely.is_empty(shapes)
        columns = [table[name].to_numpy(dtype=object)[usable] for name in ("object_type", "classification", "nucleus")]
        return Labelled(columns[0], columns[1], shapes[usable], columns[2])

    return image.cached(OBJECTS, build)


def is_of(classification: str, base: str) -> bool:
    """Return whether a class is `base` or derived from it, as ``Tumor: Positive`` is from ``Tumor``.

    >>> is_of("Tumor: Positive", "Tumor"), is_of("Tumour bed", "Tumor")
    (True, False)
    """
    return classification == base or classification.startswith(f"{base}:")
