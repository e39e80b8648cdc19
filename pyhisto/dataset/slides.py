"""Open slides: a few at a time, each process its own."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence

from pyhisto.dataset.images import TrainingImage
from pyhisto.slide import Slide

__all__ = ["OpenSlides"]

LIMIT = 16
"""Slides that a process keeps open; the one that was not used for longest is closed."""


class OpenSlides:
    """The slides of some images, opened when they are first needed.

    Parameters
    ----------
    images
        Their slides are meant.
    limit
        How many are kept open.
    """

    def __init__(self, images: Sequence[TrainingImage], *, limit: int = LIMIT) -> None:
        self._images = images
        self._limit = limit
        self._open: OrderedDict[int, Slide] = OrderedDict()
        self._process = os.getpid()

    def __getitem__(self, number: int) -> Slide:
        """Return the open slide of an image."""
        if self._process != os.getpid():  # forked: files are not shared with the parent
            self._open, self._process = OrderedDict(), os.getpid()
        if number not in self._open:
            while len(self._open) >= self._limit:
                self._open.popitem(last=False)[1].close()
            self._open[number] = self._images[number].open()
        self._open.move_to_end(number)
        return self._open[number]

    def __len__(self) -> int:
        """Return how many slides are open."""
        return len(self._open)

    def close(self) -> None:
        """Close all of them; they are opened again when they are needed."""
        while self._open:
            self._open.popitem()[1].close()
