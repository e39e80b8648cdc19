"""The loss: worked out by hand, and blind to what nobody labelled."""

from __future__ import annotations

import math

import pytest
import torch

from pyhisto.dataset import IGNORED
from pyhisto.losses import DiceCrossEntropy


def logits_of(*pixels: tuple[float, ...]) -> torch.Tensor:
    """Return logits (1, classes, 1, pixels) whose softmax gives the probabilities of each pixel."""
    return torch.tensor(pixels).log().T[None, :, None, :].clone().requires_grad_()


def test_two_pixels_by_hand() -> None:
    # pixel 0: p = (0.75, 0.25), label 0; pixel 1: p = (0.5, 0.5), label 1
    loss = DiceCrossEntropy()(logits_of((0.75, 0.25), (0.5, 0.5)), torch.tensor([[[0, 1]]]))
    entropy = -(math.log(0.75) + math.log(0.5)) / 2
    # class 0: overlap 0.75, p² 0.5625 + 0.25, target 1; class 1: overlap 0.5, p² 0.0625 + 0.25, target 1
    dice_0 = (2 * 0.75 + 1) / (0.5625 + 0.25 + 1 + 1)
    dice_1 = (2 * 0.5 + 1) / (0.0625 + 0.25 + 1 + 1)
    assert loss.item() == pytest.approx(entropy + 1 - (dice_0 + dice_1) / 2, abs=1e-6)


def test_class_weights_by_hand() -> None:
    loss = DiceCrossEntropy(torch.tensor([1.0, 3.0]))(
        logits_of((0.75, 0.25), (0.5, 0.5)), torch.tensor([[[0, 1]]], dtype=torch.uint8)
    )
    plain = DiceCrossEntropy()(logits_of((0.75, 0.25), (0.5, 0.5)), torch.tensor([[[0, 1]]]))
    weighted = -(1 * math.log(0.75) + 3 * math.log(0.5)) / 4
    assert loss.item() - plain.item() == pytest.approx(weighted + (math.log(0.75) + math.log(0.5)) / 2, abs=1e-6)


def test_absent_classes_do_not_count() -> None:
    # only class 0 is there; class 1 must not add its own Dice of 1 / (p² + 1)
    loss = DiceCrossEntropy()(logits_of((0.8, 0.2)), torch.tensor([[[0]]]))
    assert loss.item() == pytest.approx(-math.log(0.8) + 1 - (2 * 0.8 + 1) / (0.64 + 1 + 1), abs=1e-6)


def test_perfect_prediction_costs_nothing() -> None:
    labels = torch.tensor([[[0, 1], [1, IGNORED]]])
    logits = torch.zeros(1, 2, 2, 2)
    logits[0, 0] = torch.tensor([[40.0, -40.0], [-40.0, 3.0]])
    assert DiceCrossEntropy()(logits, labels).item() == pytest.approx(0.0, abs=1e-6)


def test_ignored_pixels_have_no_influence() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 5, 7, requires_grad=True)
    labels = torch.randint(0, 3, (2, 5, 7), dtype=torch.uint8)
    ignored = torch.rand(2, 5, 7) < 0.4
    labels[ignored] = IGNORED
    loss = DiceCrossEntropy()(logits, labels)
    loss.backward()
    assert logits.grad is not None
    gradient = logits.grad.permute(0, 2, 3, 1)
    assert (gradient[ignored] == 0).all()
    assert (gradient[~ignored].abs().sum(dim=1) > 0).all()
    changed = logits.detach().clone()
    changed.permute(0, 2, 3, 1)[ignored] += 100 * torch.randn(int(ignored.sum()), 3)
    assert DiceCrossEntropy()(changed, labels).item() == loss.item()


def test_no_labelled_pixel_gives_zero_and_zero_gradient() -> None:
    logits = torch.randn(1, 2, 3, 3, requires_grad=True)
    loss = DiceCrossEntropy()(logits, torch.full((1, 3, 3), IGNORED, dtype=torch.uint8))
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_dice_is_taken_over_the_whole_batch() -> None:
    logits = logits_of((0.9, 0.1), (0.4, 0.6), (0.7, 0.3), (0.2, 0.8))
    labels = torch.tensor([[[0, 1, 0, 1]]])
    together = DiceCrossEntropy()(logits, labels)
    apart = DiceCrossEntropy()(logits.reshape(1, 2, 2, 2).permute(2, 1, 0, 3), labels.reshape(2, 1, 2))
    assert apart.item() == pytest.approx(together.item(), abs=1e-6)
