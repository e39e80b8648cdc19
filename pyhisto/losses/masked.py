"""The losses, over the labelled pixels alone.

With pixels x, classes c, truth t_c(x) in {0, 1} and probabilities p_c(x):

* Dice (Milletari 2016, eq. 1, smoothed by 1): ``mean_c 1 - (2 sum_x p_c t_c + 1) / (sum_x p_c² + sum_x t_c + 1)``.
* Generalised Dice (Sudre 2017, section 2.2): ``1 - 2 sum_c w_c sum_x p_c t_c / sum_c w_c sum_x (p_c + t_c)`` with
  ``w_c = 1 / (sum_x t_c)²``.
* Cross-entropy: ``sum_x w(x) -log p_t(x) / sum_x w(x)``, where w(x) is the weight of the class of x.
* Focal (Lin 2017, eq. 5, whose alpha_t is the weight of the class): the same with ``-(1 - p_t)^gamma log p_t``.
* Boundary-weighted cross-entropy (Ronneberger 2015, eq. 1 and 2): the same with
  ``w(x) = w_class(x) + w0 exp(-(d1(x) + d2(x))² / (2 sigma²))``, and divided by the sum of the weights.

With regions (Isensee 2021, nnU-Net's region-based training) each region is a binary problem of its own: t_r(x) says
whether the class of x is one that the region covers, p_r comes from a sigmoid, and cross-entropy and focal loss are the
binary ones, averaged over the regions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss, FocalLoss, GeneralizedDiceLoss
from torch import nn

from pyhisto.dataset import IGNORED
from pyhisto.errors import ConfigError, TrainingError
from pyhisto.losses.settings import LossSettings

__all__ = ["MaskedLoss"]


class MaskedLoss(nn.Module):
    """A loss over the labelled pixels; made by :func:`pyhisto.losses.build_loss`, which documents the parameters.

    Classes and regions without a labelled pixel do not count in Dice. Everything is computed in float32, whatever the
    network computed in.
    """

    def __init__(self, settings: LossSettings, *, classes: int, regions: tuple[tuple[int, ...], ...] = ()) -> None:
        super().__init__()
        _check_outputs(settings, classes, regions)
        self.settings = settings
        self.classes = classes
        self.outputs = len(regions) or classes
        self.by_regions = bool(regions)
        members = [[float(c in region) for c in range(classes)] for region in regions]
        self.register_buffer("members", torch.tensor(members) if regions else torch.eye(classes), persistent=False)
        self.members: torch.Tensor  # (outputs, classes): 1 where an output covers a class
        weights = torch.tensor(settings.class_weights or (1.0,) * self.outputs)
        self.register_buffer("class_weights", weights, persistent=False)
        self.class_weights: torch.Tensor  # (outputs,)
        self.overlap: nn.Module | None = None
        if settings.name == "generalised-dice":
            self.overlap = GeneralizedDiceLoss(batch=True, smooth_nr=0.0, smooth_dr=0.0)
        elif settings.name in ("dice", "dice-ce", "dice-focal"):
            self.overlap = DiceLoss(batch=True, squared_pred=True, smooth_nr=1.0, smooth_dr=1.0)
        self.focal: nn.Module | None = None
        if settings.name in ("focal", "dice-focal"):
            softmax = not self.by_regions
            self.focal = FocalLoss(gamma=settings.focal_gamma, use_softmax=softmax, reduction="none")
        self.by_pixel = settings.name not in ("dice", "generalised-dice")

    def forward(self, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
        """Return the loss, a scalar of float32; zero, with gradients of zero, where no pixel is labelled.

        Parameters
        ----------
        logits
            float (B, C, H, W): one channel for each class, or for each region.
        labels
            integer (B, H, W): class numbers, or 255 where not labelled.
        weights
            float (B, H, W): the weight of each pixel with a class weight of 1, that is, 1 plus the boundary term;
            any loss with a cross-entropy or focal term takes it.

        Raises
        ------
        TrainingError
            If shapes do not fit, a label is no class, or weights are missing or given to a loss that takes none.
        """
        self._check_input(logits, labels, weights)
        with torch.autocast(logits.device.type, enabled=False):
            known = labels != IGNORED  # (B, H, W)
            logits = logits.float().masked_fill(
                ~known[:, None], 0.0
            )  # no value and no gradient passes an ignored pixel
            if not known.any():
                return logits.sum() * 0
            index = labels.long().masked_fill(~known, 0)
            if int(index.max()) >= self.classes:
                raise TrainingError(
                    f"label {int(index.max())} in a batch", expected=f"0 to {self.classes - 1}, or {IGNORED}"
                )
            target = self.members.T[index].permute(0, 3, 1, 2) * known[:, None]  # (B, C, H, W)
            loss = logits.new_zeros(())
            if self.overlap is not None:
                loss = loss + self._overlap_loss(self.overlap, logits, target, known)
            if self.by_pixel:
                importance = self._importance(index, known, weights)  # (B, 1, H, W), or (B, R, H, W)
                cost = self._pixel_cost(logits, index, target)  # of the same shape
                loss = loss + (cost * importance).sum() / importance.sum().clamp_min(torch.finfo(torch.float32).tiny)
            return loss

    def _overlap_loss(
        self, overlap: nn.Module, logits: torch.Tensor, target: torch.Tensor, known: torch.Tensor
    ) -> torch.Tensor:
        """Return the (generalised) Dice loss of the classes that are there, over the batch or averaged over images."""
        activated = torch.sigmoid(logits) if self.by_regions else torch.softmax(logits, dim=1)
        probability = activated * known[:, None]
        size = len(logits) if self.settings.batch_dice else 1
        losses = []
        for p, t in zip(torch.split(probability, size), torch.split(target, size), strict=True):
            present = t.sum(dim=(0, 2, 3)) > 0  # (C,)
            if present.any():
                losses.append(overlap(p[:, present], t[:, present]))
        return torch.stack(losses).mean() if losses else logits.sum() * 0

    def _pixel_cost(self, logits: torch.Tensor, index: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the cross-entropy or focal loss of each pixel: (B, 1, H, W), or (B, R, H, W) of the regions."""
        if self.focal is not None:
            focal: torch.Tensor = self.focal(logits, target)
            return focal if self.by_regions else focal.sum(dim=1, keepdim=True)
        if self.by_regions:
            return F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        return F.cross_entropy(logits, index, reduction="none")[:, None]

    def _importance(self, index: torch.Tensor, known: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
        """Return how much each pixel counts, 0 where not labelled: (B, 1, H, W), or (B, R, H, W) of the regions."""
        if self.by_regions:
            importance = self.class_weights[None, :, None, None].expand(len(index), -1, *index.shape[1:])
        else:
            importance = self.class_weights[index][:, None]
        if weights is not None:
            importance = importance + (weights.float() - 1)[:, None]
        return importance.masked_fill(~known[:, None], 0.0)

    def _check_input(self, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None) -> None:
        if logits.ndim != 4 or logits.shape[1] != self.outputs or labels.shape != logits[:, 0].shape:
            raise TrainingError(
                f"logits of shape {tuple(logits.shape)} with labels of shape {tuple(labels.shape)}",
                expected=f"(B, {self.outputs}, H, W) with (B, H, W)",
            )
        if weights is None:
            if self.settings.name == "boundary-cross-entropy":
                raise TrainingError(
                    "boundary-cross-entropy without a weight for each pixel", remedy="set [boundary] in the study"
                )
            return
        if not self.by_pixel:
            raise TrainingError(f"pixel weights with the loss {self.settings.name}", expected="a loss that takes them")
        if weights.shape != labels.shape:
            raise TrainingError(f"weights of shape {tuple(weights.shape)}", expected=str(tuple(labels.shape)))


def _check_outputs(settings: LossSettings, classes: int, regions: tuple[tuple[int, ...], ...]) -> None:
    if classes < 2:
        raise ConfigError(f"a loss for {classes} classes", expected="background and at least one more")
    for region in regions:
        if not region or len(set(region)) < len(region) or not all(0 < c < classes for c in region):
            raise ConfigError(f"region of the classes {region}", expected=f"different numbers from 1 to {classes - 1}")
    outputs = len(regions) or classes
    if len(settings.class_weights) not in {0, outputs}:
        what = "regions" if regions else "classes"
        raise ConfigError(f"{len(settings.class_weights)} class weights for {outputs} {what}")
