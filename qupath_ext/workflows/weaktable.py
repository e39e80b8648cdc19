"""The table of pairs of alpha and beta, and its picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

__all__ = ["draw_pairs", "write_pairs"]

PAIRS_CSV = "pairs.csv"
PAIRS_PNG = "pairs.png"


def write_pairs(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the rows of pairs as ``pairs.csv``, all or nothing.

    Parameters
    ----------
    folder
        An existing folder.
    rows
        As :func:`qupath_ext.workflows.weak.train_pairs` yields them.
    """
    temporary = folder / f".{PAIRS_CSV}.tmp"
    pd.DataFrame(rows).to_csv(temporary, index=False, float_format="%.4f")
    temporary.replace(folder / PAIRS_CSV)


def draw_pairs(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw ``pairs.png``: the area under the curve of pixels, or of slides without any, beside recall and precision.

    Parameters
    ----------
    folder, rows
        As for :func:`write_pairs`, at least one row.
    """
    by_pixel = any(row["pixel_auc"] is not None for row in rows)
    figure = Figure(figsize=(9, 4), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    for beta in sorted({row["beta"] for row in rows}):
        own = sorted((row for row in rows if row["beta"] == beta), key=lambda row: row["alpha"])
        alphas = [row["alpha"] for row in own]
        auc = [_or_nan(row["pixel_auc" if by_pixel else "slide_auroc"]) for row in own]
        (line,) = left.plot(alphas, auc, "o-", markersize=4, label=f"beta {beta:g}")
        for name, style, filled in (("recall", "-", "full"), ("precision", "--", "none")):
            values = [_or_nan(row[name]) for row in own]
            look = {"marker": "o", "markersize": 5, "fillstyle": filled, "color": line.get_color()}
            right.plot(alphas, values, style, **look)
    left.set(xlabel="alpha", ylabel="AUC of pixels" if by_pixel else "AUROC of slides", ylim=(0, 1.02))
    right.set(xlabel="alpha", ylabel="recall (filled), precision (open)", ylim=(0, 1.02))
    left.legend(fontsize=8, frameon=False)
    for axis in (left, right):
        axis.grid(alpha=0.25)
    temporary = folder / f".{PAIRS_PNG}.tmp"
    FigureCanvasAgg(figure).print_figure(temporary, format="png")
    temporary.replace(folder / PAIRS_PNG)


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
