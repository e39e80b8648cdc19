"""The smooth top-1 SVM loss against the definition of Berrada et al. (2018), and operations on bags."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from pyhisto.models.mil.losses import smooth_top1_svm
from pyhisto.models.mil.segments import Bags


def by_subsets(scores: np.ndarray, label: int, k: int, margin: float, temperature: float) -> float:
    """The smooth top-k loss as defined, over all subsets of k classes."""
    subsets = list(itertools.combinations(range(len(scores)), k))
    every = [np.exp((margin * (label not in s) + scores[list(s)].mean()) / temperature) for s in subsets]
    with_label = [np.exp(scores[list(s)].mean() / temperature) for s in subsets if label in s]
    return float(temperature * np.log(np.sum(every)) - temperature * np.log(np.sum(with_label)))


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize(("margin", "temperature"), [(1.0, 1.0), (0.5, 0.1)])
def test_the_smooth_svm_is_its_definition_at_k_of_one(classes: int, margin: float, temperature: float) -> None:
    scores = np.random.default_rng(0).normal(size=(6, classes))
    labels = np.arange(6) % classes

    loss = smooth_top1_svm(torch.from_numpy(scores), torch.from_numpy(labels), margin, temperature)

    expected = [by_subsets(row, label, 1, margin, temperature) for row, label in zip(scores, labels, strict=True)]
    np.testing.assert_allclose(loss, expected, rtol=1e-10)


def test_two_classes_by_hand() -> None:
    loss = smooth_top1_svm(torch.tensor([[0.0, 1.0], [0.0, 1.0]], dtype=torch.float64), torch.tensor([1, 0]))
    np.testing.assert_allclose(loss, [np.log(2), np.log(1 + np.e**2)], rtol=1e-12)


def test_a_cold_smooth_svm_is_the_hinge_loss() -> None:
    scores = torch.tensor([[2.0, 0.5, 1.7], [2.0, 0.5, 4.0], [9.0, 0.0, 0.0]], dtype=torch.float64)
    loss = smooth_top1_svm(scores, torch.tensor([0, 0, 0]), temperature=0.01)
    np.testing.assert_allclose(loss, [0.7, 3.0, 0.0], atol=1e-6)


def test_high_scores_do_not_overflow() -> None:
    scores = torch.tensor([[1e4, -1e4]], requires_grad=True)
    loss = smooth_top1_svm(scores, torch.tensor([1])).sum()
    loss.backward()
    assert loss.item() == 20001
    assert scores.grad is not None
    assert scores.grad.tolist() == [[1.0, -1.0]]


def test_bags_reduce_each_by_itself() -> None:
    values = torch.tensor([[1.0, 0.0], [1000.0, 3.0], [1000.0, 1.0], [-2000.0, 2.0], [5.0, -1.0]])
    bags = Bags(5, torch.tensor([0, 1, 4, 5]), values.device)

    assert bags.sum(values).tolist() == [[1, 0], [0, 6], [5, -1]]
    assert bags.mean(values).tolist() == [[1, 0], [0, 2], [5, -1]]
    assert bags.max(values).tolist() == [[1, 0], [1000, 3], [5, -1]]
    assert bags.argmax(values).tolist() == [[0, 0], [1, 1], [4, 4]]
    assert bags.share_of_max(values).tolist() == [[1, 1], [0.5, 1], [0.5, 0], [0, 0], [1, 1]]
    assert bags.softmax(values)[:, 0].tolist() == [1, 0.5, 0.5, 0, 1]


def test_gradients_of_bags_are_those_of_numbers() -> None:
    values = torch.randn(7, 2, dtype=torch.float64, requires_grad=True)
    bags = Bags(7, torch.tensor([0, 1, 5, 7]), values.device)
    for operation in (bags.softmax, bags.sum, bags.mean, bags.max):
        assert torch.autograd.gradcheck(operation, (values,))


def test_a_tie_shares_the_gradient_of_the_maximum() -> None:
    values = torch.tensor([[2.0], [2.0], [1.0]], requires_grad=True)
    Bags(3, None, values.device).max(values).sum().backward()
    assert values.grad is not None
    assert values.grad[:, 0].tolist() == [0.5, 0.5, 0]
