"""Weights that make a network learn the gaps between nuclei (Ronneberger 2015)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.ndimage as ndi

from pyhisto.errors import ConfigError

__all__ = ["BoundaryWeights"]

REACH_SIGMA = 3.0
"""Gaps wider than this, in sigma, weigh no more than the rest: at three sigma 1.1 % of w0 is left."""


@dataclass(frozen=True)
class BoundaryWeights:
    """U-Net's weight map: ``w(x) = 1 + w0 exp(-(d1 + d2)^2 / (2 sigma^2))`` (Ronneberger 2015, equation 2).

    d1 and d2 are the distances of a pixel to the borders of the nearest and the second nearest nucleus. Pixels of
    nuclei weigh 1; so do those where d1 + d2 is more than three sigma. The equation's class weights belong to the loss.

    Attributes
    ----------
    w0
        Weight that the narrowest gaps gain; 0 or more.
    sigma_um
        Width of the gaps that gain, in µm.

    Raises
    ------
    ConfigError
        If a value is out of range.
    """

    w0: float = 10.0
    sigma_um: float = 2.5

    def __post_init__(self) -> None:
        if not 0 <= self.w0 < math.inf:
            raise ConfigError(f"w0 {self.w0:g}", expected="0 or more")
        if not 0 < self.sigma_um < math.inf:
            raise ConfigError(f"sigma_um {self.sigma_um:g}", expected="more than 0")

    def margin(self, mpp: float) -> int:
        """Return how many pixels beyond a patch can change its weights."""
        return math.ceil(REACH_SIGMA * self.sigma_um / mpp) + 1

    def weigh(self, instances: npt.NDArray[np.int32], mpp: float) -> npt.NDArray[np.float32]:
        """Return the weight of each pixel.

        Parameters
        ----------
        instances
            int32 (height, width): 0 for none, else which nucleus; with :meth:`margin` pixels around what is wanted.
        mpp
            Pixel size in µm.

        Returns
        -------
        numpy.ndarray
            float32 (height, width), 1 or more.
        """
        reach = self.margin(mpp)
        first = np.full(instances.shape, np.inf, dtype=np.float32)
        second = first.copy()
        numbers, compact = np.unique(instances, return_inverse=True)
        compact = compact.reshape(instances.shape) + int(numbers[0] != 0)  # 0 for none
        for number, box in enumerate(ndi.find_objects(compact), start=1):
            grown = tuple(slice(max(0, side.start - reach), side.stop + reach) for side in box)
            distance = ndi.distance_transform_edt(compact[grown] != number).astype(np.float32) - 0.5
            nearest, next_nearest = first[grown], second[grown]
            next_nearest[...] = np.minimum(next_nearest, np.maximum(nearest, distance))
            nearest[...] = np.minimum(nearest, distance)
        gap = (first + second) * mpp
        weights = np.ones(instances.shape, dtype=np.float32)
        narrow = (instances == 0) & (gap <= REACH_SIGMA * self.sigma_um)
        weights[narrow] += self.w0 * np.exp(-(gap[narrow] ** 2) / (2 * self.sigma_um**2))
        return weights
