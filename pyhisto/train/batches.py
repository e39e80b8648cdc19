"""Batches of patches, read by processes beside the loop."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader

from pyhisto.errors import PyhistoError
from pyhisto.train.distributed import Team
from pyhisto.train.history import History
from pyhisto.train.settings import TrainSettings

__all__ = ["Batches", "training_batches", "validation_batches"]


class Batches:
    """Batches in order, again at every iteration, and how long the loop waited for them.

    A batch is RGB uint8 (B, H, W, 3), labels uint8 (B, H, W) and, where the data set gives them, weights float32
    (B, H, W); all tensors on the CPU. Which patches come depends on the indices alone, not on the number of workers.

    Parameters
    ----------
    dataset
        A map-style data set that can be pickled.
    indices
        Of the patches of each batch.
    workers
        Processes that read, each with one thread and slides of its own.
    pinned
        Whether the batches lie in memory from which a GPU copies fast.
    """

    def __init__(self, dataset: Any, indices: Sequence[Sequence[int]], *, workers: int, pinned: bool) -> None:
        self._workers = workers
        self._waited = self._passed = 0.0
        self._loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_sampler=indices,  # type: ignore[arg-type]
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            persistent_workers=workers > 0,
            pin_memory=pinned,
            generator=torch.Generator(),  # else each iteration would draw from torch's own
        )

    def __iter__(self) -> Iterator[list[torch.Tensor]]:
        asked = start = time.perf_counter()
        try:
            for number, batch in enumerate(self._loader):
                came = time.perf_counter()
                if number == 0:  # took the start of the workers as well
                    start = came
                else:
                    self._waited += came - asked
                self._passed = came - start
                yield batch
                asked = time.perf_counter()
                self._passed = asked - start
        except PyhistoError as error:
            if self._workers == 0:
                raise
            name = type(error).__name__  # torch put the worker's traceback before the message
            raise type(error)(error.found.rpartition(f"{name}: ")[2]) from error

    @property
    def wait_share(self) -> float:
        """Share of the time since the first batch that the loop waited for the next one, 0 to 1."""
        return self._waited / self._passed if self._passed else 0.0


def training_batches(dataset: Any, settings: TrainSettings, team: Team, history: History) -> Batches:
    """Return this rank's slices of the joint batches of the steps that are left to do.

    Patch ``step * batch_size + i`` is the i-th of the joint batch of a step, however many ranks share it.
    """
    size, part = settings.batch_size, settings.batch_size // team.size
    over = history.is_over(settings.steps, settings.patience)
    steps = () if over else range(len(history.losses), settings.steps)
    starts = [step * size + team.rank * part for step in steps]
    return _batches(dataset, [range(start, start + part) for start in starts], settings, team)


def validation_batches(dataset: Any, settings: TrainSettings, team: Team) -> Batches:
    """Return every `team.size`-th batch of consecutive windows, so that no batch depends on the number of ranks."""
    size, length = settings.batch_size, len(dataset)
    whole = [range(first, min(first + size, length)) for first in range(0, length, size)]
    return _batches(dataset, whole[team.rank :: team.size], settings, team)


def _batches(dataset: Any, indices: Sequence[Sequence[int]], settings: TrainSettings, team: Team) -> Batches:
    workers = settings.workers if indices else 0
    return Batches(dataset, indices, workers=workers, pinned=team.device.type == "cuda")
