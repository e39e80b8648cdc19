"""Losses that leave out pixels nobody labelled. Importing this package loads no torch; :func:`build_loss` does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyhisto.losses.settings import LOSSES, LossSettings

if TYPE_CHECKING:
    from pyhisto.losses.masked import MaskedLoss

__all__ = ["LOSSES", "LossSettings", "build_loss"]


def build_loss(settings: LossSettings, *, classes: int, regions: tuple[tuple[int, ...], ...] = ()) -> MaskedLoss:
    """Build the loss of a training, a ``torch.nn.Module``.

    Parameters
    ----------
    settings
        Which loss, and its weights.
    classes
        Number of classes in the label maps, background included.
    regions
        For region-based targets: the classes that each region covers. The network then has one output for each region,
        which goes through a sigmoid; without regions it has one for each class, which go through a softmax together.

    Returns
    -------
    torch.nn.Module
        See :meth:`pyhisto.losses.masked.MaskedLoss.forward`.

    Raises
    ------
    ConfigError
        If there are fewer than two classes, a region is empty, covers a class twice or one that is not there, or there
        is not one weight for each class or region.
    """
    from pyhisto.losses.masked import MaskedLoss

    return MaskedLoss(settings, classes=classes, regions=regions)
