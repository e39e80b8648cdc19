"""What a round sees of a slide and a later one need not look for again: where the tissue is, and where it is bad."""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import shapely

from pyhisto.active.grid import Grid, Overview
from pyhisto.active.quality import Quality, overview_quality
from pyhisto.config import from_mapping
from pyhisto.objects import make_objects
from pyhisto.slide import Slide
from pyhisto.tissue import detect_tissue
from qupath_ext.workflows.slidememory import SlideMemory

__all__ = ["RoundMemory"]


class RoundMemory(SlideMemory):
    """Looks at slides from afar, unless it was done before; see :class:`SlideMemory`."""

    def tissue(self, slide: Slide) -> gpd.GeoDataFrame:
        """Return the tissue of a slide; see :func:`pyhisto.tissue.detect_tissue`.

        Raises
        ------
        ProjectError
            If it cannot be kept.
        """
        asked = {"measured": "tissue"}
        return self._remembered(slide, asked, partial(detect_tissue, slide), _tissue_to_json, _tissue_from_json)

    def quality(self, slide: Slide, overview: Overview, tissue: Sequence[Any]) -> Quality:
        """Return where a slide is bad by its overview; see :func:`pyhisto.active.quality.overview_quality`.

        Raises
        ------
        ProjectError
            If it cannot be kept.
        """
        digest = hashlib.sha256(shapely.to_wkb(shapely.MultiPolygon(list(tissue)))).hexdigest()
        asked = {"measured": "quality", "um": overview.grid.um, "tissue": digest}
        measure = partial(overview_quality, overview, tissue)
        return self._remembered(slide, asked, measure, _quality_to_json, _quality_from_json)


def _tissue_to_json(tissue: gpd.GeoDataFrame) -> dict[str, Any]:
    return {"polygons": [_packed(shapely.to_wkb(shape)) for shape in tissue.geometry]}


def _tissue_from_json(content: Mapping[str, Any]) -> gpd.GeoDataFrame:
    shapes = [shapely.from_wkb(_unpacked(text)) for text in content["polygons"]]
    return make_objects(shapes, object_type="annotation", classification="Tissue")


def _quality_to_json(found: Quality) -> dict[str, Any]:
    masks = {name: _packed(np.packbits(getattr(found, name)).tobytes()) for name in ("pen", "fold", "blur")}
    return {**masks, "grid": asdict(found.grid)}


def _quality_from_json(content: Mapping[str, Any]) -> Quality:
    grid = from_mapping(Grid, content["grid"], "grid")

    def mask(name: str) -> npt.NDArray[np.bool_]:
        bits = np.frombuffer(_unpacked(content[name]), dtype=np.uint8)
        return np.unpackbits(bits, count=grid.shape[0] * grid.shape[1]).astype(bool).reshape(grid.shape)

    return Quality(mask("pen"), mask("fold"), mask("blur"), grid)


def _packed(content: bytes) -> str:
    return base64.b64encode(zlib.compress(content)).decode("ascii")


def _unpacked(text: str) -> bytes:
    try:
        return zlib.decompress(base64.b64decode(text))
    except zlib.error as error:
        raise ValueError(str(error)) from error
