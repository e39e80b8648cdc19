"""Bags with their labels, and reading them ahead of a training without keeping them all in memory."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyhisto.errors import ConfigError
from pyhisto.features.bags import Bag
from pyhisto.inference.stages import mapped_ahead
from pyhisto.mil.labels import LabelTable, Task, row_finder

__all__ = ["BagReader", "Batch", "LabelledBags", "check_alike", "label_bags"]


@dataclass(frozen=True)
class LabelledBags:
    """Bags of one encoder with their labels.

    Attributes
    ----------
    tasks
        What labels there are.
    bags
        The feature files.
    patients
        Of each bag.
    labels
        int64 (bags, tasks), :data:`pyhisto.mil.labels.UNKNOWN` where not known.
    """

    tasks: tuple[Task, ...]
    bags: tuple[Bag, ...]
    patients: tuple[str, ...]
    labels: npt.NDArray[np.int64]

    def take(self, which: npt.NDArray[Any]) -> LabelledBags:
        """Return some of them, by their numbers or by a mask."""
        chosen = np.arange(len(self.bags))[which]
        return replace(
            self,
            bags=tuple(self.bags[i] for i in chosen),
            patients=tuple(self.patients[i] for i in chosen),
            labels=self.labels[chosen],
        )


def label_bags(bags: Sequence[Bag], table: LabelTable) -> tuple[LabelledBags, list[str]]:
    """Bring bags and labels together by the name of the slide, with or without the ending of its file.

    Parameters
    ----------
    bags
        Feature files.
    table
        Labels. The patient is that of the table, else that of the file, else the slide itself.

    Returns
    -------
    tuple
        The bags that have a label, and sentences about those without one and about slides without a file.

    Raises
    ------
    ConfigError
        If two files belong to one slide, none does to any, or the bags are not of one encoder.
    """
    find = row_finder(table.slides)
    of_row: dict[int, Bag] = {}
    strays = []
    for bag in bags:
        row = find(bag.name)
        row = find(bag.path.stem) if row is None else row
        if row is None or (table.labels[row] < 0).all():
            strays.append(bag.name)
        elif row in of_row:
            raise ConfigError(
                f"{of_row[row].path.name} and {bag.path.name} both belong to the slide {table.slides[row]!r}",
                expected="one feature file for each slide",
            )
        else:
            of_row[row] = bag
    if not of_row:
        raise ConfigError(
            f"none of {len(bags)} feature files has a label (the first is of the slide {bags[0].name!r})",
            expected=f"slides such as {table.slides[0]!r}" if table.slides else "labels",
        )
    notes = []
    if strays:
        notes.append(f"{len(strays)} feature files without a label are left out, the first of {strays[0]!r}")
    missing = [slide for number, slide in enumerate(table.slides) if number not in of_row]
    if missing:
        notes.append(f"{len(missing)} slides with a row have no label or no feature file, the first is {missing[0]!r}")
    chosen = sorted(of_row)
    labelled = LabelledBags(
        table.tasks,
        tuple(of_row[row] for row in chosen),
        tuple(table.patients[row] or of_row[row].patient or table.slides[row] for row in chosen),
        table.labels[chosen],
    )
    check_alike(labelled.bags)
    return labelled, notes


def check_alike(bags: Sequence[Bag]) -> None:
    """Refuse bags that are empty or not all of one encoder.

    Raises
    ------
    ConfigError
        If it is so.
    """
    first = bags[0]
    for bag in bags:
        if bag.instances == 0:
            raise ConfigError(f"{bag.path} has no instance", expected="one or more", remedy="leave the slide out")
        if (bag.encoder, bag.encoder_sha256, bag.width) != (first.encoder, first.encoder_sha256, first.width):
            raise ConfigError(
                f"{first.path.name} has {first.width} features of {_encoder(first)}, "
                f"{bag.path.name} {bag.width} of {_encoder(bag)}",
                expected="features of one encoder",
            )


@dataclass(frozen=True)
class Batch:
    """Bags laid end to end.

    Attributes
    ----------
    numbers
        Which bags, in the order of the reader.
    instances
        float32 (instances of all, width).
    offsets
        int64 (bags + 1,), where they begin and end; None for a single bag.
    """

    numbers: tuple[int, ...]
    instances: Tensor
    offsets: Tensor | None


class BagReader:
    """Reads bags ahead in threads, and keeps as many of them as fit into some memory.

    Parameters
    ----------
    bags
        Feature files.
    memory
        Bytes of features to keep; those that were read first stay, since every epoch needs all of them once.
    threads
        How many read.
    """

    def __init__(self, bags: Sequence[Bag], *, memory: int, threads: int) -> None:
        self._bags = bags
        self._threads = threads
        self._room = memory
        self._kept: dict[int, Tensor] = {}
        self._lock = threading.Lock()

    def batches(self, groups: Iterable[Sequence[int]], most: int | None = None) -> Generator[Batch, None, None]:
        """Yield batches in order.

        Parameters
        ----------
        groups
            The numbers of the bags of each batch.
        most
            Take so many instances of a larger bag, drawn by torch's global generator; None for all.

        Raises
        ------
        ConfigError
            If a file cannot be read, or has a feature that is no finite number.
        """
        wanted = [tuple(group) for group in groups]
        numbers = [number for group in wanted for number in group]
        with closing(self._in_order(numbers)) as read:
            for group in wanted:
                parts = [_drawn(next(read), most) for _ in group]
                if len(parts) == 1:
                    yield Batch(group, parts[0], None)
                    continue
                lengths = torch.tensor([0, *(len(part) for part in parts)])
                yield Batch(group, torch.cat(parts), lengths.cumsum(0))

    def _in_order(self, numbers: Sequence[int]) -> Generator[Tensor, None, None]:
        if all(number in self._kept for number in numbers):  # threads would only be in the way
            yield from (self._kept[number] for number in numbers)
        else:
            yield from mapped_ahead(self._read, numbers, threads=self._threads, ahead=self._threads)

    def _read(self, number: int) -> Tensor:
        kept = self._kept.get(number)
        if kept is not None:
            return kept
        bag = self._bags[number]
        out = torch.from_numpy(np.ascontiguousarray(bag.features, dtype=np.float32))
        if not torch.isfinite(out).all():
            raise ConfigError(f"{bag.path} has a feature that is no finite number", remedy="make the file again")
        with self._lock:
            size = out.nbytes
            if size <= self._room and number not in self._kept:
                self._kept[number] = out
                self._room -= size
        return out


def _drawn(instances: Tensor, most: int | None) -> Tensor:
    if most is None or len(instances) <= most:
        return instances
    return instances[torch.randperm(len(instances))[:most]]


def _encoder(bag: Bag) -> str:
    return f"{bag.encoder or 'an unnamed encoder'} ({bag.encoder_sha256[:12] or 'no sha256'})"
