"""What project.qpproj says about one image: changes of it, checked."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qupath_ext.entry import UNSET, Unset
from qupath_ext.errors import ProjectError
from qupath_ext.native.builderframe import leaf_builder
from qupath_ext.native.builders import file_uri, make_builder

__all__ = ["changed_image", "check_image_type", "pixel_size"]

UNCALIBRATED = {"zSpacing": {"value": 1.0, "unit": "z-slice"}, "timeUnit": "SECONDS", "timepoints": []}


def changed_image(
    image: dict[str, Any],
    *,
    name: str | None,
    description: str | Unset | None,
    metadata: Mapping[str, str | None] | None,
    tags: Sequence[str] | None,
    mpp: float | tuple[float, float] | None,
    slide: Callable[[], Path],
    moved_to: Path | None = None,
) -> dict[str, Any]:
    """Return an image of a project file with changes; the arguments are those of ``ImageEntry.update``.

    Parameters
    ----------
    image
        The image as it stands in the project file; it is not changed. Keys that are not known are kept.
    slide
        Returns the slide; asked where its metadata are needed, which a builder may lack.
    moved_to
        Where the slide is now, if it was moved.

    Raises
    ------
    ProjectError
        If a value cannot be stored.
    """
    out = copy.deepcopy(image)
    if name is not None:
        if not isinstance(name, str) or not name.strip():
            raise ProjectError(f"image name {name!r}", expected="a text that is not blank")
        out["imageName"] = name
    if description is None:
        out.pop("description", None)
    elif description is not UNSET:
        if not isinstance(description, str):
            raise ProjectError(f"description {description!r}", expected="a text, or None")
        out["description"] = description
    out["metadata"] = _changed_metadata(out.get("metadata") or {}, metadata or {})
    if tags is not None:
        _set_tags(out, tags)
    if mpp is not None:
        _set_pixel_size(out["serverBuilder"], pixel_size(mpp), slide)
    if moved_to is not None:
        leaf_builder(out["serverBuilder"])["uri"] = file_uri(moved_to)
    return out


def _changed_metadata(entries: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    out = dict(entries)
    for key, value in changes.items():
        if not isinstance(key, str) or not (value is None or isinstance(value, str)):
            raise ProjectError(f"metadata {key!r}: {value!r}", expected="texts, or None to take an entry away")
        if value is None:
            out.pop(key, None)
        else:
            out[key] = value
    return out


def _set_tags(image: dict[str, Any], tags: Sequence[str]) -> None:
    if isinstance(tags, str) or not all(isinstance(tag, str) and tag.strip() for tag in tags):
        raise ProjectError(f"tags {tags!r}", expected="texts that are not blank")
    if tags or "tags" in image:
        image["tags"] = list(dict.fromkeys(tags))  # QuPath keeps a set


# ---------------------------------------------------------------------- pixel size
def pixel_size(mpp: float | tuple[float, float]) -> tuple[float, float]:
    """Return a pixel size (x, y) in µm, given as one number or two.

    Raises
    ------
    ProjectError
        If it is not.
    """
    try:
        x, y = (float(size) for size in (mpp if isinstance(mpp, (tuple, list)) else (mpp, mpp)))
    except (TypeError, ValueError):
        x = y = math.nan
    if not (0 < x < math.inf and 0 < y < math.inf):
        raise ProjectError(f"pixel size {mpp!r}", expected="µm, one number or (x, y), greater than 0")
    return x, y


def _set_pixel_size(builder: dict[str, Any], mpp: tuple[float, float], slide: Callable[[], Path]) -> None:
    """Put the pixel size where QuPath puts what a user sets: into the metadata of the outermost builder.

    They stand for the image as it is shown, after the rotation or cropping that the builder does, and go before those
    of the builders inside it.
    """
    if not builder.get("metadata"):
        if builder.get("builderType") != "uri":
            raise ProjectError(
                f"image of builder type {builder.get('builderType')!r} without metadata of its own",
                remedy="open the image in QuPath and save it once, which writes them",
            )
        builder["metadata"] = make_builder(slide(), mpp)[0]["metadata"]
    calibration = builder["metadata"].setdefault("pixelCalibration", copy.deepcopy(UNCALIBRATED))
    for side, size in zip(("pixelWidth", "pixelHeight"), mpp, strict=True):
        calibration[side] = {"value": size, "unit": "µm"}


# ---------------------------------------------------------------------- image type
def check_image_type(image_type: str, builder: Mapping[str, Any]) -> None:
    """Refuse an image type with which QuPath would not open the image.

    Raises
    ------
    ProjectError
        If it is a brightfield type and the image has not three channels.
    """
    metadata = builder.get("metadata") or {}
    n_channels = len(metadata.get("channels") or ())
    if image_type.startswith("BRIGHTFIELD") and metadata and not metadata.get("isRGB") and n_channels != 3:
        raise ProjectError(
            f"image type {image_type} for an image of {n_channels} channels", expected="an RGB image, or another type"
        )
