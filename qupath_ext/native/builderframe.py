"""Where a server builder puts the pixels of a slide: frame and size of what it shows.

Builders wrap each other; each of them maps pixels of the one inside it:

* ``cropped`` takes a rectangle away from the origin, ``sparse`` (with one part) puts its part there;
* ``rotated`` turns clockwise by quarter turns, ``flipped`` mirrors;
* ``affine`` maps pixels with a matrix as it is: the image shows the rectangle from (0, 0) that is as large as the
  bounding box of what was mapped, wherever that box lies.

What QuPath 0.3 to 0.7 show, pixel by pixel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from qupath_ext.errors import FormatError

__all__ = [
    "IDENTITY",
    "OPENSLIDE",
    "Affine",
    "SlideSize",
    "builder_frame",
    "builder_layers",
    "builder_mpp",
    "builder_series",
    "builder_size",
    "inner_builder",
    "invert",
    "leaf_builder",
    "unit_mpp",
]

Affine = tuple[float, float, float, float, float, float]
"""``(a, b, d, e, xoff, yoff)``: x' = a x + b y + xoff, y' = d x + e y + yoff."""

SlideSize = Callable[[], tuple[int, int]]
"""Gives width and height of the slide, where the builder does not name them."""

IDENTITY: Affine = (1.0, 0.0, 0.0, 1.0, 0.0, 0.0)
OPENSLIDE = "qupath.lib.images.servers.openslide.OpenslideServerBuilder"
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
FILE_METADATA = ("flipped", "normalized", "rotated", "swapRedBlue")
"""Builders that take the metadata of the file, not those that a person gave to the image inside them."""
QUARTER_TURNS = ("ROTATE_90", "ROTATE_270")
SAME_PLACE_ARGS = ("--classname", "--icc-profile", "--icc-profile-dest", "--icc-profile-source", "--no-crop", "--order")
"""Arguments of a reader that do not move pixels, or that are looked at elsewhere."""


# ---------------------------------------------------------------------- builders in builders
def inner_builder(builder: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the builder that a builder wraps; None for the innermost one, which names the file.

    Raises
    ------
    FormatError
        If the image is made from several parts or of a type that is not known.
    """
    kind = builder.get("builderType")
    if kind == "uri":
        return None
    if kind == "sparse":
        return _only_part(builder)["serverBuilder"]  # type: ignore[no-any-return]
    inner = builder.get("builder")
    if kind in (*SAME_FRAME, "affine", "cropped", "flipped", "rotated") and isinstance(inner, dict):
        return inner
    if kind == "z_concatenated":
        raise FormatError("image is a stack of several slides (z_concatenated)", expected="an image of one slide")
    raise FormatError(f"image of builder type {kind!r}", expected="a builder whose geometry is known")


def _only_part(builder: Mapping[str, Any]) -> dict[str, Any]:
    """Return the one part of a sparse image, ``{"downsample": ..., "serverBuilder": ...}``."""
    regions = builder.get("regions") or []
    parts = [part for region in regions for part in region.get("resolutions") or []]
    if len(parts) != 1:
        raise FormatError(
            f"image is put together from {len(parts)} parts (sparse)",
            expected="one part",
            remedy="add the slides themselves to the project",
        )
    part: dict[str, Any] = parts[0]
    if part.get("downsample") != 1 or not isinstance(part.get("serverBuilder"), dict):
        raise FormatError("image is put together from a part at another resolution", expected="downsample 1")
    return part


def builder_layers(builder: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a builder, the one inside it and so on down to the one that names the file."""
    layer: dict[str, Any] | None = builder
    while layer is not None:
        yield layer
        layer = inner_builder(layer)


def leaf_builder(builder: dict[str, Any]) -> dict[str, Any]:
    """Return the innermost builder, which names the file."""
    *_, leaf = builder_layers(builder)
    return leaf


# ---------------------------------------------------------------------- the file
def builder_series(builder: dict[str, Any]) -> int:
    """Return which image of its file a builder opens, from 0; OpenSlide knows one only.

    Raises
    ------
    FormatError
        If it is chosen by name, or an argument might move pixels.
    """
    leaf = leaf_builder(builder)
    args = [str(arg) for arg in leaf.get("args") or ()]
    if leaf.get("providerClassName") == OPENSLIDE:
        return 0
    if not args:
        parts = urlsplit(str(leaf.get("uri")))
        chosen = parts.fragment or parts.query.removeprefix("series=")
        args = ["--series", chosen] if chosen else []
    series = "0"
    values = iter([piece for arg in args for piece in (arg.split("=", 1) if arg.startswith("--") else [arg])])
    for arg in values:
        if arg in ("--series", "-s"):
            series = next(values, "")
        elif arg == "--dims" and next(values, "").upper().startswith("XY"):
            continue
        elif arg.startswith("-") and arg not in SAME_PLACE_ARGS:
            raise FormatError(
                f"image is opened with {' '.join(args)}",
                expected="no reader options but --series, --order and --no-crop",
                remedy="add the slide to the project again, without them",
            )
    if not series.isdecimal():
        raise FormatError(f"image is series {series!r} of its file", expected="a number from 0")
    return int(series)


# ---------------------------------------------------------------------- geometry
def _unknown_size() -> tuple[int, int]:
    raise FormatError(
        "turned or mirrored image of unknown size",
        expected="width and height in the builder's metadata",
        remedy="open and save the image in QuPath",
    )


def builder_frame(builder: dict[str, Any], slide_size: SlideSize = _unknown_size) -> Affine:
    """Return the transform from slide pixels to the frame that QuPath shows.

    Parameters
    ----------
    builder
        The server builder.
    slide_size
        Asked where the size of the slide matters and the builder does not name it.

    Raises
    ------
    FormatError
        If the builder, or one inside it, is of a type whose geometry is not known, or a size is not known.
    """
    inner = inner_builder(builder)
    if inner is None:
        builder_series(builder)
        return IDENTITY
    frame = builder_frame(inner, slide_size)
    match builder["builderType"]:
        case "cropped":
            x, y, _, _ = _region(builder)
            return _then(frame, (1.0, 0.0, 0.0, 1.0, -x, -y))
        case "rotated":
            return _then(frame, _rotation(builder.get("rotation"), lambda: builder_size(inner, slide_size)))
        case "flipped":
            return _then(frame, _flip(builder.get("flip"), lambda: builder_size(inner, slide_size)))
        case "affine":
            return _then(frame, _matrix(builder))
    return frame


def builder_size(builder: dict[str, Any], slide_size: SlideSize = _unknown_size) -> tuple[float, float]:
    """Return width and height of what a builder shows; parameters as in :func:`builder_frame`."""
    inner = inner_builder(builder)
    if inner is None:
        metadata = builder.get("metadata") or {}
        if "width" in metadata and "height" in metadata:
            return float(metadata["width"]), float(metadata["height"])
        return slide_size()
    if builder["builderType"] in ("cropped", "sparse"):
        return _region(builder)[2:]
    width, height = builder_size(inner, slide_size)
    if builder["builderType"] == "affine":
        a, b, d, e, _, _ = _matrix(builder)
        spans = abs(a) * width + abs(b) * height, abs(d) * width + abs(e) * height
        return float(math.ceil(spans[0])), float(math.ceil(spans[1]))
    return (height, width) if builder.get("rotation") in QUARTER_TURNS else (width, height)


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


def invert(frame: Affine) -> Affine:
    """Return the transform that takes back another."""
    a, b, d, e, x, y = frame
    det = a * e - b * d
    return (e / det, -b / det, -d / det, a / det, (b * y - e * x) / det, (d * x - a * y) / det)


def _rotation(rotation: Any, size: Callable[[], tuple[float, float]]) -> Affine:
    """Clockwise rotation of an image of a given size."""
    match rotation:
        case "ROTATE_NONE":
            return IDENTITY
        case "ROTATE_90":
            return (0.0, -1.0, 1.0, 0.0, size()[1], 0.0)
        case "ROTATE_180":
            return (-1.0, 0.0, 0.0, -1.0, *size())
        case "ROTATE_270":
            return (0.0, 1.0, -1.0, 0.0, 0.0, size()[0])
    raise FormatError(f"image rotated by {rotation!r}", expected="ROTATE_NONE, ROTATE_90, ROTATE_180 or ROTATE_270")


def _flip(flip: Any, size: Callable[[], tuple[float, float]]) -> Affine:
    """Mirror image of an image of a given size."""
    match flip:
        case "NONE":
            return IDENTITY
        case "HORIZONTAL":
            return (-1.0, 0.0, 0.0, 1.0, size()[0], 0.0)
        case "VERTICAL":
            return (1.0, 0.0, 0.0, -1.0, 0.0, size()[1])
        case "BOTH":
            return (-1.0, 0.0, 0.0, -1.0, *size())
    raise FormatError(f"image flipped {flip!r}", expected="NONE, HORIZONTAL, VERTICAL or BOTH")


def _matrix(builder: Mapping[str, Any]) -> Affine:
    """Return the matrix of an affine builder; numbers that are missing are 0, as in QuPath."""
    stored = builder.get("transform") or {}
    try:
        a, b, x, d, e, y = (float(stored.get(f"m{row}{column}", 0.0)) for row in (0, 1) for column in (0, 1, 2))
    except (AttributeError, TypeError, ValueError) as error:
        raise FormatError(f"image moved by {stored!r}", expected="the six numbers of an affine transform") from error
    if not all(map(math.isfinite, (a, b, x, d, e, y))) or a * e == b * d:
        raise FormatError(f"image moved by {stored!r}", expected="an affine transform that can be inverted")
    return (a, b, d, e, x, y)


def _region(builder: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """Return (x, y, width, height) of the region of a cropped builder, or of a sparse one with one part."""
    region = builder["regions"][0] if builder["builderType"] == "sparse" else builder
    region = region.get("region") or {}
    try:
        x, y, width, height = (float(region[key]) for key in ("x", "y", "width", "height"))
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"image cropped to {region!r}", expected="x, y, width and height") from error
    return x, y, width, height


# ---------------------------------------------------------------------- pixel size
def builder_mpp(builder: dict[str, Any]) -> tuple[float, float] | None:
    """Return the pixel size (x, y) in µm of what a builder shows; None if that is for the file to say, or not known.

    Raises
    ------
    FormatError
        As in :func:`builder_frame`.
    """
    calibration = (builder.get("metadata") or {}).get("pixelCalibration")
    if calibration is None:
        return _mpp_inside(builder)
    width, height = calibration["pixelWidth"], calibration["pixelHeight"]
    if width["unit"] in MICRONS and height["unit"] in MICRONS:
        return float(width["value"]), float(height["value"])
    return None


def _mpp_inside(builder: dict[str, Any]) -> tuple[float, float] | None:
    """Return the pixel size that follows from the builder inside another."""
    inner = inner_builder(builder)
    if inner is None:
        return None
    kind = builder["builderType"]
    size = _mpp_inside(inner) if kind in FILE_METADATA else builder_mpp(inner)
    if size is None:
        return None
    if kind == "affine":
        return _mapped_mpp(size, _matrix(builder))
    return size[::-1] if builder.get("rotation") in QUARTER_TURNS else size


def _mapped_mpp(mpp: tuple[float, float], matrix: Affine) -> tuple[float, float] | None:
    """Return the pixel size after an affine transform; None where pixels would be no rectangles, as in QuPath."""
    back = invert(matrix)
    a, b, d, e, _, _ = back
    upright = b == d == 0.0 or a == e == 0.0
    square = mpp[0] == mpp[1] and math.isclose(a * b, -d * e, abs_tol=1e-12)
    return unit_mpp(mpp, back) if upright or square else None


def unit_mpp(mpp: tuple[float, float], frame: Affine) -> tuple[float, float]:
    """Return how long in µm a step of one pixel in x, and one in y, is after a transform to pixels of `mpp` µm."""
    a, b, d, e, _, _ = frame
    return math.hypot(a * mpp[0], d * mpp[1]), math.hypot(b * mpp[0], e * mpp[1])
