"""What the slides of a project show before networks see them; small ones of a kind are looked at together."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pyhisto.bundle.files import Bundle
from pyhisto.errors import PyhistoError
from pyhisto.inference import Lens
from pyhisto.nuclei.adapt import dab_means
from pyhisto.nuclei.network import predict_cells
from pyhisto.nuclei.survey import PIXEL_UM, Survey, pool_surveys
from pyhisto.slide import Slide
from pyhisto.stain import H_DAB, StainVectors
from qupath_ext.errors import ProjectError
from qupath_ext.frames import is_default_stains, open_slide, to_stain_vectors
from qupath_ext.project import ImageEntry
from qupath_ext.workflows.slidememory import SlideMemory

__all__ = ["StainSource", "Surveys", "entry_stains"]

SMALL_UM = 1000.0
"""An image whose sides are at most this long holds too few nuclei to be judged alone."""

MOST_POOLED = 16

StainSource = str
"""``auto``, ``project`` or ``default``; see :func:`entry_stains`."""


def entry_stains(entry: ImageEntry, source: StainSource) -> StainVectors | None:
    """Return the stains that the project or the option gives; None if they are to be estimated.

    ``"project"`` takes those of the project, ``"default"`` QuPath's default H-DAB, ``"auto"`` those of the project if a
    person adjusted them.

    Raises
    ------
    ProjectError
        If those of the project are asked for and there are none.
    """
    if source == "default":
        return H_DAB
    if source == "project" and entry.stains is None:
        raise ProjectError(
            f"image {entry.name!r} has no stains",
            remedy="set its type to Brightfield (H-DAB) in QuPath, or --stains auto",
        )
    if entry.stains is not None and (source == "project" or not is_default_stains(entry.stains)):
        return to_stain_vectors(entry.stains)
    return None


class Surveys:
    """Looks at the slides of a project when they are needed.

    Parameters
    ----------
    entries
        The images that are analysed.
    stains
        Where stains come from; see :func:`entry_stains`.
    mpp
        Pixel size in µm that overrides the project's.
    reference
        The stains that are expected; see :func:`pyhisto.nuclei.survey.survey_slide`.
    nuclei
        Look for the size of the nuclei, too.
    memory
        Knows slides that were looked at before; each is looked at anew if None.

    Attributes
    ----------
    memory
        The same; one that knows nothing if it was None.
    """

    def __init__(
        self,
        entries: Sequence[ImageEntry],
        stains: StainSource,
        mpp: float | None = None,
        *,
        reference: StainVectors | None = None,
        nuclei: bool = True,
        memory: SlideMemory | None = None,
    ) -> None:
        self.memory = memory or SlideMemory()
        self._reference = reference
        self._nuclei = nuclei
        self._stains = stains
        self._mpp = mpp
        self._lock = threading.RLock()  # several threads may analyse images
        self._groups: dict[tuple[float, str], list[ImageEntry]] = {}
        self._found: dict[tuple[float, str], Survey] = {}
        self._means: dict[tuple[str, float, str], npt.NDArray[np.float64]] = {}
        for entry in entries:
            kind = self._kind(entry)
            if kind is not None:
                self._groups.setdefault(kind, []).append(entry)

    def of(self, entry: ImageEntry, slide: Slide, stains: StainVectors | None) -> Survey:
        """Return what an image shows, with what others like it show if it is small; `slide` is open."""
        kind = self._kind(entry)
        if kind is None or len(self._groups[kind]) < 2:
            return self._survey(slide, stains)
        with self._lock:
            if kind not in self._found:
                self._found[kind] = self._pooled(kind, entry, slide, stains)
            return self._found[kind]

    def _pooled(self, kind: tuple[float, str], entry: ImageEntry, slide: Slide, stains: StainVectors | None) -> Survey:
        """Return what images of a kind show together, the same whichever of them is the first to ask."""
        first = self._groups[kind][0]
        surveys = []
        for other in (first, *self._others(kind, first)):
            if other.id == entry.id:
                surveys.append(self._survey(slide, stains))
                continue
            try:
                with open_slide(other, self._mpp) as opened:
                    surveys.append(self._survey(opened, entry_stains(other, self._stains)))
            except PyhistoError:  # that image will say so when its turn comes
                continue
        return pool_surveys(surveys or [self._survey(slide, stains)])

    def nuclei_like(self, entry: ImageEntry, bundle: Bundle, lens: Lens) -> npt.NDArray[np.float64]:
        """Return the mean DAB OD of the nuclei of other small images of the kind of this one, float64 (n,)."""
        kind = self._kind(entry)
        if kind is None or len(self._groups[kind]) < 2:
            return np.empty(0)
        key = (bundle.sha256, *kind)
        with self._lock:
            if key not in self._means:
                self._means[key] = self._means_of(kind, bundle, lens)
            return self._means[key]

    def _means_of(self, kind: tuple[float, str], bundle: Bundle, lens: Lens) -> npt.NDArray[np.float64]:
        means = [np.empty(0)]
        for other in self._others(kind, None):
            try:
                with open_slide(other, self._mpp) as opened:
                    stains = entry_stains(other, self._stains) or self.of(other, opened, None).stains.stains
                    cells = predict_cells(opened, bundle, stains=stains, lens=lens, cell_expansion_um=0)
            except PyhistoError:
                continue
            means.append(dab_means(cells))
        return np.concatenate(means)

    def _survey(self, slide: Slide, stains: StainVectors | None) -> Survey:
        return self.memory.survey(slide, stains=stains, reference=self._reference, nuclei=self._nuclei)

    def _others(self, kind: tuple[float, str], entry: ImageEntry | None) -> list[ImageEntry]:
        others = [other for other in self._groups[kind] if entry is None or other.id != entry.id]
        chosen = np.linspace(0, len(others) - 1, min(MOST_POOLED, len(others))).round().astype(int)
        return [others[int(i)] for i in chosen]

    def _kind(self, entry: ImageEntry) -> tuple[float, str] | None:
        """Return what small images must share to be looked at together; None for a large image."""
        try:
            mpp = self._mpp or max(entry.mpp or (PIXEL_UM, PIXEL_UM))
            if max(entry.size()) * mpp > SMALL_UM:
                return None
            return float(f"{mpp:.3g}"), entry.stored_slide_path.suffix.lower()
        except PyhistoError:  # that image will say so when its turn comes
            return None
