"""Losses of heads that are more than a cross-entropy."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from pyhisto.models.mil.segments import Bags

__all__ = ["clustering_loss", "smooth_top1_svm"]


def smooth_top1_svm(scores: Tensor, labels: Tensor, margin: float = 1.0, temperature: float = 1.0) -> Tensor:
    """Return the smooth top-1 SVM loss of each row (Berrada et al. 2018, "Smooth Loss Functions for Deep Top-k ...").

    The smooth loss of the paper for k = 1, where its sums over subsets are sums over classes::

        L(s, y) = t log sum_j exp((m [j != y] + s_j) / t) - s_y

    which for two classes is t log(1 + exp((m + s_other - s_y) / t)). As t falls to 0 it becomes the hinge loss
    max_j (m [j != y] + s_j) - s_y.

    Parameters
    ----------
    scores
        (n, C) float, scores of the classes.
    labels
        (n,) int64, the true class of each row.
    margin
        m, by how much the true class should lead.
    temperature
        t > 0, how smooth the maximum is.

    Returns
    -------
    torch.Tensor
        (n,) of the type of `scores`.
    """
    lead = margin * (1 - functional.one_hot(labels, scores.shape[1]).to(scores.dtype))
    return temperature * functional.cross_entropy((scores + lead) / temperature, labels, reduction="none")


def clustering_loss(
    scores: Tensor, attention: Tensor, bags: Bags, labels: Tensor, clustered: int, exclusive: bool
) -> Tensor:
    """Return the instance clustering loss of CLAM for each bag (Lu et al. 2021, Methods, "Instance-level clustering").

    In the branch of the bag's own class, the instances with the highest attention should be of the class and those
    with the lowest should not; if classes exclude each other, those with the highest attention of every other branch
    should not be of its class. The smooth top-1 SVM loss of these pseudo-labels is averaged over the instances of a
    branch and, if classes exclude each other, over the branches. A bag of n < 2 * `clustered` has n // 2 high and as
    many low ones, so that no instance gets both labels; a bag of one has no clustering loss.

    Parameters
    ----------
    scores
        (N, C, 2) float, "is not" and "is" of the instance classifier of each class.
    attention
        (N,) float, or (N, C) where every class has its own.
    bags
        Whose instances they are.
    labels
        (B,) int64, the class of each bag.
    clustered
        B in the paper, instances at either end.
    exclusive
        Whether the other classes' branches learn, too ("subtyping" in the paper's code).

    Returns
    -------
    torch.Tensor
        (B,) of the type of `scores`.
    """
    classes = scores.shape[1]
    ranked = attention.detach()
    ranked = ranked[:, None].expand(-1, classes) if ranked.ndim == 1 else ranked
    losses = []
    for own, weights, bag_scores in zip(
        labels.tolist(), torch.split(ranked, bags.lengths), torch.split(scores, bags.lengths), strict=True
    ):
        few = min(clustered, len(weights) // 2)
        if few == 0:
            losses.append(bag_scores.sum() * 0)
            continue
        low = weights[:, own].topk(few, largest=False).indices
        branches = []
        for branch in range(classes) if exclusive else (own,):
            high = weights[:, branch].topk(few).indices
            chosen = torch.cat([high, low]) if branch == own else high
            truth = torch.zeros(len(chosen), dtype=torch.int64, device=scores.device)
            truth[:few] = int(branch == own)
            branches.append(smooth_top1_svm(bag_scores[chosen, branch], truth).mean())
        losses.append(torch.stack(branches).mean())
    return torch.stack(losses)
