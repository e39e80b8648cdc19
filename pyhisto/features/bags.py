"""Feature files: the instances of one slide, or of any other bag, in one HDF5 file.

::

    features   float32 or float16 (n, d); (1, n, d) is read as well
    coords     int (n, 2), top left corner (x, y) of each tile, level-0 px of the file; not there for plain bags

CLAM (Lu 2021) and TRIDENT (Zhang 2025) name their datasets the same, so that each reads the files of the others. What
is known beside them are attributes of ``coords``, or of the file where there are no corners:

=====================================  =============================================================================
``name``, ``patient``                  of the slide
``patch_size``, ``patch_level``        side of a tile, px of that level; level 0 in files made here
``patch_size_level0``, ``patch_height``  width and height of a tile, level-0 px
``tile_size_px``, ``mpp``              side and µm/px of what the encoder saw
``encoder``, ``encoder_sha256``        what made the features, and of which weights
``normalise``                          stain normalisation of the tiles: ``none`` or ``macenko``
``slide``, ``entry_id``                file name, and id of the image in its project
``frame``, ``origin``                  ``file``, and where the slide's own frame begins in it, (x, y), level-0 px
=====================================  =============================================================================
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from pyhisto.errors import ConfigError

__all__ = ["SUFFIXES", "Bag", "list_bags", "new_bag", "read_bag", "write_bag"]

SUFFIXES = (".h5", ".hdf5")


@dataclass(frozen=True)
class Bag:
    """One feature file; features and corners are read when they are asked for.

    Attributes
    ----------
    path
        The file.
    name, patient
        Of the slide; the patient is empty where the file names none.
    instances, width
        Number of instances, and of numbers of each.
    patch_size, patch_height
        Width and height of a tile, level-0 px; None where the file does not say it.
    encoder, encoder_sha256
        What made the features; empty where the file does not say it.
    entry_id
        Of the image in the project that the slide was read from; empty for none.
    attributes
        All that the file says beside the features.
    """

    path: Path
    name: str
    patient: str
    instances: int
    width: int
    patch_size: int | None = None
    patch_height: int | None = None
    encoder: str = ""
    encoder_sha256: str = ""
    entry_id: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def features(self) -> npt.NDArray[np.float32]:
        """Features, float32 (instances, width), read now.

        What lies in the file in one piece is read past the HDF5 library, whose lock lets one thread in at a time.
        """
        with _opened(self.path) as file:
            data = file["features"]
            kind, offset = data.dtype, data.id.get_offset()
            if offset is None or not kind.isnative:
                out = np.asarray(data[()], dtype=np.float32)
                return out.reshape(self.instances, self.width)
        stored = np.empty((self.instances, self.width), dtype=kind)
        with self.path.open("rb", buffering=0) as raw:
            raw.seek(offset)
            read, view = 0, memoryview(stored.data).cast("B")
            while read < len(view):
                count = raw.readinto(view[read:])
                if not count:
                    raise ConfigError(f"{self.path} ends within its features", remedy="copy or make it again")
                read += count
        return stored.astype(np.float32, copy=False)

    def rows(self, which: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Return the features of some instances, float32 (len(which), width), read now; `which` is ascending."""
        with _opened(self.path) as file:
            data = file["features"]
            found = data[which] if data.ndim == 2 else data[0, which]
        return np.asarray(found, dtype=np.float32)

    @property
    def coords(self) -> npt.NDArray[np.int64] | None:
        """Top left corners (x, y), int64 (instances, 2), level-0 px of the slide's frame, read now; None for none."""
        with _opened(self.path) as file:
            if "coords" not in file:
                return None
            corners = np.asarray(file["coords"][()], dtype=np.int64).reshape(self.instances, 2)
        return corners - np.asarray(self.attributes.get("origin", (0, 0)), dtype=np.int64)

    def corners(self, origin: tuple[int, int]) -> npt.NDArray[np.int64] | None:
        """Return :attr:`coords` on a slide whose own frame begins at `origin` in its file, level-0 px.

        Files made here say where it begins. Those of CLAM and TRIDENT do not, and count from the corner of the file.
        """
        found = self.coords
        return found if found is None or "origin" in self.attributes else found - origin


def read_bag(path: str | Path) -> Bag:
    """Open a feature file.

    Raises
    ------
    ConfigError
        If it is no feature file, or its parts do not fit.
    """
    path = Path(path)
    with _opened(path) as file:
        if not isinstance(file.get("features"), h5py.Dataset):
            raise ConfigError(f"{path} has no dataset 'features'", expected="a feature file")
        shape, kind = file["features"].shape, file["features"].dtype
        if len(shape) == 3 and shape[0] == 1:
            shape = shape[1:]
        if len(shape) != 2 or min(shape) < 1 or kind.kind not in "fiu":
            raise ConfigError(f"{path}: features {kind} of shape {shape}", expected="numbers (instances, of each)")
        if "coords" in file and file["coords"].size != 2 * shape[0]:
            raise ConfigError(f"{path}: corners of shape {file['coords'].shape}", expected=f"({shape[0]}, 2)")
        attributes = {
            name: value.decode() if isinstance(value, bytes) else value
            for part in (file, file["features"], file.get("coords", file))
            for name, value in part.attrs.items()
        }
    side = _side(attributes)
    return Bag(
        path=path,
        name=str(attributes.get("name", path.stem)),
        patient=str(attributes.get("patient", "")),
        instances=int(shape[0]),
        width=int(shape[1]),
        patch_size=side,
        patch_height=int(attributes["patch_height"]) if "patch_height" in attributes else side,
        encoder=str(attributes.get("encoder", "")),
        encoder_sha256=str(attributes.get("encoder_sha256", "")),
        entry_id=str(attributes.get("entry_id", "")),
        attributes=attributes,
    )


def _side(attributes: Mapping[str, Any]) -> int | None:
    """Return the width of a tile, level-0 px: TRIDENT says it, CLAM says it at another level with its downsample."""
    if "patch_size_level0" in attributes:
        return int(attributes["patch_size_level0"])
    if "patch_size" not in attributes:
        return None
    downsample = np.ravel(attributes.get("downsample", 1.0))[0]
    return round(float(attributes["patch_size"]) * float(downsample))


def list_bags(folder: str | Path) -> list[Bag]:
    """Open all feature files of a folder, sorted by their file names.

    Raises
    ------
    ConfigError
        If the folder has none, or one is no feature file.
    """
    folder = Path(folder)
    paths = sorted(path for path in folder.glob("*") if path.suffix in SUFFIXES and not path.name.startswith("."))
    if not paths:
        raise ConfigError(f"no feature files in {folder}", expected=f"files {' or '.join('*' + s for s in SUFFIXES)}")
    return [read_bag(path) for path in paths]


def write_bag(
    path: str | Path,
    features: npt.NDArray[Any],
    coords: npt.NDArray[Any] | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> None:
    """Write a feature file, all or nothing.

    Parameters
    ----------
    path
        The file.
    features
        float32 or float16 (n, d).
    coords
        Top left corners (x, y), int (n, 2), level-0 px of the slide's frame.
    attributes
        What is known beside them; see the head of this module.

    Raises
    ------
    ConfigError
        If the shapes do not fit, or another process writes the file.
    """
    if features.ndim != 2:
        raise ConfigError(f"features of shape {features.shape}", expected="(instances, numbers of each)")
    shape = (features.shape[0], features.shape[1])
    with new_bag(path, shape, coords, attributes, dtype=features.dtype) as data:
        data[...] = features


@contextmanager
def new_bag(
    path: str | Path,
    shape: tuple[int, int],
    coords: npt.NDArray[Any] | None = None,
    attributes: Mapping[str, Any] | None = None,
    *,
    dtype: npt.DTypeLike = np.float32,
) -> Iterator[Any]:
    """Yield the features of a new feature file, to be filled row by row; the file appears whole or not at all.

    Parameters
    ----------
    path, coords, attributes
        As for :func:`write_bag`.
    shape
        Number of instances and of numbers of each.
    dtype
        float32 or float16.

    Yields
    ------
    h5py.Dataset
        Of that shape; everything of it is to be assigned.

    Raises
    ------
    ConfigError
        If the shapes do not fit, or another process writes the file.
    """
    path, attributes = Path(path), dict(attributes or {})
    if min(shape) < 1 or (coords is not None and coords.shape != (shape[0], 2)):
        corners = "" if coords is None else f" with corners of shape {coords.shape}"
        raise ConfigError(f"features of shape {shape}{corners}", expected="(n, d) and (n, 2), one instance or more")
    temporary = path.with_name(f".{path.name}.part")  # the same each time: what a killed process left is overwritten
    try:
        file = h5py.File(temporary, "w", locking=True)
    except BlockingIOError as error:
        raise ConfigError(f"another process writes {path}", remedy="wait for it, or choose another folder") from error
    try:
        with file:
            data = file.create_dataset("features", shape, dtype)
            if coords is not None:
                origin = np.asarray(attributes.get("origin", (0, 0)), dtype=np.int64)
                file.create_dataset("coords", data=coords.astype(np.int64) + origin)
            target = file if coords is None else file["coords"]
            for name, value in attributes.items():
                target.attrs[name] = value
            yield data
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _opened(path: Path) -> Any:
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read as HDF5 ({error})", expected="a feature file") from error
