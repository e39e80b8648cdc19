"""Files in which the classical benchmarks of multiple-instance learning are handed on: ``.svm`` and ``.mat``.

Andrews, Tsochantaridis and Hofmann (2003) gave musk, elephant, fox and tiger out as sparse text and for MATLAB;
Cheplygina and Tax (2015) gave these and others, such as the breast images of UCSB, out as PRTools data sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyhisto.errors import ConfigError

__all__ = ["read_mat", "read_svm"]

Arrays = dict[str, npt.NDArray[Any]]


def read_svm(path: Path) -> Arrays:
    """Read sparse text, an instance a line: ``instance:bag:label``, then ``number:value`` of what is not 0.

    Lines that begin with ``#`` and what follows a ``#`` do not count. Features are numbered from 1, or from 0 where one
    has this number.

    Returns
    -------
    dict
        ``features`` float32 (n, d), ``bags`` and ``labels`` text (n,).

    Raises
    ------
    ConfigError
        If the file cannot be read or a line is something else.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error})", expected="instance:bag:label number:value ...") from error
    bags, labels, cells = [], [], []
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            _, bag, label = words[0].split(":")
            own = [(int(place), float(value)) for place, _, value in (word.partition(":") for word in words[1:])]
            if min((place for place, _ in own), default=0) < 0:
                raise ValueError("a feature with a negative number")
        except ValueError as error:
            raise ConfigError(
                f"{path}, line {number}: {line[:40]!r} ({error})", expected="instance:bag:label number:value ..."
            ) from error
        bags.append(bag)
        labels.append(label)
        cells += [(len(bags) - 1, place, value) for place, value in own]
    if not cells:
        raise ConfigError(f"{path} has no features", expected="instance:bag:label number:value ...")
    rows, places, values = (np.array(part) for part in zip(*cells, strict=True))
    first = min(1, int(places.min()))
    features = np.zeros((len(bags), int(places.max()) + 1 - first), dtype=np.float32)
    features[rows, places - first] = values
    return {"features": features, "bags": np.array(bags), "labels": np.array(labels)}


def read_mat(path: Path) -> Arrays:
    """Read ``features`` (n, d), ``bag_ids`` and ``labels`` of MATLAB, sparse or not, or a PRTools data set ``x``.

    Returns
    -------
    dict
        ``features`` float32 (n, d), ``bags`` and ``labels`` (n,).

    Raises
    ------
    ConfigError
        If the file cannot be read or has something else in it.
    """
    from scipy.io.matlab import MatReadError, loadmat

    try:
        found = loadmat(path)
    except NotImplementedError as error:
        raise ConfigError(f"{path} is of MATLAB 7.3", remedy="save it as version 7") from error
    except (MatReadError, OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read ({error})", expected="a file of MATLAB") from error
    names = sorted(name for name in found if not name.startswith("__"))
    if {"features", "bag_ids", "labels"} <= set(names):
        parts = [found[name] for name in ("features", "bag_ids", "labels")]
    else:
        parts = _of_prtools(found)
    if not parts:
        raise ConfigError(
            f"{path} holds {', '.join(names) or 'nothing'}",
            expected="features, bag_ids and labels, or x with data, nlab and ident.milbag",
        )
    features, bags, labels = (part.toarray() if hasattr(part, "toarray") else np.asarray(part) for part in parts)
    if features.ndim != 2 or not bags.size == labels.size == len(features):
        raise ConfigError(
            f"{path}: features of shape {features.shape}, {bags.size} bags, {labels.size} labels",
            expected="a bag and a label for each row of features",
        )
    return {"features": features.astype(np.float32), "bags": _flat(bags), "labels": _flat(labels)}


def _of_prtools(found: Mapping[str, Any]) -> list[Any]:
    """Return features, bags and labels of a PRTools data set; empty for none. Structures are arrays (1, 1)."""
    try:
        data = found["x"][0, 0]
        return [data["data"], data["ident"][0, 0]["milbag"], data["nlab"]]
    except (KeyError, ValueError, IndexError, TypeError):
        return []


def _flat(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return what is one a row as (n,); cells with text as text."""
    plain = [value.item() if isinstance(value, np.ndarray) else value for value in values.ravel().tolist()]
    return np.array(plain)
