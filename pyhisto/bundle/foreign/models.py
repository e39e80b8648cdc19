"""Foreign models behind one face: what they are, and what they make of tiles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from pyhisto.bundle.foreign.pixels import Pixels
from pyhisto.bundle.loaded import Bundle
from pyhisto.bundle.spec import ModelSpec
from pyhisto.errors import BundleError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Activation", "ForeignBundle", "HoverModel", "TileModel", "run_network"]

Activation: TypeAlias = Literal["softmax", "sigmoid"]
Rgb: TypeAlias = npt.NDArray[np.uint8]
Planes: TypeAlias = npt.NDArray[np.float32]


def run_network(network: nn.Module, planes: Planes, device: str) -> Any:
    """Return what a network gives for float32 (n, 3, h, w): a tensor, or tensors by name; float32 on the CPU.

    Raises
    ------
    BundleError
        If it fails on this input, or gives something else.
    """
    import torch

    from pyhisto.bundle.engine import out_of_memory

    try:
        with torch.inference_mode():
            found = network(torch.from_numpy(planes).to(device, memory_format=torch.channels_last))
    except (RuntimeError, ValueError, TypeError) as error:
        if out_of_memory(error):
            raise
        reason = str(error).strip().splitlines()[-1]
        raise BundleError(f"the network fails on an input of {planes.shape} ({reason})") from error
    if isinstance(found, dict):
        found = {str(name): value.float().cpu() for name, value in found.items()}
        return next(iter(found.values())) if len(found) == 1 else found
    if isinstance(found, list | tuple):  # with deep supervision the full resolution comes first
        found = found[0]
    if not isinstance(found, torch.Tensor):
        raise BundleError(f"the network gives a {type(found).__name__}", expected="one tensor")
    return found.float().cpu()


class ForeignBundle(Bundle):
    """A foreign model for ``tissue_segmentation``; used like a bundle of this project.

    It always runs in float32 on tiles of its own size: without a golden tile nothing else could be checked.

    Parameters
    ----------
    path, spec, sha256, network, device
        As for :class:`pyhisto.bundle.loaded.Bundle`.
    pixels
        Makes the network's input.
    activation
        ``"softmax"`` over the channels, or ``"sigmoid"`` of each.
    background
        Whether the network's first channel is background. Else the background is what no class claims; the channels of
        a sigmoid may overlap, so that the sum over the classes can exceed 1.
    """

    def __init__(
        self,
        path: Path,
        spec: ModelSpec,
        sha256: str,
        network: nn.Module,
        device: str,
        *,
        pixels: Pixels,
        activation: Activation,
        background: bool,
    ) -> None:
        super().__init__(path, spec, sha256, network, device)
        self._pixels = pixels
        self._activation = activation
        self._background = background

    def _predict(self, tiles: Rgb) -> Planes:
        """Return the class probabilities of tiles, all at once."""
        logits = run_network(self._model, np.stack([self._pixels(tile) for tile in tiles]), self.device)
        height, width = tiles.shape[1:3]
        channels = len(self.spec.classes) - (not self._background)
        if tuple(logits.shape) != (len(tiles), channels, height, width):
            raise BundleError(
                f"{self.path}: the network gives {tuple(logits.shape)} for {tiles.shape}",
                expected=f"{channels} channels of {height} x {width} px",
            )
        out = _activated(logits, self._activation)
        if self._background:
            return out
        left = 1 - (out.sum(axis=1) if self._activation == "softmax" else out.max(axis=1))
        return np.concatenate([left.clip(0, 1)[:, None], out], axis=1)

    @property
    def stride(self) -> int:
        """Side of the network's input, px: tiles have this size or a multiple of it."""
        return self.spec.tile_size

    @property
    def stream_tile(self) -> tuple[int, int]:
        """Tile side and overlap on each side, px."""
        return self.spec.tile_size, self.spec.overlap


class _Model:
    """What models that are no :class:`Bundle` have in common with it.

    Attributes
    ----------
    path, spec, sha256, device, engine, precision, notes
        As of :class:`pyhisto.bundle.loaded.Bundle`.
    """

    def __init__(self, path: Path, spec: ModelSpec, sha256: str, network: nn.Module, device: str) -> None:
        self.path = path
        self.spec = spec
        self.sha256 = sha256
        self.device = device
        self.engine, self.precision = "torch", "float32"
        self.notes: tuple[str, ...] = ()
        self._network = network.to(device).eval()


class TileModel(_Model):
    """A model for ``tile_classification``: one class for the whole of a tile.

    Parameters
    ----------
    path, spec, sha256, network, device
        As for :class:`pyhisto.bundle.loaded.Bundle`; the classes of the description have no background, and its tile
        is the patch of `tile_size` px at `mpp` µm/px.
    pixels
        Makes the network's input.
    activation
        ``"softmax"`` over the classes, or ``"sigmoid"`` of each.
    input_size
        Side of the network's input, px: pixels finer than that are not needed.
    """

    def __init__(
        self,
        path: Path,
        spec: ModelSpec,
        sha256: str,
        network: nn.Module,
        device: str,
        *,
        pixels: Pixels,
        activation: Activation,
        input_size: int,
    ) -> None:
        super().__init__(path, spec, sha256, network, device)
        self.pixels = pixels
        self.input_size = input_size
        self._activation = activation

    def classify(self, planes: Planes) -> Planes:
        """Return the class probabilities of tiles.

        Parameters
        ----------
        planes
            Network's input, float32 (n, 3, h, w), of :attr:`pixels`.

        Returns
        -------
        numpy.ndarray
            float32, shape (n, classes).

        Raises
        ------
        BundleError
            If the memory is too small for one tile, or the network gives something else.
        """
        from pyhisto.bundle.engine import in_parts

        return in_parts(self._classify, planes, np.concatenate, device=self.device, one="one tile")

    def _classify(self, planes: Planes) -> Planes:
        """Return the class probabilities of tiles, all at once."""
        logits = run_network(self._network, planes, self.device)
        classes = len(self.spec.classes)
        if isinstance(logits, dict) or logits.numel() != len(planes) * classes or logits.shape[0] != len(planes):
            shape = tuple(logits) if isinstance(logits, dict) else tuple(logits.shape)
            raise BundleError(
                f"{self.path}: the network gives {shape} for {len(planes)} tiles", expected=f"{classes} numbers a tile"
            )
        return _activated(logits.reshape(len(planes), classes), self._activation)


class HoverModel(_Model):
    """A HoVer-Net, for ``nucleus_segmentation``.

    Graham 2019, "HoVer-Net: simultaneous segmentation and classification of nuclei in multi-tissue histology images".

    Parameters
    ----------
    path, spec, sha256, network, device
        As for :class:`pyhisto.bundle.loaded.Bundle`. Class 0 is background, each other one a type of nucleus.
    pixels
        Makes the network's input.
    output_size
        Side of the middle part of a tile for which the network gives an output, px.
    typed
        Whether the network tells types of nuclei apart.
    """

    def __init__(
        self,
        path: Path,
        spec: ModelSpec,
        sha256: str,
        network: nn.Module,
        device: str,
        *,
        pixels: Pixels,
        output_size: int,
        typed: bool,
    ) -> None:
        super().__init__(path, spec, sha256, network, device)
        self.output_size = output_size
        self.typed = typed
        self._pixels = pixels

    @property
    def branches(self) -> dict[str, int]:
        """Number of channels of each branch."""
        types = {"type_prediction": len(self.spec.classes)} if self.typed else {}
        return {"nucleus_prediction": 2, "horizontal_vertical": 2} | types

    def predict(self, tiles: Rgb) -> dict[str, Planes]:
        """Return the branches of the network for tiles, RGB uint8 (n, tile_size, tile_size, 3).

        Returns
        -------
        dict
            ``"nucleus_prediction"`` logits (n, 2, s, s), ``"horizontal_vertical"`` (n, 2, s, s), and, if the network
            is typed, ``"type_prediction"`` logits (n, classes, s, s), with s = :attr:`output_size`; float32.

        Raises
        ------
        BundleError
            If the memory is too small for one tile, or the network gives something else.
        """
        from pyhisto.bundle.engine import in_parts

        return in_parts(self._predict, tiles, _joined, device=self.device, one="one tile")

    def _predict(self, tiles: Rgb) -> dict[str, Planes]:
        """Return the branches of the network for tiles, all at once."""
        found = run_network(self._network, np.stack([self._pixels(tile) for tile in tiles]), self.device)
        wanted = {name: (len(tiles), n, self.output_size, self.output_size) for name, n in self.branches.items()}
        shapes = {name: tuple(value.shape) for name, value in found.items()} if isinstance(found, dict) else {}
        if shapes != wanted:
            raise BundleError(f"{self.path}: the network gives {shapes or 'one output'}", expected=f"{wanted}")
        return {name: np.asarray(value.numpy(), dtype=np.float32) for name, value in found.items()}


def _joined(parts: Sequence[dict[str, Planes]]) -> dict[str, Planes]:
    """Return the branches of a network for all tiles from those for some of them each."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _activated(logits: Any, activation: Activation) -> Planes:
    """Return probabilities, float32, from logits with the classes on axis 1."""
    import torch

    out = torch.softmax(logits, dim=1) if activation == "softmax" else torch.sigmoid(logits)
    return np.asarray(out.numpy(), dtype=np.float32)
