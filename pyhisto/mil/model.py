"""A network for slide labels: one head for each label, behind a common scaling of the features."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from pyhisto.mil.labels import UNKNOWN
from pyhisto.models.mil import build_head
from pyhisto.models.mil.base import MilHead, MilOutput

__all__ = ["SlideModel", "build_slide_model"]


class SlideModel(nn.Module):
    """Heads of one kind, one a label, that see features (x - mean) / std.

    Parameters
    ----------
    heads
        One for each label.
    scaled
        Whether features are scaled; see :meth:`set_scale`. They are taken as they are otherwise.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, heads: Sequence[MilHead], *, scaled: bool) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)
        self.scaled = scaled
        if scaled:
            width = heads[0].in_features
            self.register_buffer("shift", torch.zeros(width))
            self.register_buffer("scale", torch.ones(width))

    def set_scale(self, mean: Tensor, std: Tensor) -> None:
        """Set what is subtracted and divided by, float (width,); features that never vary are only shifted."""
        scale = torch.where(std > 0, 1 / std, torch.ones_like(std))
        self.scale.copy_(scale)
        self.shift.copy_(-mean * scale)

    def forward(self, instances: Tensor, offsets: Tensor | None = None) -> list[MilOutput]:
        """Judge bags laid end to end, (N, width); one output for each label."""
        seen = self._seen(instances)
        return [head(seen, offsets) for head in self.heads]

    def loss(
        self,
        instances: Tensor,
        offsets: Tensor | None,
        labels: Tensor,
        class_weights: Sequence[Tensor | None],
    ) -> Tensor | None:
        """Return the sum over the labels of the mean loss of the bags.

        Parameters
        ----------
        instances, offsets
            As for :meth:`forward`.
        labels
            (B, labels) int64, :data:`pyhisto.mil.labels.UNKNOWN` where not known: such a bag does not count.
        class_weights
            Of each label (classes,) or None. The loss of a bag is multiplied by the weight of its class, and divided by
            the number of bags: a bag that is alone in its batch is weighted, too.

        Returns
        -------
        torch.Tensor or None
            Scalar; None if nothing is known of any bag.
        """
        seen = self._seen(instances)
        losses = []
        for module, mine, weights in zip(self.heads, labels.T, class_weights, strict=True):
            head = cast(MilHead, module)
            known = mine != UNKNOWN
            if not known.any():
                continue
            some, where = (seen, offsets) if known.all() else _bags(seen, offsets, known)
            loss = head.loss(head(some, where), mine[known], weights)
            losses.append(loss if weights is None else loss * weights[mine[known]].mean())
        return torch.stack(losses).sum() if losses else None

    def _seen(self, instances: Tensor) -> Tensor:
        return torch.addcmul(self.shift, instances, self.scale) if self.scaled else instances


def build_slide_model(
    head: str, in_features: int, classes: Sequence[int], *, scaled: bool = True, **options: Any
) -> SlideModel:
    """Build a network for slide labels.

    Parameters
    ----------
    head
        Name as in :func:`pyhisto.models.mil.build_head`, which also takes the options.
    in_features
        Numbers of an instance.
    classes
        Number of classes of each label.
    scaled
        As for :class:`SlideModel`.
    **options
        Of the head.

    Raises
    ------
    ConfigError
        As :func:`pyhisto.models.mil.build_head`.
    """
    return SlideModel([build_head(head, in_features, n, **options) for n in classes], scaled=scaled)


def _bags(instances: Tensor, offsets: Tensor | None, wanted: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return some of the bags."""
    if offsets is None:
        return instances, None
    pairs = zip(itertools.pairwise(offsets.tolist()), wanted.tolist(), strict=True)
    chosen = [instances[begin:end] for (begin, end), take in pairs if take]
    lengths = torch.tensor([0, *(len(piece) for piece in chosen)])
    return torch.cat(chosen), lengths.cumsum(0)
