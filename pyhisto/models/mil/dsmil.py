"""DSMIL (Li, Li, Eliceiri 2021, "Dual-stream Multiple Instance Learning Network ...", CVPR)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyhisto.models.mil.base import MilHead, MilOutput, first_layer
from pyhisto.models.mil.segments import Bags
from pyhisto.models.mil.settings import HeadSettings

__all__ = ["DualStreamHead", "build_dsmil"]


class DualStreamHead(MilHead):
    """A stream of instance scores and a stream that attends by likeness to the highest one.

    With h_k the instances and m(c) the critical one, which has the highest score of class c in its bag (the first of
    those that tie), equations 2 to 7 of the paper::

        first stream     s_k = W_0 h_k                   c_m = max_k s_k
        second stream    q_k = W_q h_k   v_k = W_v h_k   U_k,c = softmax_k (q_k . q_m(c) / sqrt(L))
                         c_b = W_b sum_k U_k v_k          bag: (c_m + c_b) / 2

    with L the length of q; the root is not in the paper but in its code. W_b maps the C sums of all classes to C
    logits, as the convolution of that code does. The sums are linear in h, so W_b W_v is multiplied first and no v is
    ever made. ``attention`` (N, C) is U, ``instance`` (N, C) are the s_k, logits. The loss is the mean of both
    streams' losses; they are cross-entropies, since classes exclude each other here, where the paper has binary ones.
    """

    def __init__(self, in_features: int, classes: int, hidden: int, attention: int, dropout: float) -> None:
        super().__init__(in_features, classes)
        self.first, width = first_layer(in_features, hidden, dropout)
        self.scores = nn.Linear(width, classes)
        self.query = nn.Linear(width, attention)
        self.value = nn.Linear(width, width)
        self.classifier = nn.Linear(classes * width, classes)
        self.dropout = nn.Dropout(dropout)

    def judge(self, instances: Tensor, bags: Bags) -> MilOutput:
        """Judge checked bags."""
        hidden = self.first(instances)
        scores, query = self.scores(hidden), self.query(hidden)
        critical = bags.argmax(scores)
        likeness = torch.cat([q @ query[rows].T for q, rows in zip(query.split(bags.lengths), critical, strict=True)])
        attention = bags.softmax(likeness / math.sqrt(query.shape[1]))
        # what an instance adds to which logit, by the attention of which class: W_b W_v h as (N, C to, C from)
        kernel = self.classifier.weight.view(self.classes, self.classes, -1)
        weight, bias = kernel @ self.value.weight, kernel @ self.value.bias
        added = functional.linear(self.dropout(hidden), weight.flatten(0, 1), bias.flatten()).view(-1, *bias.shape)
        second = bags.sum((added * attention[:, None]).sum(2)) + self.classifier.bias
        first = scores.gather(0, critical)
        return MilOutput((first + second) / 2, attention, scores, {"first": first, "second": second})

    def loss(self, output: MilOutput, labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
        """Return the mean of the two streams' cross-entropies.

        Parameters
        ----------
        output, labels, class_weights
            As for :meth:`MilHead.loss`.
        """
        first, second = (
            functional.cross_entropy(output.loss_terms[stream], labels, class_weights) for stream in ("first", "second")
        )
        return (first + second) / 2


def build_dsmil(in_features: int, classes: int, settings: HeadSettings) -> DualStreamHead:
    """Build :class:`DualStreamHead`: queries of 128 behind a first layer of 512, unless the settings say otherwise."""
    hidden = 512 if settings.hidden is None else settings.hidden
    return DualStreamHead(in_features, classes, hidden, settings.attention or 128, settings.dropout or 0.0)
