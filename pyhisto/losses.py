"""Losses that leave out pixels nobody labelled."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from pyhisto.dataset import IGNORED

__all__ = ["DiceCrossEntropy"]


class DiceCrossEntropy(nn.Module):
    """Sum of soft Dice (Milletari 2016, squared denominator) and cross-entropy over the labelled pixels.

    Dice is taken over the whole batch, so that a class which is absent from one patch does not jump between 0 and 1;
    classes absent from the batch do not count.

    Parameters
    ----------
    weight
        Weight of each class in the cross-entropy; None for all alike.
    """

    def __init__(self, weight: torch.Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss, a scalar; zero where no pixel is labelled.

        Parameters
        ----------
        logits
            float (B, C, H, W).
        labels
            integer (B, H, W): class numbers, or 255 where not labelled.
        """
        known = labels != IGNORED  # (B, H, W)
        if not known.any():
            return logits.sum() * 0
        weight = self.weight if isinstance(self.weight, torch.Tensor) else None
        entropy = F.cross_entropy(logits, labels.long(), weight=weight, ignore_index=IGNORED)
        classes = logits.shape[1]
        target = F.one_hot(labels.long() * known, classes).permute(0, 3, 1, 2) * known[:, None]  # (B, C, H, W)
        probability = torch.softmax(logits, dim=1) * known[:, None]
        overlap = (probability * target).sum(dim=(0, 2, 3))  # (C,)
        total = (probability.square() + target).sum(dim=(0, 2, 3))
        present = target.sum(dim=(0, 2, 3)) > 0
        dice = (2 * overlap + 1) / (total + 1)
        loss: torch.Tensor = entropy + (1 - dice[present]).mean()
        return loss
