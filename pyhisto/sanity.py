"""Does what a network says of a slide make sense? Looked at before anything is written.

Each check is made for one kind of failure that is seen in practice, and has a limit that sane results stay clear of:
what it finds deserves a person's look.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import shapely

from pyhisto.bundle.spec import ModelSpec
from pyhisto.nuclei.adapt import Adaptation
from pyhisto.stain import H_DAB, H_E, StainVectors, optical_density

if TYPE_CHECKING:
    from pyhisto.inference.stream import PredictedWindow

__all__ = [
    "ALL_POSITIVE",
    "CONSTANT",
    "GLASS",
    "NOT_FINITE",
    "SCALE",
    "STAIN",
    "Finding",
    "SanityGate",
    "unexplained_density",
]

ALL_POSITIVE, CONSTANT, GLASS = "all tissue positive", "constant output", "glass predicted"
NOT_FINITE, SCALE, STAIN = "output not finite", "wrong scale", "stain far from training"

STEP = 4
"""Every how manieth pixel of a window is looked at, in x and y."""

LEAST_PIXELS = 500
"""Pixels that must have been looked at before anything is said about them."""

GLASS_OD = 0.03
"""Mean optical density up to which a pixel is glass: 7 % darker than white."""

ALL_SHARE = 0.98
"""Share of the tissue in one class from which a result is doubtful."""

ALL_LEAST_MM2 = 1.0
"""Tissue of which that is said; a core or a field may well be all tumour."""

NUCLEI_SHARE = 0.75
"""Share of the tissue in nuclei from which a result is doubtful; in lymph nodes it is about a half."""

GLASS_SHARE = 0.5
"""Share of a class's area that may lie on glass; ducts and fat between tumour stay below."""

CONSTANT_LOGIT = 0.25
"""The logits of 96 % of the tissue lie closer together than this where a network does not look at the image."""

CONSTANT_SHARE = 0.96

SCALE_RATIO = 1.8
"""Diameters of nuclei that differ by more are another pixel size: 20x taken for 40x makes 2."""

NUCLEUS_UM = (2.5, 30.0)
"""Median diameters of nuclei outside of this are of no nuclei, µm."""

LEAST_NUCLEI = 100

SLIDE_UM = (0.05, 10.0)
"""Pixel sizes of slides outside of this are hardly right, µm."""

COARSER = 2.0
"""How much coarser than the network's pixels those of the slide may be."""

STRETCHED = 1.2
"""How much wider than high a slide's pixels may be."""

FAR_ANGLE_DEG = 20.0
FAR_STRENGTH = 2.5
OTHER_STAIN = 0.7
"""Another pair of stains leaves this share, or less, of the density unexplained that those of the training leave."""

LEAST_UNEXPLAINED = 0.05
"""Share of the density that the stains of the training must leave unexplained before others are thought of."""

MOST_COLOURS = 100_000
LEAST_COLOURS = 200

STAINED_OD = 0.3
"""Sum of the optical densities of a pixel whose colour says something."""

POSITIVE_CLASS = "Tumor"
PALE = ("adipose", "fat", "lumen", "glass", "background", "mucin", "vessel")
"""Words in the names of classes that are pale or empty by right."""

_LOGITS = np.linspace(-30, 30, 1201)


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be.

    Attributes
    ----------
    code
        Which check found it, such as :data:`CONSTANT`.
    sentence
        What was found, in words and numbers.
    """

    code: str
    sentence: str


class SanityGate:
    """Collects what a network says of a slide, window by window, and judges it; give it to a prediction as observer.

    Parameters
    ----------
    spec
        The model's description.
    adaptation
        What was found out about the slide; see :func:`pyhisto.nuclei.adapt.adapt`.
    slide_mpp
        Pixel size of the slide, µm, (x, y).
    white
        Colour of its glass.
    whole
        Whether the region is all of the tissue, and not what a person outlined, which may be all tumour.
    size_known
        Whether a person said how large the nuclei are, or that it does not matter; nothing is said about it then.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        adaptation: Adaptation | None = None,
        slide_mpp: tuple[float, float] | None = None,
        white: tuple[float, float, float] = (255.0, 255.0, 255.0),
        whole: bool = True,
        size_known: bool = False,
    ) -> None:
        self._spec = spec
        self._adaptation = adaptation or Adaptation()
        self._slide_mpp = slide_mpp
        self._white = white
        self._whole = whole
        self._size_known = size_known
        self._names = _predicted_names(spec)
        self._pixels = self._tissue = self._broken = 0
        self._pixel_mm2 = 0.0
        self._predicted = np.zeros(len(self._names), dtype=np.int64)
        self._on_glass = np.zeros(len(self._names), dtype=np.int64)
        self._logits = np.zeros((len(spec.classes), len(_LOGITS) + 1), dtype=np.int64)
        self._density = np.zeros(2)  # sum of the mean optical density of tissue, and of its square
        self._colours = np.empty((0, 3), dtype=np.float32)
        self._every = STEP  # how manieth of the stained pixels is kept

    def __call__(self, window: PredictedWindow) -> None:
        """Take in a window."""
        rows, columns = window.own
        some = (
            slice(rows.start, rows.stop, STEP),
            slice(columns.start, columns.stop, STEP),
        )
        wanted = window.wanted[some]
        if not wanted.any():
            return
        self._pixel_mm2 = (window.frame.mpp * STEP) ** 2 / 1e6
        probability = window.probability[:, *some][:, wanted]  # (classes, n)
        finite = np.asarray(np.isfinite(probability).all(axis=0))
        self._pixels += finite.size
        self._broken += int((~finite).sum())
        shares = probability[:, finite].astype(np.float64)
        density = optical_density(window.rgb[some][wanted][finite][:, None], self._white)[:, 0]
        mean = density.mean(axis=1, dtype=np.float64)
        glass = mean < GLASS_OD
        for number, inside in enumerate(self._inside(shares)):
            self._predicted[number] += int(inside.sum())
            self._on_glass[number] += int((inside & glass).sum())
        self._tissue += int((~glass).sum())
        self._density += np.array([mean[~glass].sum(), (mean[~glass] ** 2).sum()])
        for number, channel in enumerate(_logits(shares[:, ~glass])):
            self._logits[number] += np.bincount(np.searchsorted(_LOGITS, channel), minlength=len(_LOGITS) + 1)
        self._keep_colours(density[density.sum(axis=1) > STAINED_OD])

    def _keep_colours(self, density: npt.NDArray[np.float32]) -> None:
        """Keep the optical densities (n, 3) of some of the stained pixels, evenly over the slide."""
        self._colours = np.concatenate([self._colours, density[:: self._every]])
        while len(self._colours) > MOST_COLOURS:
            self._colours = self._colours[::2]
            self._every *= 2

    def _inside(self, probability: npt.NDArray[np.float64]) -> list[npt.NDArray[np.bool_]]:
        """Return which pixels, of probabilities (classes, n), are predicted to be of what :attr:`_names` says."""
        threshold = float(self._spec.postprocessing.get("threshold", 0.5))
        if self._spec.kind == "cell_detection":
            return [np.asarray(probability[1::2].sum(axis=0) > threshold)]
        best = probability[1:].argmax(axis=0)
        return [(best == number) & (channel > threshold) for number, channel in enumerate(probability[1:])]

    # ------------------------------------------------------------------ what follows
    def verdict(self, objects: gpd.GeoDataFrame | None = None) -> list[Finding]:
        """Return what is not as it should be; nothing for a sane result.

        Parameters
        ----------
        objects
            Cells that were made of the prediction, level-0 px of the slide, for the size of their nuclei.
        """
        sentences = {
            NOT_FINITE: self._not_finite(),
            CONSTANT: self._constant(),
            ALL_POSITIVE: self._all_positive(),
            GLASS: self._glass(),
            SCALE: self._scale(objects),
            STAIN: self._stain(),
        }
        return [Finding(code, sentence) for code, sentence in sentences.items() if sentence]

    def measured(self) -> dict[str, Any]:
        """Return the numbers behind the verdict, as JSON types; empty if no window was seen."""
        if not self._pixels:
            return {}
        return {
            "tissue_mm2": round(self._tissue * self._pixel_mm2, 4),
            "predicted_share": {name: round(n / self._pixels, 4) for name, n, _ in self._areas()},
            "on_glass": {name: round(glass / max(1, n), 4) for name, n, glass in self._areas()},
        }

    def _areas(self) -> list[tuple[str, int, int]]:
        """Return the name of what can be predicted, and how many pixels are, and are on glass."""
        return list(zip(self._names, self._predicted.tolist(), self._on_glass.tolist(), strict=True))

    def _not_finite(self) -> str:
        if not self._broken:
            return ""
        return (
            f"the network gives no number for {self._broken / self._pixels:.1%} of the pixels; "
            "try --precision float32, or train it again"
        )

    def _constant(self) -> str:
        if self._tissue < LEAST_PIXELS:
            return ""
        mean = self._density[0] / self._tissue
        if self._density[1] / self._tissue - mean**2 < 0.01**2:  # an image without anything in it
            return ""
        widths = [_spread(counts) for counts in self._logits]
        if max(widths) > CONSTANT_LOGIT:
            return ""
        return (
            f"the network says the same of {CONSTANT_SHARE:.0%} of the tissue, whatever it shows; "
            "it may not have been trained, or its input may be prepared in another way"
        )

    def _all_positive(self) -> str:
        area = self._tissue * self._pixel_mm2
        if self._tissue < LEAST_PIXELS:
            return ""
        if self._spec.kind == "cell_detection":
            names, limit = self._names, NUCLEI_SHARE
        else:
            only = len(self._names) == 1
            positive = [n for n in self._names if (only and n != "Tissue") or n.split(":")[0] == POSITIVE_CLASS]
            names, limit = (positive if self._whole and area >= ALL_LEAST_MM2 else []), ALL_SHARE
        for name, predicted, on_glass in self._areas():
            share = (predicted - on_glass) / self._tissue
            if name in names and share >= limit:
                return f"{share:.1%} of {area:.2f} mm² of tissue are {name}; hardly any slide is like that"
        return ""

    def _glass(self) -> str:
        for name, predicted, on_glass in self._areas():
            share = on_glass / max(1, predicted)
            if predicted >= LEAST_PIXELS and share >= GLASS_SHARE and not any(word in name.lower() for word in PALE):
                return f"{share:.0%} of what is called {name} is empty glass"
        return ""

    def _scale(self, objects: gpd.GeoDataFrame | None) -> str:
        mpp, network = self._slide_mpp, self._spec.mpp * self._adaptation.lens.size
        if mpp is not None:
            if not all(SLIDE_UM[0] <= side <= SLIDE_UM[1] for side in mpp) or max(mpp) > STRETCHED * min(mpp):
                return f"a pixel of the slide is said to be {mpp[0]:g} x {mpp[1]:g} µm; give the right size with --mpp"
            if max(mpp) > COARSER * network:
                return (
                    f"a pixel of the slide is {max(mpp):g} µm wide, the network was trained on {self._spec.mpp:g} µm; "
                    "what it needs to see is not there, or --mpp is wrong"
                )
        trained = self._spec.nucleus_diameter_um
        if self._size_known:
            return ""
        seen = self._adaptation.measured.get("nucleus_diameter_um")
        if trained and seen and not 1 / SCALE_RATIO <= seen / trained <= SCALE_RATIO:
            return (
                f"nuclei are {seen:.1f} µm wide at the declared pixel size, {trained:.1f} µm on the training slides; "
                "give the right pixel size with --mpp, or the size of the nuclei with --nucleus-size-um"
            )
        found = math.nan if objects is None or mpp is None else _median_diameter(objects, mpp)
        if math.isnan(found):
            return ""
        known = trained is not None and 1 / SCALE_RATIO <= found / self._adaptation.lens.size / trained <= SCALE_RATIO
        if known or (trained is None and NUCLEUS_UM[0] <= found <= NUCLEUS_UM[1]):
            return ""
        usual = f"{trained:.1f} µm" if trained is not None else f"{NUCLEUS_UM[0]:g} to {NUCLEUS_UM[1]:g} µm"
        return f"the nuclei that were found are {found:.1f} µm wide, expected {usual}; is --mpp right?"

    def _stain(self) -> str:
        reference, measured = self._spec.stains, self._adaptation.measured
        if reference is None:
            return ""
        other = H_E if "DAB" in reference.stains.names else H_DAB
        if len(self._colours) >= LEAST_COLOURS:
            own, others = (float(np.median(unexplained_density(self._colours, s))) for s in (reference.stains, other))
            if own >= LEAST_UNEXPLAINED and others <= OTHER_STAIN * own:
                return (
                    f"the slide looks stained with {' and '.join(other.names).lower()}, "
                    f"the model was trained on {' and '.join(reference.stains.names)}"
                )
        angle, strength = measured.get("stain_angle_deg") or 0.0, measured.get("stain_strength_ratio") or 1.0
        if self._adaptation.unmended and (angle > FAR_ANGLE_DEG or strength > FAR_STRENGTH):
            return (
                f"stains differ from those of the training slides by {angle:.0f}° and a factor of {strength:.1f} in "
                "strength, and are not adapted; try --stain-normalisation macenko"
            )
        return ""


def _predicted_names(spec: ModelSpec) -> list[str]:
    """Return what can be predicted: each tissue class, or nuclei."""
    if spec.kind == "cell_detection":
        return ["nuclei"]
    return [c.classification or c.name for c in spec.classes[1:]]


def _logits(probability: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the log odds of each class against all others, (classes, n), from -30 to 30."""
    rest = np.stack([np.delete(probability, number, axis=0).sum(axis=0) for number in range(len(probability))])
    tiny = 1e-13
    odds: npt.NDArray[np.float64] = np.log(np.maximum(probability, tiny) / np.maximum(rest, tiny))
    return odds


def _spread(counts: npt.NDArray[np.int64]) -> float:
    """Return how far apart the logits of the middle :data:`CONSTANT_SHARE` of a histogram are, at least."""
    total, half = counts.sum(), (1 - CONSTANT_SHARE) / 2
    reached = np.cumsum(counts)
    low = int(np.searchsorted(reached, half * total, side="right"))
    high = int(np.searchsorted(reached, (1 - half) * total))
    return max(0, high - low - 1) * float(_LOGITS[1] - _LOGITS[0])


def _median_diameter(objects: gpd.GeoDataFrame, mpp: tuple[float, float]) -> float:
    """Return the median diameter, µm, of circles as large as the nuclei; NaN if they are too few."""
    if len(objects) == 0:
        return math.nan
    is_cell = objects["object_type"].isin(["cell", "detection"])
    nuclei = objects["nucleus"].where(objects["nucleus"].notna(), objects["geometry"])[is_cell].to_numpy()
    if len(nuclei) < LEAST_NUCLEI:
        return math.nan
    return 2 * math.sqrt(float(np.median(shapely.area(nuclei))) * mpp[0] * mpp[1] / math.pi)


def unexplained_density(density: npt.NDArray[np.floating[Any]], stains: StainVectors) -> npt.NDArray[np.float64]:
    """Return which share of the optical density of pixels two stains cannot have made.

    Each pixel is taken apart into amounts of the two stains that are not negative (least squares, Lawson and Hanson
    1974, written out for two); what is left over is divided by its length.

    Parameters
    ----------
    density
        Optical density, shape (n, 3), no row all 0.
    stains
        The first two of these.

    Returns
    -------
    numpy.ndarray
        float64 (n,), 0 to 1.
    """
    vectors: Sequence[Any] = [np.asarray(vector) for vector in stains.vectors[:2]]
    od = np.asarray(density, dtype=np.float64)
    both, *_ = np.linalg.lstsq(np.stack(vectors, axis=1), od.T, rcond=None)
    alone = [np.clip(od @ v, 0, None)[:, None] * v for v in vectors]
    left = np.min([np.linalg.norm(od - part, axis=1) for part in alone], axis=0)
    inner = (both >= 0).all(axis=0)
    left[inner] = np.linalg.norm(od - both.T @ np.stack(vectors), axis=1)[inner]
    out: npt.NDArray[np.float64] = left / np.linalg.norm(od, axis=1)
    return out
