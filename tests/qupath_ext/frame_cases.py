"""Server builders for tests: the JSON that QuPath writes for images that are turned, mirrored, cropped and so on."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from qupath_ext.project import ImageEntry, open_project

Builder = dict[str, Any]
OPENSLIDE = "qupath.lib.images.servers.openslide.OpenslideServerBuilder"
BIO_FORMATS = "qupath.lib.images.servers.bioformats.BioFormatsServerBuilder"
SCN = """<?xml version="1.0"?>
<scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01" uuid="s">
<collection name="c" uuid="c" sizeX="{canvas[0]}" sizeY="{canvas[1]}"><barcode>YQ==</barcode>{images}</collection>
</scn>"""
SCN_IMAGE = """<image name="i{ifd}" uuid="i{ifd}"><device model="Leica SCN400" version="1.4"/>
<pixels sizeX="{size[0]}" sizeY="{size[1]}"><dimension sizeX="{size[0]}" sizeY="{size[1]}" r="0" ifd="{ifd}"/></pixels>
<view sizeX="{view[0]}" sizeY="{view[1]}" offsetX="{at[0]}" offsetY="{at[1]}" spacingZ="0"/>
<scanSettings><objectiveSettings><objective>20</objective></objectiveSettings><illuminationSettings>
<numericalAperture>0.4</numericalAperture><illuminationSource>brightfield</illuminationSource>
</illuminationSettings></scanSettings></image>"""


def entry_of(folder: Path, builder: Builder) -> ImageEntry:
    """Return the only image of a project as QuPath would have written it, opened with a builder."""
    image = {"serverBuilder": builder, "entryID": 1, "randomizedName": "", "imageName": "image", "metadata": {}}
    content = {"version": "0.5.1", "createTimestamp": 0, "modifyTimestamp": 0, "lastID": 1, "images": [image]}
    path = folder / "project.qpproj"
    path.write_text(json.dumps(content), "utf-8")
    return open_project(path, backend="native").entries[0]


def write_scn(path: Path, pixels: np.ndarray[Any, Any], canvas: tuple[int, int], at: tuple[int, int]) -> None:
    """Write a slide of 0.5 µm/px that has bounds: RGB (H, W, 3) on a larger canvas, as a Leica scanner would."""
    size, nm = (pixels.shape[1], pixels.shape[0]), 500
    whole = (canvas[0] * nm, canvas[1] * nm)
    images = SCN_IMAGE.format(ifd=0, size=(16, 16), view=whole, at=(0, 0))
    place = (at[0] * nm, at[1] * nm)
    images += SCN_IMAGE.format(ifd=1, size=size, view=(size[0] * nm, size[1] * nm), at=place)
    options: dict[str, Any] = {"tile": (16, 16), "photometric": "rgb", "metadata": None}
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        tiff.write(np.zeros((16, 16, 3), np.uint8), description=SCN.format(canvas=whole, images=images), **options)
        tiff.write(pixels, compression="adobe_deflate", **options)


def rotated(by: int, inner: Builder) -> Builder:
    return {"builderType": "rotated", "builder": inner, "rotation": f"ROTATE_{by or 'NONE'}"}


def flipped(flip: str, inner: Builder) -> Builder:
    return {"builderType": "flipped", "builder": inner, "flip": flip}


def cropped(x: int, y: int, width: int, height: int, inner: Builder) -> Builder:
    region = {"x": x, "y": y, "width": width, "height": height, "z": 0, "t": 0}
    return {"builderType": "cropped", "builder": inner, "region": region}


def affine(matrix: tuple[float, float, float, float, float, float], inner: Builder) -> Builder:
    """Rows of the matrix: x' = m[0] x + m[1] y + m[2], y' = m[3] x + m[4] y + m[5]."""
    names = ("m00", "m01", "m02", "m10", "m11", "m12")
    return {"builderType": "affine", "builder": inner, "transform": dict(zip(names, matrix, strict=True))}


def sparse(*parts: tuple[int, int, int, int, Builder]) -> Builder:
    return {
        "builderType": "sparse",
        "regions": [
            {
                "region": {"x": x, "y": y, "width": width, "height": height, "z": 0, "t": 0},
                "resolutions": [{"downsample": 1.0, "serverBuilder": inner}],
            }
            for x, y, width, height, inner in parts
        ],
        "path": "sparse",
    }


def random_nest(seed: int, leaf: Builder, pixels: np.ndarray[Any, Any], kinds: str) -> tuple[Builder, Any]:
    """Wrap a builder one to four times by chance, and do the same to its pixels (H, W, 3) with numpy alone.

    `kinds` names what may come: r(otated), f(lipped), c(ropped), a(ffine, by whole pixels and quarter turns),
    s(parse, one part).
    """
    rng = np.random.default_rng(seed)
    builder = leaf
    for _ in range(int(rng.integers(1, 5))):
        height, width = pixels.shape[:2]
        match rng.choice(list(kinds)):
            case "r":
                turns = int(rng.integers(0, 4))
                builder, pixels = rotated(90 * turns, builder), np.rot90(pixels, -turns)
            case "f":
                flip = str(rng.choice(["NONE", "HORIZONTAL", "VERTICAL", "BOTH"]))
                if flip in ("HORIZONTAL", "BOTH"):
                    pixels = pixels[:, ::-1]
                if flip in ("VERTICAL", "BOTH"):
                    pixels = pixels[::-1]
                builder = flipped(flip, builder)
            case "c":
                x, y = int(rng.integers(0, width // 3 + 1)), int(rng.integers(0, height // 3 + 1))
                w, h = int(rng.integers(width // 2, width - x + 1)), int(rng.integers(height // 2, height - y + 1))
                builder, pixels = cropped(x, y, w, h, builder), pixels[y : y + h, x : x + w]
            case "a":
                matrix, pixels = _whole_pixels(rng, pixels)
                builder = affine(matrix, builder)
            case "s":
                x, y = (int(value) for value in rng.integers(0, 50, 2))
                builder = sparse((x, y, width, height, builder))
    return builder, pixels


def _whole_pixels(rng: np.random.Generator, pixels: np.ndarray[Any, Any]) -> tuple[Any, np.ndarray[Any, Any]]:
    """Turn or mirror an image and move it by whole pixels; what leaves its new rectangle is lost, black comes in."""
    height, width = pixels.shape[:2]
    turn, mirror = int(rng.integers(0, 4)), bool(rng.integers(0, 2))
    corners = np.array(list(itertools.product((0, width), (0, height))))
    linear = np.linalg.matrix_power(np.array([[0, -1], [1, 0]]), turn) @ np.diag([-1 if mirror else 1, 1])
    shift = rng.integers(-6, 7, 2) - (corners @ linear.T).min(axis=0)
    moved = np.rot90(pixels[:, ::-1] if mirror else pixels, -turn)
    out = np.zeros_like(moved)
    x, y = (int(value) for value in shift + (corners @ linear.T).min(axis=0))
    h, w = moved.shape[:2]
    out[max(0, y) : h + min(0, y), max(0, x) : w + min(0, x)] = moved[
        max(0, -y) : h - max(0, y), max(0, -x) : w - max(0, x)
    ]
    (a, b), (d, e) = linear.tolist()
    return (a, b, float(shift[0]), d, e, float(shift[1])), out
