"""Files of masks: images, NumPy's, MATLAB's."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qupath_ext.errors import FormatError

__all__ = ["ARRAY_ENDINGS", "read_arrays", "read_colours", "read_labels"]

ARRAY_ENDINGS = (".npy", ".npz", ".mat")
INSTANCES = "inst_map"
"""The name that an array of instances usually has."""
_HARMLESS = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
}


def read_labels(path: Path, array: str = "") -> npt.NDArray[np.integer[Any]]:
    """Read a mask of whole numbers.

    Parameters
    ----------
    path
        PNG, TIFF or another image of one channel (a palette's numbers count), .npy, .npz or .mat.
    array
        Which array of a file with several; by default the only one, or that called ``inst_map``.

    Returns
    -------
    numpy.ndarray
        Whole numbers from 0, shape (height, width).

    Raises
    ------
    FormatError
        If the file cannot be read, or is no such mask.
    """
    if path.suffix.lower() in ARRAY_ENDINGS:
        pixels = _chosen(read_arrays(path), array, path)
    else:
        pixels = _read_image(path, colours=False)
    if pixels.ndim == 3 and 1 in (pixels.shape[0], pixels.shape[2]):
        pixels = pixels.squeeze(axis=0 if pixels.shape[0] == 1 else 2)
    if pixels.dtype.kind == "f" and (pixels == np.floor(pixels)).all():
        pixels = pixels.astype(np.int64)
    if pixels.dtype.kind == "b":
        pixels = pixels.astype(np.uint8)
    if pixels.ndim != 2 or pixels.dtype.kind not in "ui" or pixels.min(initial=0) < 0:
        raise FormatError(
            f"{path.name} has shape {pixels.shape} and type {pixels.dtype}", expected="one channel of numbers from 0"
        )
    return pixels


def read_colours(path: Path) -> npt.NDArray[np.uint8]:
    """Read a mask of colours: RGB uint8, shape (height, width, 3).

    Raises
    ------
    FormatError
        If the file cannot be read as such.
    """
    return _read_image(path, colours=True).astype(np.uint8)


def read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of a .npy, .npz or .mat file by name; that of a plain .npy is called ``""``.

    A .npy may hold a pickled dict of arrays; nothing else in a pickle is ever loaded.

    Raises
    ------
    FormatError
        If the file cannot be read.
    """
    try:
        if path.suffix.lower() == ".mat":
            from scipy.io import loadmat

            return {name: value for name, value in loadmat(path).items() if not name.startswith("__")}
        if path.suffix.lower() == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return dict(file)
        return _read_npy(path)
    except (OSError, ValueError, TypeError, EOFError, NotImplementedError, pickle.UnpicklingError) as error:
        raise FormatError(
            f"{path} cannot be read ({error})", expected="arrays of NumPy or MATLAB (up to 7.2)"
        ) from error


def _read_npy(path: Path) -> dict[str, npt.NDArray[Any]]:
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        _, _, dtype = read_header(file)
        if not dtype.hasobject:
            return {"": np.load(path, allow_pickle=False)}
        content = _OnlyArrays(io.BytesIO(file.read())).load().item()
    if not isinstance(content, dict) or not all(isinstance(value, np.ndarray) for value in content.values()):
        raise ValueError("objects that are no arrays")
    return {str(name): value for name, value in content.items()}


class _OnlyArrays(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _HARMLESS:
            raise pickle.UnpicklingError(f"{module}.{name} in a file of arrays")
        return super().find_class(module, name)


def _chosen(arrays: dict[str, npt.NDArray[Any]], array: str, path: Path) -> npt.NDArray[Any]:
    name = array or (INSTANCES if INSTANCES in arrays else next(iter(arrays)) if len(arrays) == 1 else "")
    if name not in arrays:
        found = ", ".join(f"{key} {value.shape}" for key, value in arrays.items()) or "nothing"
        raise FormatError(
            f"{path.name} holds {found}",
            expected=f"an array {name!r}" if name else f"one array, or one called {INSTANCES}",
            remedy="say which with --array",
        )
    return arrays[name]


def _read_image(path: Path, colours: bool) -> npt.NDArray[Any]:
    import tifffile
    from PIL import Image

    try:
        if path.suffix.lower() in (".tif", ".tiff"):
            pixels: npt.NDArray[Any] = tifffile.imread(path, series=0, level=0)
        else:
            with Image.open(path) as image:
                pixels = np.array(image.convert("RGB") if colours else image)
    except (OSError, ValueError, SyntaxError, IndexError, Image.DecompressionBombError) as error:
        raise FormatError(f"{path} cannot be read as a mask ({error})", expected="PNG or TIFF") from error
    if colours and (pixels.ndim != 3 or pixels.shape[2] < 3 or pixels.dtype != np.uint8):
        raise FormatError(f"{path.name} has shape {pixels.shape} and type {pixels.dtype}", expected="8-bit RGB")
    return pixels[..., :3] if colours else pixels
