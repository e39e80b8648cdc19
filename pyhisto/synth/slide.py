"""One call: settings in, slide and truth out."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyhisto.objects import make_objects
from pyhisto.synth.draw import draw_slide
from pyhisto.synth.layout import Layout, make_layout
from pyhisto.synth.nuclei import LYMPHOCYTE, STROMA, TUMOUR, Nuclei, make_nuclei, outlines_px
from pyhisto.synth.pyramid import write_pyramid
from pyhisto.synth.settings import SynthSettings, SynthTruth
from pyhisto.synth.stains import draw_appearance

__all__ = ["make_slide"]


def make_slide(path: Path | str, settings: SynthSettings) -> SynthTruth:
    """Draw a Ki-67 slide, write it as a pyramidal TIFF and return what is on it.

    Parameters
    ----------
    path
        The file, ``.tif`` or ``.tiff``; replaced at once if it exists.
    settings
        What to draw.

    Returns
    -------
    SynthTruth
        Outlines and nuclei in level-0 px.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    look = draw_appearance(settings)
    layout = make_layout(settings)
    nuclei = make_nuclei(settings, layout, look)
    write_pyramid(
        Path(path), draw_slide(settings, layout, nuclei, look), settings.mpp, compression=settings.compression
    )
    return _truth(settings, layout, nuclei)


def _truth(settings: SynthSettings, layout: Layout, nuclei: Nuclei) -> SynthTruth:
    rng = np.random.default_rng((settings.seed, 7))
    tumour = nuclei.kind == TUMOUR
    conditions = [tumour & nuclei.positive, tumour, nuclei.kind == STROMA, nuclei.kind == LYMPHOCYTE]
    classes = np.select(conditions, ["Tumor: Positive", "Tumor: Negative", "Stroma", "Immune cells"], "")
    count = int(tumour.sum())
    return SynthTruth(
        tissue=make_objects(layout.tissue, object_type="annotation", name="Tissue", ids=_ids(rng, layout.tissue)),
        tumour=make_objects(
            layout.nests, object_type="annotation", classification="Tumor", ids=_ids(rng, layout.nests)
        ),
        nuclei=make_objects(
            outlines_px(nuclei, settings.mpp),
            object_type="detection",
            classification=classes.tolist(),
            measurements={"Truth: DAB OD": nuclei.dab},
            ids=_ids(rng, nuclei.x_um),
        ),
        pen=make_objects(
            layout.pen, object_type="annotation", classification="Ignore*", name="Pen", ids=_ids(rng, layout.pen)
        ),
        ki67_index=float((tumour & nuclei.positive).sum()) / count if count else float("nan"),
        mpp=settings.mpp,
    )


def _ids(rng: np.random.Generator, rows: Sequence[Any] | np.ndarray[Any, Any]) -> list[str]:
    """Return version-4 UUIDs that depend on the generator only."""
    return [str(uuid.UUID(bytes=rng.bytes(16), version=4)) for _ in range(len(rows))]
