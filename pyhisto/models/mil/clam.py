"""CLAM (Lu et al. 2021, "Data-efficient and weakly supervised computational pathology ...", Nature Biomedical Eng.)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyhisto.models.mil.base import MilHead, MilOutput, first_layer, weighted_sum
from pyhisto.models.mil.losses import clustering_loss
from pyhisto.models.mil.segments import Bags
from pyhisto.models.mil.settings import HeadSettings

__all__ = ["ClamHead", "build_clam_mb", "build_clam_sb"]


class ClamHead(MilHead):
    """CLAM with one attention branch (SB) or one for every class (MB).

    With h_k the instances after the first layer, equations 1 to 3 of the paper's Methods, for the branch m::

        a_k,m = softmax_k (W_a,m (tanh(V h_k) * sigmoid(U h_k)))      z_m = sum_k a_k,m h_k      Y_m = W_c,m z_m + b_m

    SB has one a for all m. Since attention sums to 1 over a bag, Y_m is computed as the sum of the instances'
    W_c,m h_k + b_m weighted by it. The instance classifier of class m is p_k,m = W_inst,m h_k, two numbers, "is not"
    and "is": ``instance`` (N, C) is their difference, a logit. ``attention`` is (N,) for SB and (N, C) for MB. The
    loss is c1 times the cross-entropy of the bags and c2 = 1 - c1 times the clustering loss of
    :func:`pyhisto.models.mil.losses.clustering_loss`; c1 is ``settings.bag_weight``.
    """

    def __init__(self, in_features: int, classes: int, branches: int, settings: HeadSettings) -> None:
        super().__init__(in_features, classes)
        dropout = 0.25 if settings.dropout is None else settings.dropout
        attention = settings.attention or 256
        hidden = 512 if settings.hidden is None else settings.hidden
        self.first, width = first_layer(in_features, hidden, dropout)
        self.value = nn.Sequential(nn.Linear(width, attention), nn.Tanh(), nn.Dropout(dropout))
        self.gate = nn.Sequential(nn.Linear(width, attention), nn.Sigmoid(), nn.Dropout(dropout))
        self.weight = nn.Linear(attention, branches)
        self.classifier = nn.Linear(width, classes)
        self.instance_classifier = nn.Linear(width, 2 * classes)
        self.settings = settings

    def judge(self, instances: Tensor, bags: Bags) -> MilOutput:
        """Judge checked bags."""
        hidden = self.first(instances)
        attention = bags.softmax(self.weight(self.value(hidden) * self.gate(hidden)))
        attention = attention[:, 0] if attention.shape[1] == 1 else attention
        clusters = self.instance_classifier(hidden).view(-1, self.classes, 2)
        return MilOutput(
            weighted_sum(attention, self.classifier(hidden), bags),
            attention,
            clusters[..., 1] - clusters[..., 0],
            {"clusters": clusters, "offsets": bags.offsets},
        )

    def loss(self, output: MilOutput, labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
        """Return the loss of the bags and of the clustering; both weigh a bag by its class.

        Parameters
        ----------
        output, labels, class_weights
            As for :meth:`MilHead.loss`.
        """
        clusters = output.loss_terms["clusters"]
        bags = Bags(len(clusters), output.loss_terms["offsets"], clusters.device)
        each = clustering_loss(
            clusters, output.attention, bags, labels, self.settings.clustered, self.settings.exclusive
        )
        counts = torch.ones_like(each) if class_weights is None else class_weights[labels]
        clustering = (each * counts).sum() / counts.sum()
        bag = functional.cross_entropy(output.logits, labels, class_weights)
        return self.settings.bag_weight * bag + (1 - self.settings.bag_weight) * clustering


def build_clam_sb(in_features: int, classes: int, settings: HeadSettings) -> ClamHead:
    """Build :class:`ClamHead` with a single branch: 512 and 256 wide ("small" in the paper's code)."""
    return ClamHead(in_features, classes, 1, settings)


def build_clam_mb(in_features: int, classes: int, settings: HeadSettings) -> ClamHead:
    """Build :class:`ClamHead` with a branch for every class: 512 and 256 wide ("small" in the paper's code)."""
    return ClamHead(in_features, classes, classes, settings)
