"""Maximum, mean and plain attention: the layers of MONAI's ``MILModel``, over bags of features.

MONAI's network takes bags of images of one size (B, N, C, H, W), pads nothing, and returns no attention. Its layers
after the backbone fit features as they are, so they are held here as a ``MILModel`` without a CNN: weights and
logits are MONAI's, bags may differ in size, and attention is returned. A first layer stands where MONAI has the
backbone. What does not fit: ``att_trans`` attends over padded bags, ``att_trans_pyramid`` needs the feature maps of a
ResNet-50.
"""

from __future__ import annotations

from monai.networks.nets import MILModel
from torch import Tensor, nn

from pyhisto.models.mil.base import MilHead, MilOutput, first_layer, weighted_sum
from pyhisto.models.mil.segments import Bags
from pyhisto.models.mil.settings import HeadSettings

__all__ = ["AttentionHead", "MaxHead", "MeanHead", "build_attention", "build_max", "build_mean"]


class _MonaiHead(MilHead):
    """A head on the layers of MONAI's ``MILModel``, in its member `layers`."""

    mode = ""

    def __init__(self, in_features: int, classes: int, hidden: int, dropout: float) -> None:
        super().__init__(in_features, classes)
        first, width = first_layer(in_features, hidden, dropout)
        self.layers = MILModel(
            classes,
            mil_mode=self.mode,
            pretrained=False,
            backbone=nn.Sequential(nn.Flatten(), first),
            backbone_num_features=width,
        )


class MaxHead(_MonaiHead):
    """Maximum over the instances' logits, class by class: Y_c = max_k (W h_k + b)_c.

    ``attention`` (N, C) is 1 for the instance with the maximum of its class (shared evenly by those that tie), which
    is also how the gradient is shared out; ``instance`` (N, C) are the instances' logits.
    """

    mode = "max"

    def judge(self, instances: Tensor, bags: Bags) -> MilOutput:
        """Judge checked bags."""
        hidden = self.layers.net(instances)
        scores = self.layers.myfc(hidden)
        return MilOutput(bags.max(scores), bags.share_of_max(scores.detach()), scores)


class MeanHead(_MonaiHead):
    """Mean over the instances' logits: Y = mean_k (W h_k + b).

    ``attention`` (N,) is 1 / n in a bag of n; ``instance`` (N, C) are the instances' logits.
    """

    mode = "mean"

    def judge(self, instances: Tensor, bags: Bags) -> MilOutput:
        """Judge checked bags."""
        hidden = self.layers.net(instances)
        scores = self.layers.myfc(hidden)
        attention = bags.spread(1 / bags.offsets.diff().to(scores.dtype)[:, None])[:, 0]
        return MilOutput(bags.mean(scores), attention, scores)


class AttentionHead(_MonaiHead):
    """Attention without a gate (Ilse et al. 2018, equations 7 and 8), 2,048 wide as in MONAI.

    a_k = softmax_k (w' tanh(V h_k)), z = sum_k a_k h_k, Y = W z + b. Since the a_k of a bag sum to 1, Y is also the
    sum of the instances' logits W h_k + b weighted by a_k, which is how it is computed: ``instance`` (N, C) are these
    logits, ``attention`` (N,) the a_k. The width costs memory: 0.8 GB for each of two activations of 100,000 instances.
    """

    mode = "att"

    def judge(self, instances: Tensor, bags: Bags) -> MilOutput:
        """Judge checked bags."""
        hidden = self.layers.net(instances)
        scores = self.layers.myfc(hidden)
        attention = bags.softmax(self.layers.attention(hidden))[:, 0]
        return MilOutput(weighted_sum(attention, scores, bags), attention, scores)


def build_max(in_features: int, classes: int, settings: HeadSettings) -> MaxHead:
    """Build :class:`MaxHead`: without a first layer, unless the settings say otherwise."""
    return MaxHead(in_features, classes, settings.hidden or 0, settings.dropout or 0.0)


def build_mean(in_features: int, classes: int, settings: HeadSettings) -> MeanHead:
    """Build :class:`MeanHead`: without a first layer, unless the settings say otherwise."""
    return MeanHead(in_features, classes, settings.hidden or 0, settings.dropout or 0.0)


def build_attention(in_features: int, classes: int, settings: HeadSettings) -> AttentionHead:
    """Build :class:`AttentionHead`: behind a first layer of 512, unless the settings say otherwise."""
    hidden = 512 if settings.hidden is None else settings.hidden
    return AttentionHead(in_features, classes, hidden, settings.dropout or 0.0)
