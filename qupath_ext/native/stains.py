"""Stain vectors as QuPath stores them with an image."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass

from qupath_ext.errors import FormatError, ProjectError
from qupath_ext.native.catalog import Factory
from qupath_ext.native.tokens import Block, JObject, JString

__all__ = ["H_DAB", "H_E", "IMAGE_TYPES", "Stains", "check_stains", "parse_stains", "read_stains", "stains_token"]

Vector = tuple[float, float, float]

IMAGE_TYPES = ("BRIGHTFIELD_H_DAB", "BRIGHTFIELD_H_E", "BRIGHTFIELD_OTHER", "FLUORESCENCE", "OTHER", "UNSET")
"""QuPath's image types."""


@dataclass(frozen=True)
class Stains:
    """Colour deconvolution stains of an image.

    Attributes
    ----------
    name
        Name of the set.
    stain1_name, stain2_name, stain3_name
        Names of the stains; `stain3_name` is None where the third is the residual.
    stain1, stain2, stain3
        Optical density vectors (red, green, blue), not necessarily of length 1.
    background
        Red, green and blue of unstained glass, 0 to 255.
    """

    name: str
    stain1_name: str
    stain1: Vector
    stain2_name: str
    stain2: Vector
    stain3_name: str | None = None
    stain3: Vector | None = None
    background: Vector = (255.0, 255.0, 255.0)


H_DAB = Stains("H-DAB default", "Hematoxylin", (0.65111, 0.70119, 0.29049), "DAB", (0.26917, 0.56824, 0.77759))
"""QuPath's default vectors for hematoxylin and DAB."""
H_E = Stains("H&E default", "Hematoxylin", (0.65111, 0.70119, 0.29049), "Eosin", (0.2159, 0.8012, 0.5581))
"""QuPath's default vectors for hematoxylin and eosin."""


DEFAULT_STAINS = {"BRIGHTFIELD_H_DAB": H_DAB, "BRIGHTFIELD_H_E": H_E, "BRIGHTFIELD_OTHER": H_DAB}


def check_stains(image_type: str, stains: Stains | None) -> Stains | None:
    """Return the stains for an image type: those given, else QuPath's default ones.

    Raises
    ------
    ProjectError
        If the type is not known, or is one without stains: QuPath would not read such a data file.
    """
    if image_type not in IMAGE_TYPES:
        raise ProjectError(f"unknown image type {image_type!r}", expected=f"one of {', '.join(IMAGE_TYPES)}")
    if stains is not None and image_type not in DEFAULT_STAINS:
        raise ProjectError(f"stains for image type {image_type}", expected="a brightfield type, or no stains")
    return stains or DEFAULT_STAINS.get(image_type)


def _vector(text: str) -> Vector:
    r, g, b = (float(part) for part in text.split())
    return r, g, b


def _text(vector: Vector) -> str:
    return " ".join(f"{value:.8f}".rstrip("0").rstrip(".") for value in vector)


def read_stains(token: JObject) -> Stains:
    """Read a ``ColorDeconvolutionStains`` token.

    Raises
    ------
    FormatError
        If its text is not what QuPath writes.
    """
    texts = [item.text for item in token.contents if isinstance(item, JString)]
    return parse_stains(texts[0] if texts else "")


def parse_stains(text: str) -> Stains:
    """Read stains as QuPath writes them: JSON of strings, as in ``setColorDeconvolutionStains``.

    Raises
    ------
    FormatError
        If the text is something else.
    """
    try:
        values = json.loads(text)
        third = "Values 3" in values
        return Stains(
            name=values["Name"],
            stain1_name=values["Stain 1"],
            stain1=_vector(values["Values 1"]),
            stain2_name=values["Stain 2"],
            stain2=_vector(values["Values 2"]),
            stain3_name=values["Stain 3"] if third else None,
            stain3=_vector(values["Values 3"]) if third else None,
            background=_vector(values["Background"]),
        )
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise FormatError(f"stains that cannot be read: {text!r:.200}", expected="QuPath's JSON of strings") from error


def stains_token(stains: Stains, factory: Factory) -> JObject:
    """Return the ``ColorDeconvolutionStains`` token of some stains."""
    values = {
        "Name": stains.name,
        "Stain 1": stains.stain1_name,
        "Values 1": _text(stains.stain1),
        "Stain 2": stains.stain2_name,
        "Values 2": _text(stains.stain2),
    }
    if stains.stain3 is not None:
        values["Stain 3"] = stains.stain3_name or "Stain 3"
        values["Values 3"] = _text(stains.stain3)
    values["Background"] = " " + _text(stains.background)
    text = json.dumps(values, ensure_ascii=False)
    version = Block(struct.pack(">i", 1))
    return factory.external("qupath.lib.color.ColorDeconvolutionStains", [version, JString.of(text)])
