"""Bags for the tests of slide labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from pyhisto.features.bags import list_bags, write_bag
from pyhisto.mil.data import LabelledBags, label_bags
from pyhisto.mil.labels import label_table

Array = np.ndarray[Any, Any]


def write_bags(folder: Path, bags: Sequence[Array], **attributes: Any) -> Path:
    """Write bags as ``s000.h5``, ``s001.h5`` and so on."""
    folder.mkdir(exist_ok=True)
    for number, features in enumerate(bags):
        write_bag(folder / f"s{number:03}.h5", features, attributes={"name": f"s{number:03}", **attributes})
    return folder


def labelled(folder: Path, labels: Sequence[str], patients: Sequence[str] | None = None) -> LabelledBags:
    """Return written bags with one label."""
    bags = list_bags(folder)
    names = [bag.name for bag in bags]
    table = label_table(names, patients or names, [{"label": value} for value in labels], ["label"])
    return label_bags(bags, table)[0]


def digit_bags(count: int, size: int, *, digits: slice, seed: int) -> tuple[list[Array], list[Array]]:
    """Return bags of handwritten digits, (size, 64), and which of their instances are a nine.

    Every second bag has nines: one, or up to a tenth of the bag. `digits` are those of scikit-learn's set to draw from.
    """
    order = np.random.default_rng(0).permutation(1797)[digits]  # the set is in the order of its writers
    images, truth = (part[order] for part in load_digits(return_X_y=True))
    images = (images / 16).astype(np.float32)
    rng = np.random.default_rng(seed)
    nines, others = np.flatnonzero(truth == 9), np.flatnonzero(truth != 9)
    bags, marks = [], []
    for number in range(count):
        chosen = rng.choice(others, size)
        if number % 2:
            many = rng.integers(1, max(size // 10, 1) + 1)
            chosen[rng.choice(size, many, replace=False)] = rng.choice(nines, many)
        bags.append(images[chosen])
        marks.append(truth[chosen] == 9)
    return bags, marks


def two_kinds(count: int, seed: int = 0, width: int = 6) -> list[Array]:
    """Return bags of 3 to 8 instances, of which every second bag has one that is far off in its first feature."""
    rng = np.random.default_rng(seed)
    bags = []
    for number in range(count):
        bag = rng.normal(size=(rng.integers(3, 9), width)).astype(np.float32)
        bag[0, 0] += 6.0 * (number % 2)
        bags.append(bag)
    return bags
