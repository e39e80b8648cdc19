"""Server builders: the JSON by which QuPath opens an image."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from qupath_ext.errors import FormatError, ProjectError

__all__ = [
    "Affine",
    "builder_crops_to_bounds",
    "builder_file",
    "builder_frame",
    "builder_mpp",
    "file_uri",
    "make_builder",
]

Affine = tuple[float, float, float, float, float, float]
IDENTITY: Affine = (1.0, 0.0, 0.0, 1.0, 0.0, 0.0)
DEFAULT_TILE = (256, 256)
OPENSLIDE = "qupath.lib.images.servers.openslide.OpenslideServerBuilder"
BIO_FORMATS = "qupath.lib.images.servers.bioformats.BioFormatsServerBuilder"
MICRONS = ("µm", "μm", "um")
SAME_FRAME = (
    "channels",
    "color",
    "color_deconvolved",
    "normalized",
    "pyramidize",
    "sliced",
    "swapRedBlue",
    "typeConvert",
    "z_projected",
)
"""Builders that change pixel values or planes, not where a pixel is."""
QUARTER_TURNS = ("ROTATE_90", "ROTATE_270")
RGB_CHANNELS = (("Red", -65536), ("Green", -16711936), ("Blue", -16776961))


# ---------------------------------------------------------------------- files
def file_uri(path: Path) -> str:
    """Return the URI of a file as QuPath writes it: ``file:/abs/path``, percent-encoded.

    >>> file_uri(Path("/data/slide #1 ä%.svs"))
    'file:/data/slide%20%231%20%C3%A4%25.svs'
    """
    uri = path.absolute().as_uri()
    return "file:/" + uri.removeprefix("file:///") if uri.startswith("file:///") else uri


def uri_path(uri: str) -> Path | None:
    """Return the local file that a URI means, or None if it is not a file URI."""
    parts = urlsplit(uri)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        return None
    text = unquote(parts.path)
    if len(text) > 2 and text[0] == "/" and text[2] == ":":  # file:/C:/...
        text = text[1:] if os.name == "nt" else text
    return Path(text)


def _leaves(builder: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the innermost builders."""
    if builder.get("builderType") == "uri":
        return [builder]
    inner = builder.get("builder")
    if isinstance(inner, dict):
        return _leaves(inner)
    kind = builder.get("builderType")
    raise FormatError(f"image of builder type {kind!r}", expected="one that is made from a single file")


def builder_file(builder: dict[str, Any], previous_uri: str | None, folder: Path) -> Path:
    """Return the slide that a builder opens.

    Where the file is missing and the project has moved, the place that has the same position relative to the project
    is tried, which is what QuPath proposes.

    Parameters
    ----------
    builder
        The server builder.
    previous_uri
        URI of the project file when QuPath saved it last.
    folder
        The project's folder now.

    Raises
    ------
    ProjectError
        If the image is not a local file or the file is missing.
    FormatError
        If the builder is not made from a single file.
    """
    uri = _leaves(builder)[0].get("uri")
    path = uri_path(uri) if isinstance(uri, str) else None
    if path is None:
        raise ProjectError(f"image at {uri} is not a local file", expected="a file: URI")
    if path.exists():
        return path
    before = uri_path(previous_uri) if previous_uri else None
    if before is not None:
        moved = Path(os.path.normpath(folder / os.path.relpath(path, before.parent)))
        if moved.exists():
            return moved
    raise ProjectError(f"slide {path} does not exist", remedy="bring it back, or let QuPath search for it")


def builder_mpp(builder: dict[str, Any]) -> tuple[float, float] | None:
    """Return the pixel size (x, y) in µm; None if the builder has none."""
    calibration = (builder.get("metadata") or {}).get("pixelCalibration")
    if calibration is not None:
        width, height = calibration["pixelWidth"], calibration["pixelHeight"]
        if width["unit"] in MICRONS and height["unit"] in MICRONS:
            return float(width["value"]), float(height["value"])
        return None
    inner = builder.get("builder")
    size = builder_mpp(inner) if isinstance(inner, dict) else None
    return size[::-1] if size is not None and builder.get("rotation") in QUARTER_TURNS else size


def builder_crops_to_bounds(builder: dict[str, Any]) -> bool:
    """Whether the slide is cropped to its OpenSlide bounds: QuPath's OpenSlide does, unless told ``--no-crop``."""
    leaf = _leaves(builder)[0]
    provider = leaf.get("providerClassName")
    return provider in (None, OPENSLIDE) and "--no-crop" not in (leaf.get("args") or ())


# ---------------------------------------------------------------------- frames
def builder_frame(builder: dict[str, Any]) -> Affine:
    """Return the transform slide pixels -> QuPath frame, ``(a, b, d, e, xoff, yoff)``.

    Raises
    ------
    FormatError
        If the builder, or one inside it, is of a type whose geometry is not known.
    """
    kind = builder.get("builderType")
    if kind == "uri":
        _refuse_series(builder)
        return IDENTITY
    inner = builder.get("builder")
    if not isinstance(inner, dict):
        raise FormatError(f"image of builder type {kind!r}", expected="a builder whose geometry is known")
    frame = builder_frame(inner)
    if kind in SAME_FRAME:
        return frame
    if kind == "cropped":
        region = builder["region"]
        return _then(frame, (1.0, 0.0, 0.0, 1.0, -float(region["x"]), -float(region["y"])))
    if kind == "rotated":
        return _then(frame, _rotation(builder.get("rotation"), *_size(inner)))
    raise FormatError(f"image of builder type {kind!r}", expected="a builder whose geometry is known")


def _refuse_series(builder: dict[str, Any]) -> None:
    args = [str(arg) for arg in builder.get("args") or ()]
    series = args[args.index("--series") + 1] if "--series" in args[:-1] else "0"
    if series != "0":
        raise FormatError(f"image is series {series} of its file", expected="series 0, the only one that is read")


def _then(first: Affine, second: Affine) -> Affine:
    """Return the transform that does `first`, then `second`."""
    a, b, d, e, x, y = first
    a2, b2, d2, e2, x2, y2 = second
    return (
        a2 * a + b2 * d,
        a2 * b + b2 * e,
        d2 * a + e2 * d,
        d2 * b + e2 * e,
        a2 * x + b2 * y + x2,
        d2 * x + e2 * y + y2,
    )


def _rotation(rotation: Any, width: float, height: float) -> Affine:
    """Clockwise rotation of an image of a given size."""
    match rotation:
        case "ROTATE_NONE":
            return IDENTITY
        case "ROTATE_90":
            return (0.0, -1.0, 1.0, 0.0, height, 0.0)
        case "ROTATE_180":
            return (-1.0, 0.0, 0.0, -1.0, width, height)
        case "ROTATE_270":
            return (0.0, 1.0, -1.0, 0.0, 0.0, width)
    raise FormatError(f"image rotated by {rotation!r}", expected="ROTATE_NONE, ROTATE_90, ROTATE_180 or ROTATE_270")


def _size(builder: dict[str, Any]) -> tuple[float, float]:
    """Width and height of what a builder gives."""
    kind = builder.get("builderType")
    if kind == "cropped":
        region = builder["region"]
        return float(region["width"]), float(region["height"])
    metadata = builder.get("metadata") or {}
    if "width" in metadata and "height" in metadata:
        return float(metadata["width"]), float(metadata["height"])
    inner = builder.get("builder")
    if isinstance(inner, dict):
        width, height = _size(inner)
        turned = kind == "rotated" and builder.get("rotation") in QUARTER_TURNS
        return (height, width) if turned else (width, height)
    raise FormatError("rotated image of unknown size", expected="width and height in the builder's metadata")


# ---------------------------------------------------------------------- new builders
def make_builder(path: Path, mpp: float | tuple[float, float] | None) -> tuple[dict[str, Any], Any]:
    """Make the builder of a slide, with all metadata, and its thumbnail.

    Parameters
    ----------
    path
        The slide.
    mpp
        Pixel size in µm that overrides the slide's own.

    Returns
    -------
    tuple
        The builder, and the thumbnail as RGB uint8 (H, W, 3), fitted into 1000 x 600 px as QuPath's are.

    Raises
    ------
    SlideError
        If the slide cannot be opened.
    """
    from pyhisto.errors import MissingPixelSizeError
    from pyhisto.slide import Slide

    with Slide(path, mpp=mpp) as slide:
        try:
            size: tuple[float, float] | None = slide.mpp
        except MissingPixelSizeError:
            size = None
        metadata = _metadata(path.name, slide, size)
        thumbnail = slide.thumbnail(max_size=(1000, 600))
        openslide = slide.reader == "openslide"
    builder = {
        "builderType": "uri",
        "providerClassName": OPENSLIDE if openslide else BIO_FORMATS,
        "uri": file_uri(path),
        "args": [] if openslide else ["--series", "0"],
        "metadata": metadata,
    }
    return builder, thumbnail


def _metadata(name: str, slide: Any, mpp: tuple[float, float] | None) -> dict[str, Any]:
    width, height = slide.dimensions
    full_width, full_height = slide.level_dimensions[0]
    levels = []
    for level_width, level_height in slide.level_dimensions:
        downsample = (full_width / level_width + full_height / level_height) / 2
        size = round(width * level_width / full_width), round(height * level_height / full_height)
        levels.append({"downsample": float(downsample), "width": size[0], "height": size[1]})
    unit = "px" if mpp is None else "µm"
    x, y = mpp or (1.0, 1.0)
    out: dict[str, Any] = {
        "name": name,
        "width": width,
        "height": height,
        "sizeZ": 1,
        "sizeT": 1,
        "channelType": "DEFAULT",
        "isRGB": True,
        "pixelType": "UINT8",
        "levels": levels,
        "channels": [{"name": channel, "color": color} for channel, color in RGB_CHANNELS],
        "pixelCalibration": {
            "pixelWidth": {"value": float(x), "unit": unit},
            "pixelHeight": {"value": float(y), "unit": unit},
            "zSpacing": {"value": 1.0, "unit": "z-slice"},
            "timeUnit": "SECONDS",
            "timepoints": [],
        },
    }
    if slide.magnification is not None:
        out["magnification"] = float(slide.magnification)
    out["preferredTileWidth"], out["preferredTileHeight"] = _tile_size(slide)
    return out


def _tile_size(slide: Any) -> tuple[int, int]:
    """Tile size of level 0 as OpenSlide gives it, else 256, which QuPath takes too."""
    if slide.reader != "openslide":
        return DEFAULT_TILE
    import openslide

    with openslide.OpenSlide(slide.path) as opened:
        found = [opened.properties.get(f"openslide.level[0].tile-{side}", "") for side in ("width", "height")]
    return (int(found[0]), int(found[1])) if all(text.isdigit() for text in found) else DEFAULT_TILE
