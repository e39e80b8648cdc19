"""TransMIL (Shao et al. 2021, "TransMIL: Transformer based Correlated Multiple Instance Learning ...", NeurIPS)."""

from __future__ import annotations

import math

import torch
from nystrom_attention import NystromAttention
from torch import Tensor, nn
from torch.nn import functional

from pyhisto.errors import ConfigError
from pyhisto.models.mil.base import MilHead, MilOutput
from pyhisto.models.mil.segments import Bags
from pyhisto.models.mil.settings import HeadSettings

__all__ = ["TransMilHead", "build_transmil"]

_HEADS = 8


class _Layer(nn.Module):
    """x + attention(norm(x)), with the Nyström approximation (Xiong et al. 2021, "Nyströmformer", AAAI)."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = NystromAttention(
            dim=width, dim_head=width // _HEADS, heads=_HEADS, num_landmarks=width // 2, dropout=dropout
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (1, n, width) to tokens of the same shape."""
        return tokens + self.attention(self.norm(tokens))  # type: ignore[no-any-return]

    @torch.no_grad()
    def row_of_first(self, tokens: Tensor) -> Tensor:
        """Return how the first token attends to the others, the mean over the heads: (n - 1,), with a sum of 1."""
        query, key, _ = self.attention.to_qkv.weight.chunk(3)
        normed = self.norm(tokens[0])
        queries = functional.linear(normed[0], query).view(_HEADS, -1)
        keys = functional.linear(normed[1:], key).view(len(normed) - 1, _HEADS, -1)
        row: Tensor = (torch.einsum("hd,nhd->nh", queries, keys) * self.attention.scale).softmax(0).mean(1)
        return row


class _PositionEncoding(nn.Module):
    """PPEG: the tokens as a square image, to which depthwise convolutions of 7, 5 and 3 are added (figure 4)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(width, width, size, padding=size // 2, groups=width) for size in (7, 5, 3)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (1, 1 + side * side, width), the first of which passes, to tokens of the same shape."""
        side = math.isqrt(tokens.shape[1] - 1)
        image = tokens[:, 1:].transpose(1, 2).reshape(1, -1, side, side)
        image = image + sum(convolve(image) for convolve in self.convolutions)
        return torch.cat([tokens[:, :1], image.flatten(2).transpose(1, 2)], dim=1)


class TransMilHead(MilHead):
    """Two layers of Nyström attention around a position encoding, and a class token.

    Algorithm 2 of the paper, for each bag: instances through a linear layer and a ReLU; the first ones repeated until
    their number is a square; a class token in front; attention, PPEG, attention, each as in the paper's code; the
    class token through a layer norm and a linear layer.

    PPEG sees the bag's order as positions in a square, and landmarks are means of neighbours in that order, so the
    result depends on the order of the instances: hand them over row by row. ``attention`` (N,) is how the class token
    attends in the last layer, the mean over the heads: the exact softmax row, which the Nyström product only
    approximates (where it may be negative), over the instances alone, repeated ones added up; it carries no gradient.
    ``instance`` is ``None``: TransMIL has no scores of instances.
    """

    def __init__(self, in_features: int, classes: int, hidden: int, dropout: float) -> None:
        super().__init__(in_features, classes)
        if hidden < 1 or hidden % _HEADS:
            raise ConfigError(f"hidden is {hidden}", expected=f"a multiple of {_HEADS}, the heads of its attention")
        self.first = nn.Sequential(nn.Linear(in_features, hidden), nn.ReLU())
        self.class_token = nn.Parameter(torch.randn(1, 1, hidden))
        self.before = _Layer(hidden, dropout)
        self.position = _PositionEncoding(hidden)
        self.after = _Layer(hidden, dropout)
        self.norm = nn.LayerNorm(hidden)
        self.classifier = nn.Linear(hidden, classes)

    def judge(self, instances: Tensor, bags: Bags) -> MilOutput:
        """Judge checked bags, one after another."""
        judged = [self._one(bag) for bag in self.first(instances).split(bags.lengths)]
        return MilOutput(torch.stack([logits for logits, _ in judged]), torch.cat([row for _, row in judged]))

    def _one(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits (C,) and the attention (n,) of one bag (n, hidden)."""
        count = len(hidden)
        side = math.isqrt(count - 1) + 1
        squared = torch.cat([hidden, hidden[: side * side - count]])
        tokens = self.position(self.before(torch.cat([self.class_token, squared[None]], dim=1)))
        row = self.after.row_of_first(tokens)
        attention = row[:count].clone()
        attention[: len(row) - count] += row[count:]
        return self.classifier(self.norm(self.after(tokens)[0, 0])), attention


def build_transmil(in_features: int, classes: int, settings: HeadSettings) -> TransMilHead:
    """Build :class:`TransMilHead`: 512 wide, 256 landmarks, unless the settings say otherwise."""
    hidden = 512 if settings.hidden is None else settings.hidden
    return TransMilHead(in_features, classes, hidden, 0.1 if settings.dropout is None else settings.dropout)
