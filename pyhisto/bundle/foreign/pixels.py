"""From tiles as they are read to what foreign networks want to see."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from pyhisto.errors import BundleError

__all__ = ["MonaiPixels", "Pixels", "WsinferPixels", "monai_pixels", "wsinfer_pixels"]

Rgb: TypeAlias = npt.NDArray[np.uint8]
Planes: TypeAlias = npt.NDArray[np.float32]


class Pixels(Protocol):
    """Turns a tile, RGB uint8 (H, W, 3), into the network's input, float32 (3, h, w)."""

    def __call__(self, rgb: Rgb) -> Planes:
        """Return the network's input."""
        ...


@dataclass(frozen=True)
class WsinferPixels:
    """WSInfer's transforms, as torchvision computes them on Pillow images.

    Attributes
    ----------
    sizes
        (height, width) that the tile is resized to, one after the other, with Pillow's antialiased bilinear filter.
    scalings
        (mean, standard deviation) of the channels, one pair a ``Normalize``.
    """

    sizes: tuple[tuple[int, int], ...]
    scalings: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...]

    def __call__(self, rgb: Rgb) -> Planes:
        """Return the network's input."""
        image = Image.fromarray(rgb)
        for height, width in self.sizes:
            if image.size != (width, height):
                image = image.resize((width, height), Image.Resampling.BILINEAR)
        planes = np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1)).astype(np.float32) / np.float32(255)
        for mean, std in self.scalings:
            shift, scale = (np.asarray(values, dtype=np.float32)[:, None, None] for values in (mean, std))
            planes = (planes - shift) / scale
        return planes


def wsinfer_pixels(transforms: Sequence[Mapping[str, Any]], patch_size: int) -> WsinferPixels:
    """Return the transforms of a WSInfer configuration.

    Parameters
    ----------
    transforms
        ``Resize``, ``ToTensor`` and ``Normalize`` in this order, each ``{"name": ..., "arguments": {...}}``.
    patch_size
        Side of a tile, px; what a configuration without ``Resize`` gives the network.

    Raises
    ------
    BundleError
        If a transform or an argument is another one, or out of order.
    """
    order = ("Resize", "ToTensor", "Normalize")
    names = [str(step.get("name")) for step in transforms]
    if set(names) - set(order) or names != sorted(names, key=order.index) or names.count("ToTensor") != 1:
        raise BundleError(f"WSInfer transforms {', '.join(names) or 'none'}", expected="Resize, ToTensor, Normalize")
    sizes, scalings = [], []
    for name, step in zip(names, transforms, strict=True):
        arguments = step.get("arguments") or {}
        try:
            if name == "Resize":
                sizes.append(_resize(arguments))
            elif name == "Normalize":
                scalings.append(_normalise(arguments))
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f"WSInfer transform {name} with {arguments} is not known ({error!r})") from error
    return WsinferPixels(tuple(sizes) or ((patch_size, patch_size),), tuple(scalings))


def _resize(arguments: Mapping[str, Any]) -> tuple[int, int]:
    """Return (height, width) that torchvision's ``Resize`` gives a square tile."""
    if arguments.get("interpolation", "bilinear") not in ("bilinear", 2):
        raise ValueError(f"interpolation {arguments['interpolation']!r}")
    if set(arguments) - {"size", "interpolation", "antialias"}:  # Pillow antialiases whatever is asked for
        raise ValueError(", ".join(sorted(arguments)))
    size = arguments["size"]
    sides = [int(side) for side in (size if isinstance(size, list) else [size])]
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise ValueError(f"size {size}")
    return sides[0], sides[-1]


def _normalise(arguments: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    mean, std = (tuple(float(value) for value in arguments[key]) for key in ("mean", "std"))
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0 or set(arguments) - {"mean", "std", "inplace"}:
        raise ValueError("three means and three positive standard deviations")
    return mean, std


IGNORED = frozenset(
    {
        *("LoadImage", "EnsureChannelFirst", "AsChannelFirst", "AddChannel"),
        *("CastToType", "EnsureType", "ToTensor", "Resize"),
    }
)
"""MONAI's transforms that change no value of a tile that was read at the size of the network's input."""

SCALINGS = frozenset({"ScaleIntensityRange", "ScaleIntensity", "NormalizeIntensity"})
"""MONAI's transforms that change values."""


@dataclass(frozen=True)
class MonaiPixels:
    """MONAI's own transforms, one tile after the other.

    Attributes
    ----------
    steps
        Callables on float32 (3, H, W).
    by_tile
        Whether a step depends on the contents of the tile, such as its least and greatest value.
    size
        Side to which a tile is resized before, with Pillow's antialiased bilinear filter; None takes it as it is.
    """

    steps: tuple[Callable[[Any], Any], ...]
    by_tile: bool
    size: int | None = None

    def __call__(self, rgb: Rgb) -> Planes:
        """Return the network's input."""
        if self.size is not None and rgb.shape[:2] != (self.size, self.size):
            rgb = np.asarray(Image.fromarray(rgb).resize((self.size, self.size), Image.Resampling.BILINEAR))
        planes: Any = np.ascontiguousarray(rgb.transpose(2, 0, 1)).astype(np.float32)
        for step in self.steps:
            planes = step(planes)
        return np.ascontiguousarray(np.asarray(planes), dtype=np.float32)


def monai_pixels(steps: Sequence[tuple[str, Mapping[str, Any]]]) -> MonaiPixels:
    """Return the preprocessing of a MONAI bundle.

    Parameters
    ----------
    steps
        (name, arguments) of each transform, without the ``d`` of dictionary transforms and without ``keys``.

    Raises
    ------
    BundleError
        If a transform is not known, or does not take its arguments.
    """
    from monai import transforms

    found, by_tile = [], False
    for name, arguments in steps:
        if name in IGNORED:
            continue
        if name not in SCALINGS:
            raise BundleError(
                f"MONAI preprocessing with {name}", expected=f"of {', '.join(sorted(SCALINGS))} and what loads an image"
            )
        try:
            found.append(getattr(transforms, name)(**arguments))
        except (TypeError, ValueError) as error:
            raise BundleError(f"MONAI preprocessing {name} with {dict(arguments)} ({error})") from error
        given = {key for key, value in arguments.items() if value is not None}
        fixed = name == "ScaleIntensityRange" or {"subtrahend", "divisor"} <= given or "factor" in given
        by_tile |= not fixed
    return MonaiPixels(tuple(found), by_tile)
