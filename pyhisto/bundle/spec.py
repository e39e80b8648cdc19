"""What a trained model is, in words and numbers: everything that inference needs to know besides the weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pyhisto.errors import BundleError, ConfigError
from pyhisto.heatmap import HEAT_MEAN, HEAT_STD
from pyhisto.stain import StainReference, StainVectors

__all__ = ["KINDS", "CascadeSpec", "ModelClass", "ModelSpec", "region_classes"]

KINDS = ("tissue_segmentation", "cell_detection", "tile_classification", "nucleus_segmentation")
"""What a model does; a command refuses a bundle of another kind."""


@dataclass(frozen=True)
class ModelClass:
    """One class of the output.

    Attributes
    ----------
    name
        What it stands for, such as ``"positive nucleus"``.
    classification
        QuPath class of the objects made from it, or None where it makes none.
    color
        RGB, 0 to 255, or None.
    """

    name: str
    classification: str | None = None
    color: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class CascadeSpec:
    """The first stage of a coarse-to-fine model: a network that classifies patches, whose heatmap the second one sees.

    Attributes
    ----------
    detector
        Name of the network as in :func:`pyhisto.models.cascade.build_detector`.
    channels
        Of its layers, where it is ``"cnn"``.
    mpp, patch_size
        Of the patches: µm/px and side in px. The pixel size of the model is a whole multiple of `mpp`.
    propose
        Whether the second network, which sees the slide at low magnification, says first where patches are read.
    proposal_threshold, proposal_margin_um
        Probability of all classes but background together that proposes a place, and how far around it is read, µm.
    """

    detector: str
    channels: tuple[int, ...]
    mpp: float
    patch_size: int
    propose: bool = True
    proposal_threshold: float = 0.1
    proposal_margin_um: float = 100.0


@dataclass(frozen=True)
class ModelSpec:
    """Everything that inference needs to know about a model.

    Attributes
    ----------
    kind
        One of :data:`KINDS`.
    architecture
        Name in :data:`pyhisto.models.MODELS`.
    classes
        The classes in order; 0 is background. Of a cell model 1 + 2k is the nucleus and 2 + 2k the membrane of its
        k-th cell class, and the nucleus names the class of the objects.
    mpp
        Pixel size of the tiles in µm.
    tile_size, overlap
        Tile side and the margin on each side that is predicted but not used, pixels at `mpp`.
    decoder_channels
        Channels of the decoder stages.
    channel_mean, channel_std
        Of RGB scaled to 0..1; the input is (rgb / 255 - mean) / std.
    regions
        Empty for a network with one softmax channel a class. Else the network has one sigmoid channel a region, and
        these are the class numbers that each region covers; see :func:`region_classes`.
    postprocessing
        Numbers that turn probabilities into objects, by name.
    nucleus_diameter_um
        Median diameter of the nuclei on the training slides as :mod:`pyhisto.nuclei.scale` measures it, µm.
    stains
        Mean stains of the training slides and how strong they are.
    init
        What the training began from: ``name`` and ``sha256`` of a bundle; empty for a training from scratch.
    cascade
        The first stage of a coarse-to-fine model; all else then describes the second. None for a single network.
    """

    kind: str
    architecture: str
    classes: tuple[ModelClass, ...]
    mpp: float = 0.5
    tile_size: int = 256
    overlap: int = 32
    decoder_channels: tuple[int, ...] = (256, 128, 64, 32, 16)
    channel_mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    channel_std: tuple[float, ...] = (0.229, 0.224, 0.225)
    regions: tuple[tuple[int, ...], ...] = ()
    postprocessing: Mapping[str, float] = field(default_factory=dict)
    nucleus_diameter_um: float | None = None
    stains: StainReference | None = None
    init: Mapping[str, str] = field(default_factory=dict)
    cascade: CascadeSpec | None = None

    @property
    def out_channels(self) -> int:
        """Number of channels that the network gives: one a region, or else one a class."""
        return len(self.regions) or len(self.classes)

    @property
    def ratio(self) -> int:
        """Pixels of the patches along a side of a pixel of the model; 1 without a first stage."""
        return 1 if self.cascade is None else round(self.mpp / self.cascade.mpp)

    def stages(self, cascade: CascadeSpec) -> tuple[ModelSpec, ModelSpec]:
        """Return what each of two stages is by itself: the detector of patches, and what refines its heatmap.

        The second sees 3 + (classes - 1) channels: red, green, blue, and the heat of each class but background.
        """
        alone = dataclasses.replace(self, cascade=None)
        heat = len(self.classes) - 1
        detector = dataclasses.replace(
            alone,
            architecture=cascade.detector,
            regions=(),
            mpp=cascade.mpp,
            tile_size=cascade.patch_size,
            overlap=0,
        )
        refiner = dataclasses.replace(
            alone,
            channel_mean=(*self.channel_mean, *(HEAT_MEAN,) * heat),
            channel_std=(*self.channel_std, *(HEAT_STD,) * heat),
        )
        return detector, refiner

    @property
    def cell_classes(self) -> tuple[str | None, ...]:
        """QuPath classes of a cell model, in the order of their channels."""
        return tuple(c.classification for c in self.classes[1::2])

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelSpec:
        """Build from JSON.

        Raises
        ------
        BundleError
            If a key is unknown or missing, the kind is not one of :data:`KINDS`, or the regions do not fit the classes.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise BundleError(f"model description with unknown key {unknown[0]!r}", expected=", ".join(sorted(known)))
        try:
            listed: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
            listed["classes"] = tuple(ModelClass(**{**c, "color": _rgb(c.get("color"))}) for c in data["classes"])
            listed["regions"] = tuple(tuple(region) for region in data.get("regions", ()))
            listed["stains"] = _stains(data.get("stains"))
            listed["cascade"] = _cascade(data.get("cascade"))
            spec = cls(**listed)
        except (KeyError, TypeError, AttributeError, ConfigError) as error:
            raise BundleError(f"model description is incomplete ({error})") from error
        if spec.kind not in KINDS:
            raise BundleError(f"model of the kind {spec.kind!r}", expected=f"one of {', '.join(KINDS)}")
        if spec.kind == "cell_detection" and (len(spec.classes) < 3 or len(spec.classes) % 2 == 0):
            raise BundleError(
                f"cell model with {len(spec.classes)} classes", expected="background, and nucleus and membrane of each"
            )
        region_classes(spec.regions, len(spec.classes))
        return spec

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return dataclasses.asdict(self)


def region_classes(regions: tuple[tuple[int, ...], ...], classes: int) -> tuple[int, ...]:
    """Return the class that each region stands for: the one that no later region covers.

    A pixel is of the class of the last region that it lies in, as in nnU-Net's region-based training (Isensee 2021).

    Parameters
    ----------
    regions
        Class numbers that each region covers.
    classes
        Number of classes, background included.

    Raises
    ------
    BundleError
        If a region has not exactly one class of its own, or a class none.

    Examples
    --------
    >>> region_classes(((1, 2), (1,)), 3)
    (2, 1)
    """
    own: list[int] = []
    for number, region in enumerate(regions):
        later = {c for other in regions[number + 1 :] for c in other}
        left = sorted(set(region) - later)
        if len(left) != 1:
            raise BundleError(f"region {list(region)} with the classes {left} of its own", expected="one class")
        own += left
    if regions and sorted(own) != list(range(1, classes)):
        raise BundleError(f"regions for the classes {sorted(own)}", expected=f"1 to {classes - 1}, each once")
    return tuple(own)


def _rgb(color: Any) -> tuple[int, int, int] | None:
    return None if color is None else (int(color[0]), int(color[1]), int(color[2]))


def _stains(data: Any) -> StainReference | None:
    if data is None:
        return None
    inner = data["stains"]
    vectors = tuple(tuple(vector) for vector in inner["vectors"])
    stains = StainVectors(tuple(inner["names"]), vectors, tuple(inner["background"]))
    return StainReference(stains, tuple(data["p99"]))


def _cascade(data: Any) -> CascadeSpec | None:
    return None if data is None else CascadeSpec(**{**data, "channels": tuple(data["channels"])})
