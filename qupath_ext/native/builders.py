"""Server builders: the JSON by which QuPath opens an image."""

from __future__ import annotations

import os
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import unquote, urlsplit

from qupath_ext.errors import ProjectError
from qupath_ext.native.builderframe import OPENSLIDE, leaf_builder

__all__ = [
    "builder_crops_to_bounds",
    "builder_file",
    "builder_stored_file",
    "file_uri",
    "local_name",
    "make_builder",
    "uri_path",
]

DEFAULT_TILE = (256, 256)
BIO_FORMATS = "qupath.lib.images.servers.bioformats.BioFormatsServerBuilder"
RGB_CHANNELS = (("Red", -65536), ("Green", -16711936), ("Blue", -16776961))


# ---------------------------------------------------------------------- files
def file_uri(path: PurePath) -> str:
    """Return the URI of a file as QuPath writes it: ``file:/abs/path``, percent-encoded.

    >>> file_uri(Path("/data/slide #1 ä%.svs"))
    'file:/data/slide%20%231%20%C3%A4%25.svs'
    """
    uri = (path.absolute() if isinstance(path, Path) else path).as_uri()
    return "file:/" + uri.removeprefix("file:///") if uri.startswith("file:///") else uri


def uri_path(uri: str) -> Path | None:
    """Return the local file that a URI means, or None if it is not a file URI."""
    text = local_name(uri, windows=os.name == "nt")
    return None if text is None else Path(text)


def local_name(uri: str, *, windows: bool) -> str | None:
    """Return the name that a file has under Windows, or elsewhere; None if the URI is of no file there.

    >>> local_name("file:/C:/data/a%20b.svs", windows=True)
    'C:/data/a b.svs'
    >>> local_name("file://server/share/a.svs", windows=True)
    '//server/share/a.svs'
    """
    parts = urlsplit(uri)
    if parts.scheme != "file":
        return None
    name = unquote(parts.path)
    if parts.netloc not in ("", "localhost"):
        return f"//{unquote(parts.netloc)}{name}" if windows else None
    if windows and len(name) > 2 and name[0] == "/" and name[2] == ":":
        return name[1:]
    return name


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
    path = builder_stored_file(builder)
    if path.exists():
        return path
    before = uri_path(previous_uri) if previous_uri else None
    if before is not None and before.anchor == path.anchor:
        moved = Path(os.path.normpath(folder / os.path.relpath(path, before.parent)))
        if moved.exists():
            return moved
    raise ProjectError(f"slide {path} does not exist", remedy="bring it back, or let QuPath search for it")


def builder_stored_file(builder: dict[str, Any]) -> Path:
    """Return the slide that a builder names, whether it is there or not.

    Raises
    ------
    ProjectError
        If the image is not a local file.
    FormatError
        If the builder is not made from a single file.
    """
    uri = leaf_builder(builder).get("uri")
    path = uri_path(uri) if isinstance(uri, str) else None
    if path is None:
        raise ProjectError(f"image at {uri} is not a local file", expected="a file: URI")
    return path


def builder_crops_to_bounds(builder: dict[str, Any]) -> bool:
    """Whether the slide is cropped to its OpenSlide bounds: QuPath's OpenSlide does, unless told ``--no-crop``."""
    leaf = leaf_builder(builder)
    provider = leaf.get("providerClassName")
    return provider in (None, OPENSLIDE) and "--no-crop" not in (leaf.get("args") or ())


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
