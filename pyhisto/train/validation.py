"""How good a network is on the validation windows."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from pyhisto.bundle.files import ModelSpec, class_probabilities, normalise
from pyhisto.dataset import IGNORED
from pyhisto.errors import TrainingError
from pyhisto.train.batches import validation_batches
from pyhisto.train.distributed import Team
from pyhisto.train.history import Validation
from pyhisto.train.settings import TrainSettings

__all__ = ["Examiner"]


class Examiner:
    """Measures a network on all validation windows, shared among the ranks.

    Parameters
    ----------
    dataset
        The windows; None for none.
    criterion
        The loss.
    spec
        For pre-processing, classes and regions.
    settings
        When, and in batches of what size.
    team, autocast
        Who shares the windows, and what precision the network runs in.
    """

    def __init__(
        self,
        dataset: Any,
        criterion: nn.Module,
        spec: ModelSpec,
        settings: TrainSettings,
        team: Team,
        autocast: AbstractContextManager[Any],
    ) -> None:
        self.batches = validation_batches(dataset, settings, team) if dataset is not None else None
        self.criterion = criterion
        self.spec = spec
        self.settings = settings
        self.team = team
        self.autocast = autocast

    def is_due(self, step: int) -> bool:
        """Return whether to examine after `step` steps: before the first, every so often, and after the last."""
        due = step % self.settings.validate_every == 0 or step == self.settings.steps
        return due and self.batches is not None

    def examine(self, network: nn.Module, *, step: int) -> Validation:
        """Return the figures of a network after `step` steps; its layers are left in the modes they were in.

        Raises
        ------
        TrainingError
            If no window has a labelled pixel of a foreground class.
        """
        modes = [layer.training for layer in network.modules()]
        network.eval()
        confusion, loss = self._count(network)
        for layer, mode in zip(network.modules(), modes, strict=True):
            layer.training = mode
        dice = _dice(confusion, [c.name for c in self.spec.classes])
        if not dice:
            raise TrainingError(
                "no validation window has a labelled pixel of a class to learn",
                expected=f"annotations of {', '.join(c.name for c in self.spec.classes[1:])}",
                remedy="annotate some on the validation slides or in Validation rectangles",
            )
        return Validation(step, float(loss / confusion.sum()), sum(dice.values()) / len(dice), dice)

    def _count(self, network: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        """Return pixels by true (rows) and predicted class, int64 (C, C), and the sum of their losses, float64 ()."""
        classes = len(self.spec.classes)
        confusion = torch.zeros((classes, classes), dtype=torch.int64)
        loss = torch.zeros((), dtype=torch.float64)
        for rgb, *truth in self.batches or ():
            x = normalise(rgb.to(self.team.device), self.spec).contiguous(memory_format=torch.channels_last)
            labels, *weights = (t.to(self.team.device) for t in truth)
            with torch.inference_mode(), self.autocast:
                logits = network(x).float()  # (B, classes or regions, H, W)
                value = self.criterion(logits, labels, *weights)
            known = labels != IGNORED  # (B, H, W)
            predicted = class_probabilities(logits, self.spec).argmax(dim=1)
            pairs = labels[known].long() * classes + predicted[known]
            confusion += torch.bincount(pairs, minlength=classes**2).reshape(classes, classes).cpu()
            loss += value.item() * int(known.sum())
        return self.team.total(confusion), self.team.total(loss)


def _dice(confusion: torch.Tensor, names: list[str]) -> dict[str, float]:
    """Return 2 |A ∩ B| / (|A| + |B|) of each foreground class that the truth has."""
    truth, predicted = confusion.sum(dim=1), confusion.sum(dim=0)
    return {
        name: float(2 * confusion[i, i] / (truth[i] + predicted[i]))
        for i, name in enumerate(names)
        if i > 0 and truth[i] > 0
    }
