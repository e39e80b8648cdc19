"""How models run over images, and what is done with what they say beside the objects: is it sane, and maps of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import geopandas as gpd

from pyhisto.errors import ConfigError, SanityError
from pyhisto.inference import InferenceSettings, WindowObserver
from pyhisto.inference.grid import tile_note, tile_shape
from pyhisto.maps import DEFAULT_UM, MapBuilder, Maps, map_tiles, write_maps, write_ome_tiff
from pyhisto.nuclei.adapt import Adaptation, View
from pyhisto.nuclei.survey import Survey
from pyhisto.objects import concat_objects, empty_objects
from pyhisto.sanity import SanityGate
from pyhisto.slide import Slide
from qupath_ext.frames import to_entry_maps
from qupath_ext.project import ImageEntry

if TYPE_CHECKING:
    from pyhisto.bundle.anymodel import AnyModel
    from pyhisto.bundle.loaded import Bundle

__all__ = ["WINDOWED", "ImageMaps", "MapFormat", "Prediction", "Watch", "WatchedImage", "check_tiles", "image_maps"]

MapFormat = Literal["none", "ome.tif", "tiles"]
WINDOWED = ("tissue_segmentation", "cell_detection")
"""Kinds of models that say something of every pixel, window by window."""


@dataclass(frozen=True)
class Prediction:
    """How models run, and what is kept of what they say.

    Attributes
    ----------
    inference
        How slides are cut into tiles and windows.
    precision, engine
        As in :func:`pyhisto.bundle.files.load_bundle`, by which the models were loaded.
    strict
        An image of which a model says what makes no sense fails, and nothing is written to it.
    uncertainty
        Keep maps of the class probabilities, of the entropy and, with flips, of their variance with the run.
    probability_maps
        ``"ome.tif"`` keeps the maps as OME-TIFF with the run, ``"tiles"`` adds them to the image as tile objects.
    map_um
        Side of a map pixel, µm.

    Raises
    ------
    ConfigError
        If a value is not one of these.
    """

    inference: InferenceSettings = field(default_factory=InferenceSettings)
    precision: str = "auto"
    engine: str = "auto"
    strict: bool = False
    uncertainty: bool = False
    probability_maps: MapFormat = "none"
    map_um: float = DEFAULT_UM

    def __post_init__(self) -> None:
        if self.probability_maps not in get_args(MapFormat):
            raise ConfigError(
                f"probability maps as {self.probability_maps!r}", expected=f"one of {', '.join(get_args(MapFormat))}"
            )
        if not 0.5 <= self.map_um <= 1000:
            raise ConfigError(f"map pixels of {self.map_um:g} µm", expected="0.5 to 1000")

    @property
    def maps(self) -> bool:
        """Whether maps are wanted."""
        return self.uncertainty or self.probability_maps != "none"


@dataclass(frozen=True)
class WatchedImage:
    """What was seen while a model ran over an image.

    Attributes
    ----------
    notes
        What deserves a look.
    measured
        The numbers behind it and how the network ran, for the run record.
    maps
        The maps, in the frame of the slide; None where none are wanted.
    """

    notes: tuple[str, ...]
    measured: dict[str, Any]
    maps: Maps | None


@dataclass(frozen=True)
class ImageMaps:
    """Maps of an image, in the frame that QuPath shows.

    Attributes
    ----------
    files
        What is kept with the run, by the name of the file as seen from the folder of the run.
    tiles
        What is kept in the image: path-object table of tiles, usually empty.
    """

    files: Mapping[str, Maps] = field(default_factory=dict)
    tiles: gpd.GeoDataFrame = field(default_factory=empty_objects)

    @contextmanager
    def written(self, folder: Path) -> Iterator[None]:
        """Write the files into the folder of a run; they are taken away again if what follows fails.

        Raises
        ------
        PyhistoError
            If a file cannot be written.
        """
        written: list[Path] = []
        try:
            for name, maps in self.files.items():
                path = folder / name
                (write_maps if path.suffix == ".npz" else write_ome_tiff)(path, maps)
                written.append(path)
            yield
        except BaseException:
            for path in written:
                path.unlink()
            raise


class Watch:
    """Watches a model run over one image.

    Parameters
    ----------
    slide, bundle, region
        The slide, the model and where it looks, level-0 px.
    adaptation, survey, view
        What was found out about the slide, and what was wanted. The notes of the former come first.
    prediction
        What is wanted here.
    whole
        Whether the region is all the tissue, or the image; not what was outlined.
    """

    def __init__(
        self,
        slide: Slide,
        bundle: AnyModel,
        region: Any,
        adaptation: Adaptation,
        survey: Survey | None,
        view: View,
        prediction: Prediction,
        whole: bool,
    ) -> None:
        self._slide = slide
        self._said = adaptation.notes
        self._bundle = bundle
        self._prediction = prediction
        self._gate = SanityGate(
            bundle.spec,
            adaptation=adaptation,
            slide_mpp=slide.mpp,
            white=(255.0, 255.0, 255.0) if survey is None else survey.stains.stains.background,
            whole=whole,
            size_known=view.nucleus_size_um != "auto",
        )
        self._maps = None
        if prediction.maps and not region.is_empty:
            self._maps = MapBuilder(
                bundle.spec,
                slide.mpp,
                slide.dimensions,
                region.bounds,
                um=prediction.map_um,
                uncertainty=prediction.uncertainty,
            )

    @property
    def observers(self) -> tuple[WindowObserver, ...]:
        """What the prediction is to show its windows to."""
        return (self._gate,) if self._maps is None else (self._gate, self._maps)

    def conclude(self, objects: gpd.GeoDataFrame | None = None) -> WatchedImage:
        """Judge what was seen.

        Parameters
        ----------
        objects
            Cells that were found, level-0 px of the slide.

        Raises
        ------
        SanityError
            If it makes no sense, and that is to be an error.
        """
        findings = self._gate.verdict(objects)
        if findings and self._prediction.strict:
            raise SanityError(
                f"{self._slide.path.name}: {'; '.join(f'{one.code}: {one.sentence}' for one in findings)}",
                remedy="nothing was written; without --strict it is a note",
            )
        tiles, said = self._tiles()
        measured = {
            "precision": self._bundle.precision,
            **tiles,
            "findings": {one.code: one.sentence for one in findings},
            **self._gate.measured(),
        }
        notes = (*self._bundle.notes, *said, *(f"{one.code}: {one.sentence}" for one in findings))
        return WatchedImage(notes, measured, None if self._maps is None else self._maps.maps())

    def _tiles(self) -> tuple[dict[str, int], tuple[str, ...]]:
        """Return which tiles are predicted, and what is to be said of that; nothing of models without windows."""
        bundle, settings = _outlining(self._bundle), self._prediction.inference
        if bundle is None:
            return {}, ()
        shape, said = tile_shape(bundle, settings), tile_note(bundle, settings)
        notes = (f"{self._bundle.path.name}: {said}",) if said else ()
        return {"tile_px": shape.tile_size, "overlap_px": shape.overlap}, notes


def check_tiles(models: Iterable[AnyModel], prediction: Prediction) -> None:
    """Refuse tiles that a model cannot have, before it runs.

    Raises
    ------
    ConfigError
        If the tile size is no multiple of a network's stride, or the overlap leaves no core.
    """
    for bundle in map(_outlining, models):
        if bundle is not None:
            tile_shape(bundle, prediction.inference)


def _outlining(model: AnyModel) -> Bundle | None:
    """Return the network of a model that says something of every pixel; None for other models."""
    if model.spec.kind not in WINDOWED:
        return None
    bundle = cast("Bundle", model)
    return bundle if bundle.spec.cascade is None else bundle.stages()[1]


def image_maps(
    entry: ImageEntry, slide_mpp: tuple[float, float], seen: Mapping[str, Maps | None], prediction: Prediction
) -> ImageMaps:
    """Return the maps of an image as they are to be kept.

    Parameters
    ----------
    entry
        The image.
    slide_mpp
        Pixel size of its slide, µm, (x, y).
    seen
        Maps in the frame of the slide, by the end of the name of their file: ``""``, or one for each model.
    prediction
        What is wanted.
    """
    framed = {part: to_entry_maps(maps, entry, slide_mpp) for part, maps in seen.items() if maps is not None}
    suffixes = [".npz"] if prediction.uncertainty else []
    suffixes += [".ome.tif"] if prediction.probability_maps == "ome.tif" else []
    files = {f"maps/{entry.id}{part}{suffix}": maps for part, maps in framed.items() for suffix in suffixes}
    tiled = framed.values() if prediction.probability_maps == "tiles" else ()
    return ImageMaps(files, concat_objects([map_tiles(maps, entry.size()) for maps in tiled]))
