"""A loaded model: tiles to class probabilities, as many at once as are worth it."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pyhisto.bundle.spec import ModelSpec, region_classes
from pyhisto.device import free_memory, memory_gib
from pyhisto.errors import BundleError
from pyhisto.models import tile_divisor

if TYPE_CHECKING:
    from torch import nn

    from pyhisto.bundle.engine import Engine

__all__ = ["Bundle", "class_probabilities", "normalise"]

STREAM_TILE_PX = 2368
"""Side of the largest square tiles for whole slides: where tissue fills it, (2368 / 1920)² = 1.52 pixels are predicted
for each that is used. With 2976 px it is 1.39, but a tile then has 1.6 times the pixels, which take memory."""

STREAM_BYTES, MEMORY_SHARE = 250, 0.125
"""What a U-Net with a DenseNet-121 takes for a pixel of a tile, in float32 on a CPU, and the share of a device's memory
that it may take."""

STREAM_OVERLAP_PX = 224
"""Overlap of such tiles. How far a trained network sees differs: at 64 to 160 px from the end of a tile, a thousandth
of the pixels still differ by .004 from what it says in the middle (U-Nets with ResNet and DenseNet encoders). With 160
px single pixels of the one that finds nuclei differ by up to .011, with 192 by .002 and with 224 by .0006."""

CPU_PX = 2 * 512**2
"""Pixels in one batch on a CPU, where larger ones are no faster."""

MOST_TILES = 256
"""Largest batch that is tried on a GPU."""

FREE_SHARE = 0.6
"""Share of a device's free memory that a batch may take."""


class Bundle:
    """A loaded model with its description; made by :func:`pyhisto.bundle.files.load_bundle`.

    Attributes
    ----------
    path, spec, sha256
        The folder, its description and the checksum of its weights.
    device
        Where the network runs: ``"cpu"``, ``"cuda"``, ``"cuda:<number>"`` or ``"mps"``.
    engine, precision
        What computes it (``"torch"`` or ``"openvino"``), in what (``"float32"``, ``"bfloat16"`` or ``"float16"``).
    compute
        The engine itself.
    notes
        What was not used because it gave another output than float32 in torch, or failed.
    """

    engine: str
    precision: str

    def __init__(self, path: Path, spec: ModelSpec, sha256: str, model: nn.Module, device: str) -> None:
        from pyhisto.bundle.engine import TorchEngine

        self.path = path
        self.spec = spec
        self.sha256 = sha256
        self.device = device
        self.notes: tuple[str, ...] = ()
        self._model = model.to(device).eval()
        self._tiles_at_once: int | None = None
        self._local: bool | None = None
        self.use(TorchEngine(self._model, device))

    def use(self, compute: Engine) -> None:
        """Let an engine compute the network from now on."""
        self.compute: Engine = compute
        self.engine, self.precision = compute.name, compute.precision
        self._model = compute.network

    def predict(self, tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the class probabilities of tiles; in parts where the device's memory is too small for all at once.

        Parameters
        ----------
        tiles
            RGB uint8, shape (n, height, width, 3), at ``spec.mpp`` µm/px; the sides are multiples of :attr:`stride`.

        Returns
        -------
        numpy.ndarray
            float32, shape (n, classes, height, width); sums to 1 over the classes.

        Raises
        ------
        BundleError
            If the memory is too small for one tile.
        """
        from pyhisto.bundle.engine import in_parts

        def smaller(count: int) -> None:
            if self._tiles_at_once is not None:
                self._tiles_at_once = max(1, min(self._tiles_at_once, count))

        one = f"one tile of {tiles.shape[2]} x {tiles.shape[1]} px"
        return in_parts(self._predict, tiles, np.concatenate, device=self.device, one=one, smaller=smaller)

    def _predict(self, tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the class probabilities of tiles, all at once."""
        import torch

        x = normalise(torch.from_numpy(np.ascontiguousarray(tiles)).to(self.device), self.spec)
        with torch.inference_mode():
            return np.asarray(class_probabilities(self.compute(x), self.spec).cpu().numpy())

    def _make_room(self) -> None:
        """Give memory that torch keeps for later back to the GPU."""
        import torch

        if self.device != "cpu":
            torch.get_device_module(self.device).empty_cache()

    def predict_flips(self, tiles: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return the mean class probabilities over a tile and its mirror images, and how far these differ.

        The mirror images are those of the horizontal flip, the vertical flip and both; their output is flipped back.

        Parameters
        ----------
        tiles
            RGB uint8, shape (n, height, width, 3), at ``spec.mpp`` µm/px.

        Returns
        -------
        mean
            float32, shape (n, classes, height, width); sums to 1 over the classes.
        variance
            float32, shape (n, height, width): population variance over the four, mean over the classes.
        """
        mean = self.predict(tiles)
        squares = np.zeros_like(mean)  # sum of squared deviations, updated as Welford (1962) does
        for count, axes in enumerate(((2,), (1,), (1, 2)), 2):
            mirrored = np.flip(self.predict(np.flip(tiles, axes)), tuple(axis + 1 for axis in axes))
            delta = mirrored - mean
            mean += delta / np.float32(count)
            squares += delta * (mirrored - mean)
        return mean, squares.mean(axis=1) / np.float32(4)

    def stages(self) -> tuple[Bundle, Bundle]:
        """Return the networks of a coarse-to-fine model, each by itself: the detector of patches and the refiner.

        The first gives (n, classes, 1, 1) for patches; the second sees 3 + (classes - 1) channels; see
        :meth:`pyhisto.bundle.spec.ModelSpec.stages`.

        Raises
        ------
        BundleError
            If the model has one network.
        """
        if self.spec.cascade is None:
            raise BundleError(f"{self.path} has one network", expected="a coarse-to-fine model")
        from pyhisto.bundle.engine import TorchEngine

        first, second = self.spec.stages(self.spec.cascade)
        network: Any = self._model
        detector = Bundle(self.path, first, self.sha256, network.detector, self.device)
        refiner = Bundle(self.path, second, self.sha256, network.refiner, self.device)
        for stage in (detector, refiner):
            stage.use(TorchEngine(stage._model, self.device, self.precision))  # as the whole is
        return detector, refiner

    @property
    def stride(self) -> int:
        """Sides of tiles are multiples of this, px."""
        return tile_divisor(self.spec.architecture, self.spec.decoder_channels)

    @property
    def stream_tile(self) -> tuple[int, int]:
        """Tile side and overlap on each side, px, with which whole slides are predicted.

        Both are larger than in training, so that less of the tiles is overlap, and less of what is found depends on
        where they lie; but for a network in which an output pixel depends on the whole tile.
        """
        side, overlap = self.spec.tile_size, self.spec.overlap
        if not self._sees_nearby():
            return side, overlap
        room = math.isqrt(int(MEMORY_SHARE * memory_gib(self.device) * 2**30 / STREAM_BYTES))
        overlap = max(overlap, STREAM_OVERLAP_PX)
        most = max(min(room, STREAM_TILE_PX), 4 * overlap)
        return max(side, most // self.stride * self.stride), overlap

    def _sees_nearby(self) -> bool:
        """Return whether an output pixel depends on pixels nearby only."""
        if self._local is None:
            import torch

            from pyhisto.bundle.engine import is_local

            weights = next(self._model.parameters(), torch.zeros(1))
            shape = 1, len(self.spec.channel_mean), self.spec.tile_size, self.spec.tile_size
            self._local = is_local(self._model, torch.zeros(shape, dtype=weights.dtype, device=weights.device))
        return self._local

    @property
    def tiles_at_once(self) -> int:
        """Tiles of :attr:`stream_tile` in one call of the network.

        On a GPU the number is measured when it is first asked for: doubled as long as tiles get cheaper and the free
        memory suffices. It is halved when the memory turns out to be too small.
        """
        if self._tiles_at_once is None:
            side = self.stream_tile[0]
            if self.device == "cpu":
                self._tiles_at_once = max(1, min(8, CPU_PX // side**2))
            else:
                self._tiles_at_once = self._measured(side)
        return self._tiles_at_once

    def _measured(self, side: int) -> int:
        """Return the number of tiles at once that a GPU is fastest with."""
        from pyhisto.bundle.engine import throughput_batch

        tile = np.zeros((1, side, side, len(self.spec.channel_mean)), dtype=np.uint8)
        before = free_memory(self.device)
        self._predict(tile)  # makes what is made once, and shows what one tile takes
        taken = max(1, before - free_memory(self.device))

        def seconds(count: int) -> float:
            batch = np.repeat(tile, count, axis=0)
            self._predict(batch)
            begin = time.perf_counter()
            self._predict(batch)
            return time.perf_counter() - begin

        found = throughput_batch(seconds, max(1, min(MOST_TILES, int(FREE_SHARE * before / taken))))
        self._make_room()
        return found


def class_probabilities(logits: Any, spec: ModelSpec) -> Any:
    """Return class probabilities, float tensor (n, classes, h, w), from logits (n, classes or regions, h, w).

    With regions, a pixel is of the class of the last region that it lies in: that of region i has the probability p_i
    times the product of 1 - p_j over all later regions, and background that of lying in none.
    """
    import torch

    if not spec.regions:
        return torch.softmax(logits, dim=1)
    inside = torch.sigmoid(logits)
    out = torch.empty((inside.shape[0], len(spec.classes), *inside.shape[2:]), device=inside.device)
    left = torch.ones_like(inside[:, 0])
    own = region_classes(spec.regions, len(spec.classes))
    for number in range(len(own) - 1, -1, -1):
        out[:, own[number]] = inside[:, number] * left
        left = left * (1 - inside[:, number])
    out[:, 0] = left
    return out


def normalise(tiles: Any, spec: ModelSpec) -> Any:
    """Return tiles as the model's input: float32 tensor (n, 3, height, width), on the device of the tiles.

    Parameters
    ----------
    tiles
        RGB uint8 (n, height, width, 3), as numpy array or tensor.
    spec
        For mean and standard deviation of the channels.
    """
    import torch

    tiles = tiles if isinstance(tiles, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(tiles))
    x = tiles.permute(0, 3, 1, 2).float().div_(255)
    mean = torch.tensor(spec.channel_mean, device=x.device).view(1, -1, 1, 1)
    std = torch.tensor(spec.channel_std, device=x.device).view(1, -1, 1, 1)
    return x.sub_(mean).div_(std)
