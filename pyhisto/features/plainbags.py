"""Bags of others: tables, npz and HDF5 files with features and labels become feature files and a table of labels."""

from __future__ import annotations

import csv
import re
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pyhisto.errors import ConfigError
from pyhisto.features.bags import SUFFIXES, write_bag
from pyhisto.features.benchmarks import read_mat, read_svm

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["LABELS_FILE", "PlainBag", "PlainColumns", "import_bags", "read_plain_bags"]

LABELS_FILE = "labels.csv"

BAG_NAMES = ("bag", "bag_id", "bag_name", "bags", "slide", "slide_id", "molecule_name")
LABEL_NAMES = ("label", "labels", "class", "bag_label", "target", "y")
PATIENT_NAMES = ("patient", "patient_id", "case", "case_id")
INSTANCE_NAMES = ("instance", "instance_id", "instance_name", "instance_label", "conformation_name")
"""Columns that are known by their names; those of instances are no features."""


@dataclass(frozen=True)
class PlainBag:
    """One bag.

    Attributes
    ----------
    name, label, patient
        As text; the patient is empty where none is named.
    features
        float32 (n, d).
    coords
        int64 (n, 2), level-0 px; None where there are none.
    """

    name: str
    label: str
    features: npt.NDArray[np.float32]
    patient: str = ""
    coords: npt.NDArray[np.int64] | None = None


@dataclass(frozen=True)
class PlainColumns:
    """Which columns of a table are what: names, or numbers from 1; negative ones count from the last.

    Attributes
    ----------
    bag, label, patient
        None takes the column that has such a name; else the first one is the bag and the second the label.
    ignored
        Columns that are no features.
    """

    bag: str | None = None
    label: str | None = None
    patient: str | None = None
    ignored: tuple[str, ...] = ()


def read_plain_bags(path: str | Path, columns: PlainColumns | None = None) -> list[PlainBag]:
    """Read bags from a file.

    A table (``.csv``, ``.tsv``, ``.data``, ``.txt``) has one instance a row, with or without a header: the bag, its
    label, and the features. An npz or HDF5 file has ``features`` (n, d); ``bags`` (n,) or ``offsets`` (bags + 1,);
    ``labels``, of the instances (n,) or of the bags in order; and perhaps ``names`` and ``patients`` of the bags in
    order and ``coords`` (n, 2). An HDF5 file may have a group for each bag instead, with ``features``, and ``label``
    as dataset or attribute. What classical benchmarks come in, ``.svm`` and ``.mat``, is told in
    :mod:`pyhisto.features.benchmarks`.

    Parameters
    ----------
    path
        The file.
    columns
        For a table.

    Returns
    -------
    list of PlainBag
        In the order in which they first appear.

    Raises
    ------
    ConfigError
        If it cannot be read, a feature is no finite number, or a bag has no label, or several.
    """
    path = Path(path)
    read = _READERS.get(path.suffix.casefold())
    if read is None:
        bags = _from_table(path, columns or PlainColumns())
    elif columns is None or columns == PlainColumns():
        bags = read(path)
    else:
        raise ConfigError(f"columns for {path}", expected="a table", remedy="leave them out")
    widths = sorted({bag.features.shape[1] for bag in bags})
    if len(widths) != 1:
        raise ConfigError(f"{path}: bags with {widths} features", expected="one number of features")
    for bag in bags:
        if not np.isfinite(bag.features).all():
            raise ConfigError(f"{path}: bag {bag.name!r} has a feature that is no finite number")
    return bags


def import_bags(bags: Sequence[PlainBag], folder: str | Path, *, encoder: str = "plain") -> list[Path]:
    """Write bags as feature files, and their labels as ``labels.csv``; the folder appears whole or not at all.

    Parameters
    ----------
    bags
        All of the same width, of different names.
    folder
        Must not exist, or be an empty folder.
    encoder
        Name of what made the features, by which models know whether they fit.

    Returns
    -------
    list of Path
        The feature files, in the order of the bags.

    Raises
    ------
    ConfigError
        If the folder holds something already, or two bags have the same name.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists already", remedy="choose another folder or remove it")
    twice = [name for name, count in Counter(bag.name for bag in bags).items() if count > 1]
    if twice:
        raise ConfigError(f"two bags with the name {twice[0]!r}", expected="a name for each")
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = folder.parent / f".{folder.name}-{uuid.uuid4().hex[:8]}.tmp"
    work.mkdir()
    try:
        names = _file_names([bag.name for bag in bags])
        for bag, name in zip(bags, names, strict=True):
            said = {"name": bag.name, "patient": bag.patient, "encoder": encoder, "encoder_sha256": ""}
            write_bag(work / name, bag.features, bag.coords, said)
        with (work / LABELS_FILE).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["bag", "patient", "label"])
            writer.writerows([bag.name, bag.patient, bag.label] for bag in bags)
        if folder.exists():
            folder.rmdir()
        work.replace(folder)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return [folder / name for name in names]


def _file_names(names: Sequence[str]) -> list[str]:
    """Return a different file name for each bag."""
    out: list[str] = []
    taken: set[str] = set()
    for number, name in enumerate(names, 1):
        plain = re.sub(r"[^\w.() -]+", "_", name).strip(" .") or "bag"
        if plain.casefold() in taken:
            plain = f"{plain}-{number}"
        taken.add(plain.casefold())
        out.append(f"{plain}{SUFFIXES[0]}")
    return out


def _from_table(path: Path, columns: PlainColumns) -> list[PlainBag]:
    import pandas as pd

    try:
        first = path.read_text("utf-8-sig").split("\n", 1)[0]
        separator = next((mark for mark in ",;\t" if mark in first), r"\s+")
        cells = pd.read_csv(
            path, sep=separator, header=None, dtype=str, keep_default_na=False, encoding="utf-8-sig", comment=None
        )
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as a table ({error})", expected="bag, label, features") from error
    header = [str(cell).strip() for cell in cells.iloc[0]]
    if _is_header(header):
        cells = cells.iloc[1:]
    else:
        header = []
    bag = _place(columns.bag, BAG_NAMES, header, cells.shape[1])
    label = _place(columns.label, LABEL_NAMES, header, cells.shape[1])
    patient = _place(columns.patient, PATIENT_NAMES, header, cells.shape[1])
    bag = 0 if bag is None else bag
    label = (1 if bag == 0 else 0) if label is None else label
    instance = [k for k, name in enumerate(header) if name.casefold() in INSTANCE_NAMES]
    ignored = [_place(name, (), header, cells.shape[1]) for name in columns.ignored]
    others = [k for k in range(cells.shape[1]) if k not in (bag, label, patient, *instance, *ignored)]
    if not others or cells.shape[0] == 0:
        raise ConfigError(f"{path} has no features", expected="one instance a row: bag, label, features")
    return _grouped(
        path,
        _numbers(path, cells.iloc[:, others]),
        [_plain(value) for value in cells.iloc[:, bag]],
        [_plain(value) for value in cells.iloc[:, label]],
        None if patient is None else [_plain(value) for value in cells.iloc[:, patient]],
    )


def _is_header(cells: Sequence[str]) -> bool:
    """Return whether the first row of a table names its columns."""
    known = {*BAG_NAMES, *LABEL_NAMES}
    return any(cell.casefold() in known for cell in cells) or not any(_is_number(cell) for cell in cells)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _place(wanted: str | None, names: Sequence[str], header: Sequence[str], width: int) -> int | None:
    """Return the number of a column, from 0; None if none was asked for and none has one of the names."""
    if wanted is None:
        return next((k for k, name in enumerate(header) if name.casefold() in names), None)
    if wanted in header:
        return list(header).index(wanted)
    if re.fullmatch(r"-?\d+", wanted) and 1 <= abs(int(wanted)) <= width:
        return int(wanted) - 1 if int(wanted) > 0 else width + int(wanted)
    found = ", ".join(header[:8]) or f"{width} columns without names"
    raise ConfigError(f"no column {wanted!r}", expected=f"one of {found}")


def _numbers(path: Path, cells: pd.DataFrame) -> npt.NDArray[np.float32]:
    try:
        return cells.to_numpy().astype(np.float32)
    except ValueError:
        row, column = next(place for place, cell in np.ndenumerate(cells.to_numpy()) if not _is_number(cell))
        raise ConfigError(
            f"{path}: {cells.iat[row, column]!r} as feature {column + 1} of instance {row + 1}",
            expected="a number",
            remedy="name columns that are no features with --ignore-column",
        ) from None


def _plain(value: Any) -> str:
    """Return a name or label as text; a whole number with a decimal point without it: ``1``, ``1.`` and ``1.0``."""
    text = (value.decode() if isinstance(value, bytes) else str(value)).strip()
    if re.fullmatch(r"[+-]?\d+\.\d*(e[+-]?\d+)?", text) and float(text).is_integer():
        return str(int(float(text)))
    return text


def _grouped(
    path: Path,
    features: npt.NDArray[np.float32],
    bags: Sequence[str],
    labels: Sequence[str],
    patients: Sequence[str] | None = None,
    coords: npt.NDArray[np.int64] | None = None,
) -> list[PlainBag]:
    """Return the bags of instances, each of which says its bag, label and patient."""
    rows: dict[str, list[int]] = {}
    for number, name in enumerate(bags):
        rows.setdefault(name, []).append(number)
    out = []
    for name, own in rows.items():
        said = [sorted({values[k] for k in own}) for values in (labels, patients or [""] * len(labels))]
        for what, found in zip(("label", "patient"), said, strict=True):
            if len(found) != 1 or (what == "label" and found == [""]):
                raise ConfigError(
                    f"{path}: bag {name!r} has the {what}s {', '.join(found[:4]) or 'none'}",
                    expected="one",
                    remedy="say which columns are bag and label with --bag-column and --label-column",
                )
        corners = None if coords is None else coords[own]
        out.append(PlainBag(name, said[0][0], features[own], said[1][0], corners))
    return out


def _from_npz(path: Path) -> list[PlainBag]:
    import zipfile

    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path} cannot be read ({error})", expected="an npz file of numbers and text") from error
    return _from_arrays(path, arrays)


def _from_hdf5(path: Path) -> list[PlainBag]:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            groups = {name: part for name, part in file.items() if isinstance(part, h5py.Group)}
            if groups and "features" not in file:
                return [_from_group(path, name, group) for name, group in groups.items()]
            arrays = {name: part[()] for name, part in file.items() if isinstance(part, h5py.Dataset)}
    except OSError as error:
        raise ConfigError(f"{path} cannot be read as HDF5 ({error})") from error
    return _from_arrays(path, arrays)


def _from_group(path: Path, name: str, group: Any) -> PlainBag:
    said = {key: group[key][()] if key in group else group.attrs.get(key) for key in ("features", "label", "patient")}
    if (
        said["features"] is None
        or np.ndim(said["features"]) != 2
        or np.size(said["label"]) != 1
        or said["label"] is None
    ):
        raise ConfigError(f"{path}: group {name!r}", expected="features (n, d) and one label")
    patient = "" if said["patient"] is None else _plain(np.ravel(said["patient"])[0])
    coords = np.asarray(group["coords"][()], dtype=np.int64) if "coords" in group else None
    features = np.asarray(said["features"], dtype=np.float32)
    return PlainBag(name, _plain(np.ravel(said["label"])[0]), features, patient, coords)


def _from_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> list[PlainBag]:
    """Return the bags of one array of features with arrays that say which instance is whose."""
    missing = [name for name in ("features", "labels") if name not in arrays]
    if missing or ("bags" in arrays) == ("offsets" in arrays) or np.ndim(arrays["features"]) != 2:
        raise ConfigError(
            f"{path} holds {', '.join(sorted(arrays)) or 'nothing'}",
            expected="features (n, d), labels, and bags (n,) or offsets (bags + 1,)",
        )
    count = len(arrays["features"])
    of_instance, order = _membership(path, arrays, count)
    per_bag = {name: _texts(arrays[name]) for name in ("names", "patients") if name in arrays}
    for name, values in per_bag.items():
        if len(values) != len(order):
            raise ConfigError(f"{path}: {len(values)} {name}", expected=f"{len(order)}, one a bag")
    labels = _texts(arrays["labels"])
    if len(labels) == len(order):
        labels = [labels[k] for k in of_instance]
    elif len(labels) != count:
        raise ConfigError(f"{path}: {len(labels)} labels", expected=f"{len(order)} (one a bag) or {count}")
    names = per_bag.get("names", order)
    coords = arrays.get("coords")
    return _grouped(
        path,
        np.asarray(arrays["features"], dtype=np.float32),
        [names[k] for k in of_instance],
        labels,
        [per_bag["patients"][k] for k in of_instance] if "patients" in per_bag else None,
        None if coords is None else np.asarray(coords, dtype=np.int64).reshape(count, 2),
    )


def _membership(path: Path, arrays: Mapping[str, npt.NDArray[Any]], count: int) -> tuple[list[int], list[str]]:
    """Return the number of the bag of each instance, and the names of the bags in order.

    The order of bags by number or name is that of the file; if the two differ, what is said a bag would be ambiguous.
    """
    if "offsets" in arrays:
        offsets = np.asarray(arrays["offsets"], dtype=np.int64).ravel()
        if len(offsets) < 2 or offsets[0] != 0 or offsets[-1] != count or (np.diff(offsets) < 1).any():
            raise ConfigError(f"{path}: offsets {offsets[:4].tolist()}…", expected=f"rising from 0 to {count}")
        sizes = np.diff(offsets)
        return np.repeat(np.arange(len(sizes)), sizes).tolist(), [str(k) for k in range(len(sizes))]
    if np.shape(arrays["bags"]) != (count,):
        raise ConfigError(f"{path}: bags of shape {np.shape(arrays['bags'])}", expected=f"({count},)")
    _, first, number = np.unique(arrays["bags"], return_index=True, return_inverse=True)
    said_a_bag = len(arrays["labels"]) != count or "names" in arrays or "patients" in arrays
    if said_a_bag and (np.diff(first) < 0).any():
        raise ConfigError(f"{path}: bags that are not sorted, with one label a bag", expected="labels of the instances")
    return number.tolist(), _texts(arrays["bags"][first])


def _texts(values: Iterable[Any]) -> list[str]:
    return [_plain(value) for value in np.ravel(np.asarray(values)).tolist()]


_READERS: dict[str, Callable[[Path], list[PlainBag]]] = {
    ".mat": lambda path: _from_arrays(path, read_mat(path)),
    ".npz": _from_npz,
    ".svm": lambda path: _from_arrays(path, read_svm(path)),
    **dict.fromkeys(SUFFIXES, _from_hdf5),
}
"""By the ending of the file's name; all others are tables."""
