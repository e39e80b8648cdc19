"""Bags laid end to end: softmax, sum and maximum over the instances of each, without padding."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from pyhisto.errors import ConfigError

__all__ = ["Bags"]


class Bags:
    """Which rows of (N, ...) tensors are the instances of which bag.

    Every operation treats a bag as if it were alone: what it returns for bags laid end to end is what it returns for
    each of them.

    Parameters
    ----------
    count
        N, instances in all.
    offsets
        (B + 1,) int64, rising from 0 to N: bag b has the rows ``offsets[b]`` to ``offsets[b + 1] - 1``. ``None`` for a
        single bag.
    device
        Of the tensors to come.

    Raises
    ------
    ConfigError
        If the offsets do not say that, or a bag is empty.
    """

    def __init__(self, count: int, offsets: Tensor | None, device: torch.device) -> None:
        if offsets is None:
            offsets = torch.tensor([0, count])
        if offsets.dtype != torch.int64 or offsets.ndim != 1 or len(offsets) < 2:
            raise ConfigError(
                f"offsets of shape {tuple(offsets.shape)} and type {offsets.dtype}", expected="(bags + 1,) int64"
            )
        bounds = offsets.tolist()
        lengths = [end - start for start, end in itertools.pairwise(bounds)]
        if bounds[0] != 0 or bounds[-1] != count or min(lengths) < 1:
            raise ConfigError(
                f"offsets from {bounds[0]} to {bounds[-1]}, smallest bag of {min(lengths)}, for {count} instances",
                expected=f"offsets from 0 to {count} and no empty bag",
            )
        self.lengths = lengths
        """Instances of each bag."""
        self.offsets = offsets.to(device)
        """(B + 1,) int64."""
        self.of_instance = torch.repeat_interleave(
            torch.arange(len(lengths), device=device), self.offsets.diff(), output_size=count
        )
        """(N,) int64, the bag of each instance."""

    def sum(self, values: Tensor) -> Tensor:
        """Return the sums (B, K) of `values` (N, K) over the instances of each bag."""
        return self._reduce(values, "sum")

    def mean(self, values: Tensor) -> Tensor:
        """Return the means (B, K) of `values` (N, K) over the instances of each bag."""
        return self._reduce(values, "mean")

    def max(self, values: Tensor) -> Tensor:
        """Return the maxima (B, K) of `values` (N, K) over the instances of each bag."""
        return self._reduce(values, "max")

    def argmax(self, values: Tensor) -> Tensor:
        """Return the rows (B, K) int64 of `values` (N, K) with each bag's maxima, the first of those that tie."""
        rows = torch.stack([bag.argmax(0) for bag in torch.split(values, self.lengths)])
        return rows + self.offsets[:-1, None]

    def spread(self, values: Tensor) -> Tensor:
        """Return `values` (B, K) of the bags for each of their instances, (N, K)."""
        return values.index_select(0, self.of_instance)

    def softmax(self, scores: Tensor) -> Tensor:
        """Return the softmax of `scores` (N, K) over the instances of each bag, (N, K)."""
        powers = (scores - self.spread(self.max(scores.detach()))).exp()
        return powers / self.spread(self.sum(powers))

    def share_of_max(self, values: Tensor) -> Tensor:
        """Return 1 where an instance has its bag's maximum, shared evenly by those that tie, else 0; (N, K)."""
        highest = (values == self.spread(self.max(values))).to(values.dtype)
        return highest / self.spread(self.sum(highest))

    def _reduce(self, values: Tensor, how: str) -> Tensor:
        return torch.segment_reduce(values, how, offsets=self.offsets)
