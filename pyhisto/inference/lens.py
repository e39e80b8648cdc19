"""How a slide is shown to a network that was trained on other slides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["PLAIN", "Lens"]

Rgb: TypeAlias = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Lens:
    """How a slide is shown to a network that was trained on other slides; what is measured stays as it is.

    Attributes
    ----------
    size
        Nucleus size of this slide divided by that of the training slides, at the declared pixel sizes: the network
        sees tiles of ``spec.mpp * size`` µm/px, in which nuclei are as large as it knows them.
    colours
        Gives RGB uint8 (H, W, 3) the stain colours of the training slides; None leaves them.
    """

    size: float = 1.0
    colours: Callable[[Rgb], Rgb] | None = None

    def see(self, rgb: Rgb) -> Rgb:
        """Return a tile in the colours that the network sees."""
        return rgb if self.colours is None else self.colours(rgb)


PLAIN = Lens()
"""Shows a slide as it is."""
