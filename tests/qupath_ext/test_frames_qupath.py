"""The frame of an image against the pixels that QuPath itself shows for the same server builder."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import tifffile
from frame_cases import OPENSLIDE, affine, cropped, entry_of, flipped, random_nest, rotated, sparse, write_scn
from PIL import Image

from qupath_ext.frames import image_area, open_slide
from qupath_ext.native.builderframe import builder_size
from qupath_ext.native.builders import file_uri, make_builder
from qupath_ext.project import ImageEntry

QUPATH = os.environ.get("PAQUO_QUPATH_DIR")
JAVA = str(Path(os.environ["JAVA_HOME"]) / "bin/java") if "JAVA_HOME" in os.environ else shutil.which("java")
PROGRAM = Path(__file__).with_name("ShownPixels.java")
WIDTH, HEIGHT = 75, 52
MPP = (0.5, 0.25)
"""Pixels that are not square, and a size that is odd one way and even the other."""
GIVEN_MPP = (0.3, 0.7)

pytestmark = [
    pytest.mark.qupath,
    pytest.mark.skipif(QUPATH is None, reason="PAQUO_QUPATH_DIR is not set"),
    pytest.mark.skipif(JAVA is None, reason="there is no Java"),
]

Pixels = np.ndarray[Any, Any]


def by_degrees(angle: float, scale: float, x: float, y: float) -> tuple[float, float, float, float, float, float]:
    c, s = scale * math.cos(math.radians(angle)), scale * math.sin(math.radians(angle))
    return (c, -s, x, s, c, y)


LEAF: dict[str, Any] = {"builderType": "uri", "providerClassName": "ShownPixels$Reader", "args": []}
FLIPS = {flip: flipped(flip, LEAF) for flip in ("NONE", "HORIZONTAL", "VERTICAL", "BOTH")}
EXACT = {
    "plain": LEAF,
    **{f"rotated {by}": rotated(by, LEAF) for by in (0, 90, 180, 270)},
    **{f"flipped {flip}": builder for flip, builder in FLIPS.items()},
    "cropped": cropped(7, 11, 40, 31, LEAF),
    "cropped of rotated": cropped(3, 20, 41, 30, rotated(90, LEAF)),
    "rotated of cropped": rotated(270, cropped(7, 11, 40, 31, LEAF)),
    "flipped of cropped of rotated": flipped("VERTICAL", cropped(3, 20, 41, 30, rotated(90, LEAF))),
    "moved right and down": affine((1, 0, 5, 0, 1, 9), LEAF),
    "moved left and up": affine((1, 0, -5, 0, 1, -9), LEAF),
    "turned by an affine": affine((0, -1, HEIGHT, 1, 0, 0), LEAF),
    "mirrored by an affine": affine((-1, 0, WIDTH - 4, 0, 1, 0), LEAF),
    "doubled": affine((2, 0, 0, 0, 2, 3), LEAF),
    "stretched": affine((3, 0, 0, 0, 2, 0), LEAF),
    "rotated of affine of cropped": rotated(90, affine((1, 0, -5, 0, 1, 3), cropped(7, 11, 40, 31, LEAF))),
    "sparse, one part": sparse((100, 200, WIDTH, HEIGHT, LEAF)),
    "rotated of a sparse part cut short": rotated(90, sparse((10, 20, WIDTH - 9, HEIGHT - 4, LEAF))),
}
NESTS = {f"nest {seed}": seed for seed in range(40)}
WHOLE_SCN = {"builderType": "uri", "providerClassName": OPENSLIDE, "args": ["--no-crop"]}
SCN_LEAF = {**WHOLE_SCN, "args": []}
SCN = {
    "bounds": SCN_LEAF,
    "bounds, not cropped": WHOLE_SCN,
    "bounds, rotated": rotated(90, SCN_LEAF),
    "bounds, cropped of rotated": cropped(3, 20, 41, 30, rotated(270, SCN_LEAF)),
    "bounds, not cropped, rotated": rotated(270, WHOLE_SCN),
    "bounds, moved": affine((0, 1, -3, -1, 0, WIDTH + 4), SCN_LEAF),
    "bounds, flipped": flipped("BOTH", SCN_LEAF),
}
SLIDES = Path(__file__).parents[2] / "../shared/data/slides"
REAL = {
    "real, cropped of rotated": ("CMU-1-Small-Region.svs", lambda leaf: cropped(700, 300, 500, 350, rotated(90, leaf))),
    "real, rotated of affine of cropped": (
        "OS-2_Ki67_ndpi_crop_mpp0.227.tif",
        lambda leaf: rotated(270, affine((0, 1, -20, -1, 0, 400), cropped(1001, 777, 401, 500, leaf))),
    ),
}
SMOOTH = {
    "30 degrees": affine(by_degrees(30, 1, 26, 0), LEAF),
    "30 degrees, larger": affine(by_degrees(30, 1.7, 50, -3.25), LEAF),
    "sheared": affine((1, 0.3, 0.5, 0.1, 1, 0.25), LEAF),
    "cropped of 200 degrees of rotated": cropped(5, 5, 40, 60, affine(by_degrees(200, 1, 45, 85), rotated(90, LEAF))),
}


@pytest.fixture(scope="module")
def pixels() -> Pixels:
    """RGB in which no two pixels are alike, so that none can stand in for another."""
    order = np.random.default_rng(5).permutation(1 << 20)[: WIDTH * HEIGHT].reshape(HEIGHT, WIDTH)
    return np.stack([order >> 12, (order >> 6) & 63, order & 63], axis=-1).astype(np.uint8)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory, pixels: Pixels) -> Path:
    path = tmp_path_factory.mktemp("image") / "ünique.tif"
    density = (1e4 / MPP[0], 1e4 / MPP[1])
    tifffile.imwrite(
        path, pixels, photometric="rgb", rowsperstrip=16, resolution=density, resolutionunit="CENTIMETER", metadata=None
    )
    write_scn(scn_of(path), pixels, (200, 150), (31, 17))
    return path


def scn_of(image: Path) -> Path:
    return image.with_suffix(".scn")


def builders(image: Path) -> dict[str, dict[str, Any]]:
    """Return all builders by name, with the file; those that are "calibrated" have a pixel size that a person gave."""
    blank = np.zeros((HEIGHT, WIDTH, 3))
    nests = {name: random_nest(seed, LEAF, blank, "rca")[0] for name, seed in NESTS.items()}
    mirrored = {f"mirrored {name}": random_nest(seed, LEAF, blank, "rcfas")[0] for name, seed in NESTS.items()}
    metadata = make_builder(image, GIVEN_MPP)[0]["metadata"]
    plain, calibrated = {**LEAF, "uri": file_uri(image)}, {**LEAF, "uri": file_uri(image), "metadata": metadata}
    out = {name: with_leaf(b, plain) for name, b in {**EXACT, **nests, **mirrored, **SMOOTH}.items()}
    scanned = json.loads(json.dumps(SCN).replace('"uri", ', f'"uri", "uri": {json.dumps(file_uri(scn_of(image)))}, '))
    real = {
        name: wrap({**SCN_LEAF, "uri": file_uri((SLIDES / file).resolve())})
        for name, (file, wrap) in REAL.items()
        if (SLIDES / file).exists()
    }
    return {
        **out,
        **scanned,
        **real,
        **{f"calibrated {name}": with_leaf(b, calibrated) for name, b in {**EXACT, **nests}.items()},
    }


def with_leaf(builder: dict[str, Any], leaf: dict[str, Any]) -> dict[str, Any]:
    """Return a builder with another one in place of its innermost."""
    text = json.dumps(builder)
    assert json.dumps(LEAF) in text
    return json.loads(text.replace(json.dumps(LEAF), json.dumps(leaf)))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory, image: Path) -> dict[str, tuple[list[str], Path]]:
    """What QuPath says about each builder (width, height, pixel width and height, or "!"), and its picture."""
    folder = tmp_path_factory.mktemp("shown")
    services = folder / "classes/META-INF/services"
    services.mkdir(parents=True)
    (services / "qupath.lib.images.servers.ImageServerBuilder").write_text("ShownPixels$Reader")
    lines, names = [], []
    for number, (name, builder) in enumerate(builders(image).items()):
        (folder / f"{number}.json").write_text(json.dumps(builder))
        lines.append(f"{folder / f'{number}.json'}\t0\t0\t0\t0\t{folder / f'{number}.png'}")
        names.append(name)
    (folder / "list.txt").write_text("\n".join(lines))
    classes = os.pathsep.join([str(folder / "classes"), str(Path(QUPATH or "") / "lib/app/*")])
    command = [str(JAVA), "-cp", classes, str(PROGRAM), str(folder / "list.txt"), *map(str, MPP)]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    if result.returncode and "class file has wrong version" in result.stderr + result.stdout:
        pytest.skip("this Java is too old for this QuPath; set JAVA_HOME")
    if "cannot find symbol" in result.stderr and "readRegion" in result.stderr:
        pytest.skip("this QuPath is older than 0.4")
    assert result.returncode == 0, result.stderr
    said = [line.split("\t")[1:] for line in result.stdout.splitlines() if line.startswith("SHOWN\t")]
    return {name: (said[i], folder / f"{i}.png") for i, name in enumerate(names)}


def seen(shown: dict[str, tuple[list[str], Path]], name: str) -> tuple[list[str], Pixels]:
    if name not in shown:
        pytest.skip("the slides (../shared/data) are not here")
    said, picture = shown[name]
    if said[0] == "!" and "flipped" in said[1]:
        pytest.skip("this QuPath knows no flipped images (0.7 and later do)")
    if (name in SCN or name in REAL) and not list(Path(QUPATH or "").glob("lib/app/*openslide*.jar")):
        pytest.skip("this QuPath has no OpenSlide")
    assert said[0] != "!", said
    return said, np.asarray(Image.open(picture))


def source_of(frame: Any, picture: Pixels) -> tuple[Any, Any]:
    """Return slide coordinates x, y of the centres of all pixels of a picture."""
    a, b, d, e, xoff, yoff = frame
    y, x = np.mgrid[0 : picture.shape[0], 0 : picture.shape[1]] + 0.5
    back = np.linalg.inv([[a, b], [d, e]])
    return np.einsum("ij,jhw->ihw", back, np.stack([x - xoff, y - yoff]))


def compare(entry: ImageEntry, picture: Pixels) -> tuple[float, int]:
    """Return the share of pixels that are those of the slide, and how many show the slide at all; the rest is black."""
    with open_slide(entry) as slide:
        x, y = source_of(entry.slide_frame(), picture)
        whole = slide.read_region(0, 0, *slide.dimensions)
        shows = shapely.contains_xy(image_area(entry, slide), x, y)
    expected = whole[np.floor(y[shows]).astype(int), np.floor(x[shows]).astype(int)]
    seen = picture[shows]
    unscanned = (expected == 255).all(axis=1) & ~seen.any(axis=1)  # white here, black in QuPath
    right = np.concatenate([(expected == seen).all(axis=1) | unscanned, ~picture[~shows].any(axis=1)])
    return float(right.mean()), int(shows.sum())


@pytest.mark.parametrize("name", [*EXACT, *NESTS, *(f"mirrored {name}" for name in NESTS), *SCN])
def test_every_pixel_is_where_qupath_shows_it(
    shown: dict[str, tuple[list[str], Path]], tmp_path: Path, image: Path, name: str
) -> None:
    said, picture = seen(shown, name)
    builder = builders(image)[name]
    entry = entry_of(tmp_path, builder)
    whole = (200, 150) if "not cropped" in name else (WIDTH, HEIGHT)
    assert builder_size(builder, lambda: whole) == (float(said[0]), float(said[1]))
    share, count = compare(entry, picture)
    assert count > 50
    assert share == 1.0


@pytest.mark.parametrize("name", REAL)
def test_every_pixel_of_real_slides(
    shown: dict[str, tuple[list[str], Path]], tmp_path: Path, image: Path, name: str
) -> None:
    _, picture = seen(shown, name)
    share, count = compare(entry_of(tmp_path, builders(image)[name]), picture)
    assert count > 150_000
    assert share == 1.0


@pytest.mark.parametrize("name", SMOOTH)
def test_pixels_between_pixels(
    shown: dict[str, tuple[list[str], Path]], tmp_path: Path, image: Path, name: str
) -> None:
    """Java takes the nearest pixel with some rounding of its own."""
    said, picture = seen(shown, name)
    builder = builders(image)[name]
    entry = entry_of(tmp_path, builder)
    assert builder_size(builder, lambda: (WIDTH, HEIGHT)) == (float(said[0]), float(said[1]))
    share, count = compare(entry, picture)
    assert count > 400
    assert share > 0.98


@pytest.mark.parametrize("name", [*EXACT, *NESTS, *(f"calibrated {name}" for name in (*EXACT, *NESTS))])
def test_pixel_size_is_that_of_qupath(
    shown: dict[str, tuple[list[str], Path]], tmp_path: Path, image: Path, name: str
) -> None:
    said, _ = seen(shown, name)
    theirs = np.array([float(said[2]), float(said[3])])
    entry = entry_of(tmp_path, builders(image)[name])
    assert entry.mpp is None or entry.mpp == pytest.approx(theirs)
    a, b, d, e, _, _ = entry.slide_frame()
    with open_slide(entry) as slide:
        assert np.linalg.norm(np.array([[a, b], [d, e]]) * theirs[:, None], axis=0) == pytest.approx(slide.mpp)


@pytest.mark.parametrize("name", SMOOTH)
def test_pixels_that_are_no_rectangles_have_no_size(
    shown: dict[str, tuple[list[str], Path]], tmp_path: Path, image: Path, name: str
) -> None:
    said, _ = seen(shown, name)
    assert np.isnan([float(said[2]), float(said[3])]).all()
    assert entry_of(tmp_path, builders(image)[name]).mpp is None
