"""What every multiple-instance head takes and returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn import functional

from pyhisto.errors import ConfigError
from pyhisto.models.mil.segments import Bags

__all__ = ["MilHead", "MilOutput"]


@dataclass(frozen=True)
class MilOutput:
    """What a head says of B bags with N instances in all; C classes.

    Parameters
    ----------
    logits
        (B, C) float, unnormalised log-probabilities of the bag's label: their softmax is its probabilities.
    attention
        (N,) float, or (N, C) where every class has its own: not negative, with a sum of 1 over each bag.
    instance
        (N, C) float, how much a lone instance speaks for each class, on the scale that the head's docstring names;
        ``None`` where the head has no such scores.
    loss_terms
        What :meth:`MilHead.loss` of this head needs besides the logits.
    """

    logits: Tensor
    attention: Tensor
    instance: Tensor | None = None
    loss_terms: dict[str, Tensor] = field(default_factory=dict)


class MilHead(nn.Module, ABC):
    """Base of the heads: checks bags, and has the loss of heads without one of their own.

    Parameters
    ----------
    in_features
        Numbers per instance.
    classes
        Bag labels.
    """

    def __init__(self, in_features: int, classes: int) -> None:
        super().__init__()
        self.in_features = in_features
        self.classes = classes

    def forward(self, instances: Tensor, offsets: Tensor | None = None) -> MilOutput:
        """Judge one bag, or several laid end to end.

        Parameters
        ----------
        instances
            (N, in_features) float, the instances of all bags.
        offsets
            (B + 1,) int64 from 0 to N, where the bags begin and end; ``None`` for a single bag. What a bag gets does
            not depend on the others.

        Raises
        ------
        ConfigError
            If the instances have another shape, or the offsets do not fit or leave a bag empty.
        """
        if instances.ndim != 2 or instances.shape[1] != self.in_features:
            raise ConfigError(
                f"instances of shape {tuple(instances.shape)}", expected=f"(instances, {self.in_features})"
            )
        return self.judge(instances, Bags(len(instances), offsets, instances.device))

    @abstractmethod
    def judge(self, instances: Tensor, bags: Bags) -> MilOutput:
        """Judge checked bags; what a head implements."""

    def loss(self, output: MilOutput, labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
        """Return what training makes small: here the cross-entropy of the bags.

        Parameters
        ----------
        output
            Of this head.
        labels
            (B,) int64, the class of each bag.
        class_weights
            (C,) float, how much a bag of each class counts; ``None`` for all the same.

        Returns
        -------
        torch.Tensor
            Scalar, the mean over the bags, weighted by their class.
        """
        return functional.cross_entropy(output.logits, labels, class_weights)


def first_layer(in_features: int, hidden: int, dropout: float) -> tuple[nn.Module, int]:
    """Return the layer that brings instances to a width (linear, ReLU, dropout), and that width; 0: as they are."""
    if hidden == 0:
        return nn.Identity(), in_features
    return nn.Sequential(nn.Linear(in_features, hidden), nn.ReLU(), nn.Dropout(dropout)), hidden


def weighted_sum(attention: Tensor, instance: Tensor, bags: Bags) -> Tensor:
    """Return sums (B, C) over each bag of instance scores (N, C) weighted by attention, (N,) or (N, C)."""
    return bags.sum((attention[:, None] if attention.ndim == 1 else attention) * instance)
