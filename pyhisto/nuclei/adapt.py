"""Showing a network the slides of another laboratory as if they were of its own.

A network that was trained in one laboratory loses little of what it knows in another, if nuclei come in the size and
stains in the colours and strengths that it was trained on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd

from pyhisto.bundle.spec import ModelSpec
from pyhisto.errors import ConfigError
from pyhisto.inference import Lens
from pyhisto.normalisation import normalise_macenko
from pyhisto.nuclei.auto import derive_dab_threshold
from pyhisto.nuclei.survey import Survey
from pyhisto.stain import StainReference, angle_between

__all__ = ["Adaptation", "Classify", "Normalisation", "View", "adapt", "dab_means", "with_classes"]

Normalisation = Literal["auto", "none", "macenko"]
Classify = Literal["auto", "network", "dab"]

PLAUSIBLE_RATIO = 1.25
"""Nuclei that differ by more from those of the training slides are another size, not another tumour.

What differs by more is brought to this ratio, not to 1: networks are trained at as many sizes, and what is measured
differs by a fifth between sets of images of one laboratory.
"""

BELIEVABLE_RATIO = 3.0
"""A pixel size is hardly ever wrong by more; what differs by more was not measured on nuclei."""

FOREIGN_ANGLE_DEG = 10.0
FOREIGN_STRENGTH = 1.6


@dataclass(frozen=True)
class View:
    """How networks see slides, and who decides what is positive.

    Attributes
    ----------
    nucleus_size_um
        ``"auto"`` brings nuclei to a size that the network knows where theirs is clearly another, ``"none"`` never
        does; a number is the median nucleus diameter of the slides, µm at the declared pixel size.
    stain_normalisation
        ``"macenko"`` gives tiles the stain colours and strengths of the training slides before the network sees them,
        ``"none"`` leaves them as they are; ``"auto"`` does the former where the slide has the same two stains, but in
        clearly other colours or strengths, and never makes DAB or eosin stronger.
    classify
        ``"network"`` takes positive and negative from the network, ``"dab"`` from the mean DAB OD of the nucleus with a
        cut that the slide's own nuclei give; ``"auto"`` takes the latter where the bundle has a calibrated cut, or
        where the network sees stains unlike those of the training slides and the nuclei fall into two groups.

    Raises
    ------
    ConfigError
        If a value is not one of these.
    """

    nucleus_size_um: float | str = "auto"
    stain_normalisation: Normalisation = "auto"
    classify: Classify = "auto"

    def __post_init__(self) -> None:
        size = self.nucleus_size_um
        if isinstance(size, str) and size not in ("auto", "none"):
            raise ConfigError(f"nucleus size {size!r}", expected="auto, none or a number of µm")
        if not isinstance(size, str) and not 1 <= size <= 100:
            raise ConfigError(f"nucleus size {size:g} µm", expected="1 to 100")
        for value, kind in ((self.stain_normalisation, Normalisation), (self.classify, Classify)):
            if value not in get_args(kind):
                raise ConfigError(f"{value!r}", expected=f"one of {', '.join(get_args(kind))}")


@dataclass(frozen=True)
class Adaptation:
    """What follows for one model and one slide.

    Attributes
    ----------
    lens
        How the network sees the slide.
    foreign
        In what the slide is unlike the training slides; empty if in nothing.
    measured
        The numbers behind it, for the run record.
    notes
        What a person should look at.
    """

    lens: Lens = field(default_factory=Lens)
    foreign: tuple[str, ...] = ()
    measured: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def unmended(self) -> tuple[str, ...]:
        """In what the network still sees the slide unlike the training slides: stains that the lens leaves alone."""
        return () if self.lens.colours is not None else tuple(what for what in self.foreign if what.endswith("stains"))


def adapt(spec: ModelSpec, survey: Survey, view: View) -> Adaptation:
    """Compare a slide with the training slides of a model.

    Parameters
    ----------
    spec
        The model's description.
    survey
        What the slide shows.
    view
        What is wanted.

    Raises
    ------
    ConfigError
        If the size of the nuclei or Macenko's normalisation is asked for and the model does not say what it was trained
        on.
    """
    ratio, notes = _size_ratio(spec, survey, view)
    foreign = []
    measured: dict[str, Any] = {
        "nucleus_diameter_um": _number(survey.size.diameter_um),
        "nuclei": survey.size.nuclei,
        "trained_nucleus_diameter_um": spec.nucleus_diameter_um,
        "network_mpp": round(spec.mpp * ratio, 4),
    }
    if ratio != 1:
        foreign.append("size of nuclei")
    normalise = asked = view.stain_normalisation == "macenko"
    if spec.stains is not None:
        angle, strength = _stain_distance(survey.stains, spec.stains)
        measured |= {"stain_angle_deg": _number(angle), "stain_strength_ratio": _number(strength)}
        if angle > FOREIGN_ANGLE_DEG:
            foreign.append("colour of stains")
        if strength > FOREIGN_STRENGTH:
            foreign.append("strength of stains")
        comparable = survey.stains.stains.names == spec.stains.stains.names and len(survey.stains.stains.names) == 2
        unlike = angle > FOREIGN_ANGLE_DEG or strength > FOREIGN_STRENGTH
        normalise |= view.stain_normalisation == "auto" and comparable and unlike
    measured["stain_normalisation"] = "macenko" if normalise else "none"
    lens = Lens(ratio, _colours(spec, survey, whole=asked) if normalise else None)
    return Adaptation(lens, tuple(foreign), measured, notes)


def _size_ratio(spec: ModelSpec, survey: Survey, view: View) -> tuple[float, tuple[str, ...]]:
    """Return nucleus size here over that of the training slides, 1 where nothing is to be done, and notes."""
    trained, wanted, found = spec.nucleus_diameter_um, view.nucleus_size_um, survey.size
    if wanted == "none":
        return 1.0, ()
    if trained is None:
        if wanted == "auto":
            return 1.0, ()
        raise ConfigError(
            f"nucleus size of {wanted} µm for a model that does not say how large nuclei were on its training slides",
            remedy="train or calibrate it again, or give --mpp",
        )
    if not isinstance(wanted, str):
        return wanted / trained, ()
    ratio = found.diameter_um / trained
    if math.isnan(ratio):
        return 1.0, (
            f"only {found.nuclei} nuclei in the sample: their size was not compared with the training slides'",
        )
    if 1 / PLAUSIBLE_RATIO <= ratio <= PLAUSIBLE_RATIO:
        return 1.0, ()
    if not survey.agrees:
        return 1.0, (
            f"nuclei are {min(survey.sizes):.1f} to {max(survey.sizes):.1f} µm wide on the slides looked at, "
            f"which do not agree: nothing done; give their size (--nucleus-size-um) if it is not {trained:.1f} µm",
        )
    what = f"nuclei are {found.diameter_um:.1f} µm wide at the declared µm/px, on the training slides {trained:.1f} µm"
    if not 1 / BELIEVABLE_RATIO <= ratio <= BELIEVABLE_RATIO:
        return 1.0, (f"{what}; too far to be believed, nothing done: check the pixel size (--mpp)",)
    size = ratio / PLAUSIBLE_RATIO if ratio > 1 else ratio * PLAUSIBLE_RATIO
    return size, (
        f"{what}: the network sees them at a size it knows, scaled by {1 / size:.2f}. If the pixel size is wrong by "
        f"{ratio:.2f}, give --mpp; --nucleus-size-um none switches this off",
    )


def _stain_distance(found: StainReference, trained: StainReference) -> tuple[float, float]:
    """Return the greatest angle between stains that show, and the greatest ratio of strengths that can be compared."""
    shown, comparable = _shown(found, trained), _comparable(found, trained)
    angles = [angle_between(found.stains.vectors[i], trained.stains.vectors[i]) for i in range(2) if shown[i]]
    ratios = [abs(math.log(found.p99[i] / trained.p99[i])) for i in range(2) if comparable[i]]
    return max(angles, default=0.0), math.exp(max(ratios, default=0.0))


def _shown(found: StainReference, trained: StainReference) -> list[bool]:
    """Return whether each of two stains shows on both sides."""
    return [here and there for here, there in zip(found.shown, trained.shown, strict=True)]


def _comparable(found: StainReference, trained: StainReference) -> list[bool]:
    """Return whether a difference in the strength of each of two stains would be one of staining.

    The first colours all tissue. Less of the second, DAB or eosin, is what a slide with fewer positive cells has as
    well: making it stronger would make such cells up.
    """
    first, second = _shown(found, trained)
    return [first, second and found.p99[1] >= trained.p99[1]]


@dataclass(frozen=True)
class _Recolour:
    """Gives tiles of a slide the stain colours and strengths of the training slides; says in its repr which."""

    found: StainReference
    trained: StainReference

    def __call__(self, rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        return normalise_macenko(
            rgb,
            source=self.found.stains,
            target=self.trained.stains,
            target_p99=self.trained.p99,
            source_p99=self.found.p99,
        )


def _colours(spec: ModelSpec, survey: Survey, *, whole: bool) -> _Recolour:
    """Return what gives a slide the training slides' colours; if not `whole`, only as far as these can be compared."""
    found, trained = survey.stains, spec.stains
    if trained is None:
        raise ConfigError(
            "Macenko normalisation for a model that does not say how its training slides were stained",
            remedy="--stain-normalisation none",
        )
    if whole:
        return _Recolour(found, trained)
    sides = zip(found.stains.vectors, trained.stains.vectors, _shown(found, trained), strict=True)
    stains = replace(found.stains, vectors=tuple(own if shown else known for own, known, shown in sides))
    strengths = zip(found.p99, trained.p99, _comparable(found, trained), strict=True)
    low, high = (own if comparable else known for own, known, comparable in strengths)
    return _Recolour(StainReference(stains, (low, high)), trained)


def dab_means(objects: gpd.GeoDataFrame) -> npt.NDArray[np.float64]:
    """Return the mean DAB OD of each nucleus, float64 (n,); empty where it was not measured."""
    if "Nucleus: DAB OD mean" not in objects:
        return np.empty(0)
    return np.asarray(objects["Nucleus: DAB OD mean"].to_numpy(), dtype=np.float64)


def with_classes(
    objects: gpd.GeoDataFrame,
    spec: ModelSpec,
    view: View,
    foreign: tuple[str, ...],
    means: npt.NDArray[np.float64],
) -> tuple[gpd.GeoDataFrame, dict[str, Any]]:
    """Let DAB decide what is positive where that is wanted.

    Parameters
    ----------
    objects
        Cells of a network with their measurements. Those of classes that end in ``Positive`` or ``Negative`` are
        decided; all others stay.
    spec, view
        The model's description, and what is wanted.
    foreign
        In what the network sees the slide unlike the training slides; see :attr:`Adaptation.unmended`.
    means
        Mean DAB OD of the nuclei that the cut is derived from: of this slide, or of several small ones.

    Returns
    -------
    objects, decision
        The objects, and who decided with which cut.
    """
    calibrated = spec.postprocessing.get("dab_threshold")
    mean = dab_means(objects)
    decided = objects["classification"].astype(str).str.endswith(("Positive", "Negative")).to_numpy(dtype=bool)
    wanted = view.classify == "dab" or (view.classify == "auto" and (calibrated is not None or bool(foreign)))
    if not wanted or not decided.any() or len(mean) == 0:
        return objects, {"classified_by": "network"}
    cut, reason = (calibrated, "") if calibrated is not None else derive_dab_threshold(means)
    if reason and view.classify == "auto":
        return objects, {"classified_by": "network", "reason": reason}
    base = objects["classification"].astype(str).str.replace("(Positive|Negative)$", "", regex=True)
    new = base + np.where(mean >= cut, "Positive", "Negative")
    names = objects["classification"].astype(object).where(~decided, new)
    out = objects.copy()
    if "class_probability" in out:
        out.loc[names != objects["classification"].astype(object), "class_probability"] = np.nan
    out["classification"] = pd.Categorical(names)
    decision = {"classified_by": "calibrated DAB" if calibrated is not None else "DAB", "dab_threshold": round(cut, 4)}
    return out, decision | ({"reason": reason} if reason else {})


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 3)
