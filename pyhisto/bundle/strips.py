"""Networks whose largest maps never exist as a whole: computed in strips of rows, the same output in less memory.

The system hands out the memory of large arrays page by page and clears it, for each tile anew, and what is written to
them leaves the processor's caches before it is read. Strips fit into memory that is there already.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
import torch.nn.functional as F
from monai.networks.nets import FlexibleUNet
from torch import nn

from pyhisto.bundle.rewrite import same_output

__all__ = ["StripPool", "StripUNet", "in_strips"]

STRIP_PX = 1 << 18
"""Pixels of the output in one strip: its maps have up to 32 channels, and glibc gives back arrays from 32 MiB on."""

TESTED_PX = 1
"""The same for the comparison with the network as it was, so that the example makes several strips."""

STAGES = 2
"""Decoder stages that are computed in strips, the last ones, and the head."""

REACH = 2
"""Rows that a stage sees beyond its own, at the size of its input: two convolutions of 3 x 3 taps see two of twice as
many, and that of the head one more."""


def in_strips(network: nn.Module, example: torch.Tensor) -> nn.Module:
    """Return a copy of a network that computes in strips: the end of MONAI's U-Nets, and pooling layers.

    A network that then gives something else is returned as a plain copy.

    Parameters
    ----------
    network
        In evaluation mode; it stays as it is.
    example
        float32 (n, 3, h, w), on its device.
    """
    made = nn.Sequential(copy.deepcopy(network))  # so that the network itself has a name
    strips: list[StripUNet | StripPool] = []
    for name, module in list(made.named_modules()):
        found = _strip_form(module)
        if found is not None:
            made.set_submodule(name, found)
            strips.append(found)
    if not strips:
        return made[0]
    for each in strips:
        each.strip_px = TESTED_PX
    same = same_output(made[0], network, example)
    for each in strips:
        each.strip_px = STRIP_PX
    return made[0] if same else copy.deepcopy(network)


def _strip_form(module: nn.Module) -> StripUNet | StripPool | None:
    """Return a module that computes the same in strips."""
    if isinstance(module, FlexibleUNet) and len(module.decoder.blocks) > STAGES:
        return StripUNet(module)
    if isinstance(module, nn.MaxPool2d) and _is_simple(module):
        return StripPool(module)
    return None


def _is_simple(pool: nn.MaxPool2d) -> bool:
    """Return whether a layer takes the maximum of squares of neighbours."""
    numbers = (pool.kernel_size, pool.stride, pool.padding)
    return all(isinstance(number, int) for number in numbers) and pool.dilation == 1 and not pool.ceil_mode


class StripUNet(nn.Module):
    """MONAI's ``FlexibleUNet`` whose last two decoder stages and head are computed in strips.

    Parameters
    ----------
    network
        Its modules are used, and keep their names.
    """

    strip_px = STRIP_PX

    def __init__(self, network: FlexibleUNet) -> None:
        super().__init__()
        self.encoder, self.decoder, self.segmentation_head = network.encoder, network.decoder, network.segmentation_head
        self.skips = network.skip_connect

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (n, channels, h, w) for (n, 3, h, w)."""
        features = self.encoder(x)
        skips = features[-2::-1]
        stages = [(block, skips[i] if i < self.skips else None) for i, block in enumerate(self.decoder.blocks)]
        out = features[-1]
        for block, skip in stages[:-STAGES]:
            out = block(out, skip)
        rows, last = out.shape[2], stages[-STAGES:]
        step = max(REACH, _rows_at_once(self.strip_px, rows, x))
        if step < rows:
            return torch.cat([self._end(out, last, top, min(top + step, rows)) for top in range(0, rows, step)], dim=2)
        for block, skip in last:
            out = block(out, skip)
        return cast("torch.Tensor", self.segmentation_head(out))

    def _end(
        self, x: torch.Tensor, stages: list[tuple[nn.Module, torch.Tensor | None]], top: int, bottom: int
    ) -> torch.Tensor:
        """Return the logits that belong to some rows of a map."""
        rows, first = x.shape[2], 0  # of the whole map, and where `x` begins
        for block, skip in stages:
            low, high = max(0, top - REACH), min(rows, bottom + REACH)
            x = block(x[:, :, low - first : high - first], None if skip is None else skip[:, :, 2 * low : 2 * high])
            first, top, bottom, rows = 2 * low, 2 * top, 2 * bottom, 2 * rows
        return cast("torch.Tensor", self.segmentation_head(x)[:, :, top - first : bottom - first])


class StripPool(nn.Module):
    """The maximum of neighbours in strips: torch makes an index of eight bytes for each, which nobody wants.

    Parameters
    ----------
    pool
        Of squares.
    """

    strip_px = STRIP_PX

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__()
        self.size, self.stride, self.padding = cast(
            "tuple[int, int, int]", (pool.kernel_size, pool.stride, pool.padding)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (n, c, h / stride, w / stride) for (n, c, h, w)."""
        rows = (x.shape[2] + 2 * self.padding - self.size) // self.stride + 1
        step = max(1, _rows_at_once(self.strip_px, rows, x))
        strips = [self._rows(x, top, min(top + step, rows)) for top in range(0, rows, step)]
        return strips[0] if len(strips) == 1 else torch.cat(strips, dim=2)

    def _rows(self, x: torch.Tensor, top: int, bottom: int) -> torch.Tensor:
        """Return some rows; one more above is computed, which lacks what lies above it."""
        above = min(top, 1)
        seen = x[:, :, (top - above) * self.stride : bottom * self.stride + self.size]
        out = F.max_pool2d(seen, self.size, self.stride, self.padding)
        return out[:, :, above : above + bottom - top]


def _rows_at_once(pixels: int, rows: int, x: torch.Tensor) -> int:
    """Return how many of some rows, which are all that is made of an input (n, c, h, w), make so many of its pixels."""
    return pixels * rows // (x.shape[0] * x.shape[2] * x.shape[3])
