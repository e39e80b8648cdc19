"""Feature files of the images of a project, for multiple-instance learning."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from pyhisto.errors import ConfigError, PyhistoError
from pyhisto.features.bags import Bag, read_bag
from pyhisto.features.encoders import Encoder
from pyhisto.features.extract import ExtractSettings, extract_features
from pyhisto.inference.lens import PLAIN, Lens
from pyhisto.normalisation import normalise_macenko
from pyhisto.nuclei.survey import survey_slide
from pyhisto.objects import make_objects
from pyhisto.slide import Slide
from pyhisto.stain import H_E
from pyhisto.tissue import detect_tissue
from qupath_ext.errors import ProjectError
from qupath_ext.frames import image_area, open_slide, to_slide_frame
from qupath_ext.project import ImageEntry, Project
from qupath_ext.workflows.lanes import Crew, Progress
from qupath_ext.workflows.regions import region_to_search, without_ignored
from qupath_ext.workflows.surveys import entry_stains

__all__ = ["Extracted", "FeatureSettings", "Normalisation", "extract_images", "tile_region"]

Normalisation = Literal["none", "macenko"]


@dataclass(frozen=True)
class FeatureSettings:
    """What features are made of.

    Attributes
    ----------
    region
        ``"tissue"``, ``"image"``, or the name of a class for its annotations; never inside ``Ignore*``.
    normalise
        ``"macenko"`` gives tiles the colours of a reference H&E slide before they are encoded; from the whole slide.
    mpp
        Pixel size in µm that overrides the project's and the file's.
    patient_key
        Entry metadata that names the patient.
    extract
        See :class:`pyhisto.features.extract.ExtractSettings`.

    Raises
    ------
    ConfigError
        If the normalisation is not known.
    """

    region: str = "tissue"
    normalise: Normalisation = "none"
    mpp: float | None = None
    patient_key: str = "Patient"
    extract: ExtractSettings = field(default_factory=ExtractSettings)

    def __post_init__(self) -> None:
        if self.normalise not in get_args(Normalisation):
            raise ConfigError(
                f"normalisation {self.normalise!r}", expected=f"one of {', '.join(get_args(Normalisation))}"
            )


@dataclass(frozen=True)
class Extracted:
    """The feature file of an image.

    Attributes
    ----------
    name, entry_id
        Of the image.
    bag
        The file.
    existed
        Whether it was there already.
    seconds
        What making it took.
    """

    name: str
    entry_id: str
    bag: Bag
    existed: bool
    seconds: float

    def summary(self) -> dict[str, Any]:
        """Return the result as JSON types."""
        return {
            "image": self.name,
            "entry_id": self.entry_id,
            "file": str(self.bag.path),
            "tiles": self.bag.instances,
            "features": self.bag.width,
            "existed": self.existed,
            "seconds": round(self.seconds, 2),
        }


Outcome: TypeAlias = Extracted | tuple[ImageEntry, PyhistoError]


def extract_images(
    project: Project,
    entries: Sequence[ImageEntry],
    encoders: Sequence[Encoder],
    folder: Path,
    settings: FeatureSettings,
    *,
    progress: Progress | None = None,
) -> Iterator[Outcome]:
    """Make the feature files of images of a project; files that are there already are left as they are.

    Parameters
    ----------
    project, entries
        The project and those of its images that are wanted. Nothing is written to it.
    encoders
        The same encoder on one or several devices, each of which takes images of its own.
    folder
        Where the files go, one an image, ``<name>.h5``; ``<name>-<entry id>.h5`` where names are not unique.
    settings
        See :class:`FeatureSettings`.
    progress
        Called with the name of the image, the number of tiles done and the number in all.

    Yields
    ------
    Extracted or (ImageEntry, PyhistoError)
        The file of each image, or why it has none: with one encoder in order, with several as they are finished.

    Raises
    ------
    ProjectError
        If several encoders are to work on a project that QuPath's own classes read.
    """
    if len(encoders) > 1 and project.backend != "native":
        raise ProjectError(
            f"{len(encoders)} devices with the project backend {project.backend}",
            expected="one device",
            remedy="use --backend native for several",
        )
    folder.mkdir(parents=True, exist_ok=True)
    paths = _paths(project, folder)
    works = [partial(_attempt, encoder, paths, settings) for encoder in encoders]
    if project.backend == "native":
        for _, outcome in Crew(entries, works, progress):
            yield outcome
        return
    for entry in entries:
        yield works[0](entry, progress or _show_nothing)


def _paths(project: Project, folder: Path) -> dict[str, Path]:
    """Return the feature file of each image of a project, by entry id."""
    names = {entry.id: re.sub(r"[^\w.() -]+", "_", entry.name).strip(" .") or "image" for entry in project.entries}
    often = Counter(name.casefold() for name in names.values())
    return {
        id_: folder / (f"{name}.h5" if often[name.casefold()] == 1 else f"{name}-{id_}.h5")
        for id_, name in names.items()
    }


def _attempt(
    encoder: Encoder, paths: dict[str, Path], settings: FeatureSettings, entry: ImageEntry, progress: Progress
) -> Outcome:
    """Make the feature file of an image, or say why there is none."""
    try:
        return _extract(encoder, paths[entry.id], settings, entry, progress)
    except PyhistoError as error:
        return entry, error


def _extract(
    encoder: Encoder, path: Path, settings: FeatureSettings, entry: ImageEntry, progress: Progress
) -> Extracted:
    begin = time.perf_counter()
    spec = encoder.spec
    wanted = {
        "encoder": spec.name,
        "encoder_sha256": spec.sha256,
        "tile_size_px": spec.tile_size,
        "mpp": spec.mpp,
        "normalise": settings.normalise,
        "region": settings.region,
        "min_tissue": settings.extract.min_tissue,
    }
    if path.exists():
        return Extracted(entry.name, entry.id, _same(path, wanted), True, 0.0)
    attributes = {
        **wanted,
        "name": entry.name,
        "patient": entry.metadata.get(settings.patient_key, "").strip(),
        "entry_id": entry.id,
    }
    with open_slide(entry, settings.mpp) as slide:
        region = tile_region(entry, slide, settings.region)
        bag = extract_features(
            slide,
            encoder,
            region,
            path,
            lens=_lens(entry, slide, region, settings.normalise),
            settings=settings.extract,
            attributes=attributes,
            progress=lambda done, total: progress(entry.name, done, total),
        )
    return Extracted(entry.name, entry.id, bag, False, time.perf_counter() - begin)


def _same(path: Path, wanted: dict[str, Any]) -> Bag:
    """Return an existing feature file, which must be what is wanted."""
    bag = read_bag(path)
    for name, value in wanted.items():
        found = bag.attributes.get(name)
        if found != value:
            raise ProjectError(
                f"{path} is there with {name} {found}",
                expected=str(value),
                remedy="choose another folder, or remove it",
            )
    return bag


def tile_region(entry: ImageEntry, slide: Slide, source: str) -> Any:
    """Return where tiles are taken from, level-0 px.

    Parameters
    ----------
    entry, slide
        The image and its slide.
    source
        As ``region`` of :class:`FeatureSettings`.

    Raises
    ------
    ProjectError
        If there is no annotation of the class.
    """
    area = image_area(entry, slide)
    drawn = to_slide_frame(entry.read_objects(), entry)
    if source == "tissue":
        parents = detect_tissue(slide)
    elif source == "image":
        parents = make_objects([area], object_type="annotation")
    else:
        parents = region_to_search(slide, "tumour", drawn, source, area)
    return without_ignored(parents, drawn, area)


def _lens(entry: ImageEntry, slide: Slide, region: Any, normalise: Normalisation) -> Lens:
    """Return how tiles are shown to the encoder: with Macenko, in the colours of a reference H&E slide."""
    if normalise == "none":
        return PLAIN
    if entry.image_type is not None and entry.image_type.endswith("H_DAB"):
        raise ProjectError(
            f"image {entry.name!r} is stained with H-DAB",
            expected="H&E for Macenko normalisation",
            remedy="leave it out",
        )
    survey = survey_slide(slide, stains=entry_stains(entry, "auto"), reference=H_E, region=region, nuclei=False)
    found = survey.stains
    return Lens(colours=partial(normalise_macenko, source=found.stains, source_p99=found.p99))


def _show_nothing(stage: str, done: int, total: int) -> None:
    del stage, done, total
