"""Gated attention (Ilse, Tomczak, Welling 2018, "Attention-based Deep Multiple Instance Learning", ICML)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyhisto.models.mil.base import MilHead, MilOutput, first_layer, weighted_sum
from pyhisto.models.mil.segments import Bags
from pyhisto.models.mil.settings import HeadSettings

__all__ = ["GatedAttentionHead", "build_abmil"]

PRODUCT_WIDTH = 8
"""Products of matrices whose width is a multiple of this are the faster ones: 258 columns take longer than 264."""


class GatedAttentionHead(MilHead):
    """ABMIL with gated attention.

    With h_k the instances (after the first layer, if there is one), equations 7 and 9 of the paper::

        a_k = softmax_k (w' (tanh(V h_k + v) * sigmoid(U h_k + u)) + c)      z = sum_k a_k h_k      Y = W z + b

    Since the a_k of a bag sum to 1, Y is also the sum of the instances' logits W h_k + b weighted by a_k. That is how
    it is computed, with V h, U h and W h as one product. ``instance`` (N, C) are these logits, ``attention`` (N,) the
    a_k.
    """

    def __init__(self, in_features: int, classes: int, hidden: int, attention: int, dropout: float) -> None:
        super().__init__(in_features, classes)
        self.first, width = first_layer(in_features, hidden, dropout)
        self.value = nn.Linear(width, attention)
        self.gate = nn.Linear(width, attention)
        self.weight = nn.Linear(attention, 1)
        self.classifier = nn.Linear(width, classes)

    def judge(self, instances: Tensor, bags: Bags) -> MilOutput:
        """Judge checked bags."""
        hidden = self.first(instances)
        layers = (self.value, self.gate, self.classifier)
        widths = [layer.out_features for layer in layers]
        padding = -sum(widths) % PRODUCT_WIDTH
        weight = torch.cat([*(layer.weight for layer in layers), hidden.new_zeros(padding, hidden.shape[1])])
        bias = torch.cat([*(layer.bias for layer in layers), hidden.new_zeros(padding)])
        value, gate, scores, _ = torch.split(functional.linear(hidden, weight, bias), [*widths, padding], dim=1)
        attention = bags.softmax(self.weight(torch.tanh(value) * torch.sigmoid(gate)))[:, 0]
        return MilOutput(weighted_sum(attention, scores, bags), attention, scores)


def build_abmil(in_features: int, classes: int, settings: HeadSettings) -> GatedAttentionHead:
    """Build :class:`GatedAttentionHead`: 128 wide behind a first layer of 512, unless the settings say otherwise."""
    hidden = 512 if settings.hidden is None else settings.hidden
    return GatedAttentionHead(in_features, classes, hidden, settings.attention or 128, settings.dropout or 0.0)
