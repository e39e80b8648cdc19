"""Fixtures that many tests share: tiny slides whose pixels tell where they are."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

# Networks in the tests are tiny; threads that wait for each other cost more than they compute.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Only a test that asks for QuPath starts a Java virtual machine, whatever is installed where the tests run.
os.environ["QUPATH_EXT_BACKEND"] = "native"

Pixels = np.ndarray[Any, Any]
WriteTiff = Callable[..., Path]

GRADIENT_WIDTH, GRADIENT_HEIGHT = 128, 96


@pytest.fixture(scope="session", autouse=True)
def torch_engine() -> Iterator[None]:
    """Compile no network by OpenVINO, if that is installed, but where a test asks for it: each takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyhisto.bundle.files.has_openvino", lambda: False)
        yield


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Real data beside the repository; the tests that need it are skipped where it is absent."""
    folder = Path(__file__).resolve().parents[1].parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("needs the folder 'shared/data' beside the repository")
    return folder


def gradient(width: int = GRADIENT_WIDTH, height: int = GRADIENT_HEIGHT) -> Pixels:
    """Return RGB pixels with red = 2 x and green = 2 y: the value of a point (x, y) is (2 x - 1, 2 y - 1, 7).

    A pixel's centre is at + 0.5, so that halving 2 x 2 pixels gives whole numbers on the next two levels.
    """
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([2 * x, 2 * y, np.full_like(x, 7)], axis=-1).astype(np.uint8)


def halve(image: Pixels) -> Pixels:
    """Average 2 x 2 pixels (the sides are even)."""
    height, width = image.shape[:2]
    means = image.reshape(height // 2, 2, width // 2, 2, 3).mean(axis=(1, 3))
    return means.astype(np.uint8)


@pytest.fixture(scope="session")
def write_tiff() -> WriteTiff:
    """Return a function that writes levels as a tiled pyramid that OpenSlide opens as ``generic-tiff``."""

    def write(path: Path, levels: Sequence[Pixels], *, mpp: tuple[float, float] | None = (0.5, 0.5)) -> Path:
        with tifffile.TiffWriter(path) as tiff:
            for number, level in enumerate(levels):
                shrunk = levels[0].shape[1] / level.shape[1]
                density = None if mpp is None else (1e4 / (mpp[0] * shrunk), 1e4 / (mpp[1] * shrunk))
                tiff.write(
                    level,
                    tile=(16, 16),
                    photometric="rgb",
                    compression="adobe_deflate",
                    resolution=density,
                    resolutionunit="CENTIMETER" if mpp else None,
                    subfiletype=int(number > 0),
                    metadata=None,
                )
        return path

    return write


@pytest.fixture(scope="session")
def gradient_slide(tmp_path_factory: pytest.TempPathFactory, write_tiff: WriteTiff) -> Path:
    """128 x 96 px with downsamples 1, 2, 4; 0.5 µm/px; red = 2 x, green = 2 y at level 0."""
    levels = [gradient()]
    while len(levels) < 3:
        levels.append(halve(levels[-1]))
    return write_tiff(tmp_path_factory.mktemp("gradient") / "gradient.tif", levels)


@pytest.fixture(scope="session")
def stretched_slide(tmp_path_factory: pytest.TempPathFactory, write_tiff: WriteTiff) -> Path:
    """The same pixels, one level, but 0.5 µm/px across and 0.25 µm/px down."""
    return write_tiff(tmp_path_factory.mktemp("stretched") / "stretched.tif", [gradient()], mpp=(0.5, 0.25))


@pytest.fixture(scope="session")
def coloured_levels_slide(tmp_path_factory: pytest.TempPathFactory, write_tiff: WriteTiff) -> Path:
    """128 x 96 px, 0.5 µm/px; level 0 is red, level 1 (downsample 2) green, level 2 (downsample 4) blue."""
    levels = []
    for number in range(3):
        level = np.zeros((96 >> number, 128 >> number, 3), dtype=np.uint8)
        level[..., number] = 200
        levels.append(level)
    return write_tiff(tmp_path_factory.mktemp("coloured") / "coloured.tif", levels)
