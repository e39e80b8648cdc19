"""Learning curves as a table and as a picture."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pyhisto.train.history import History

__all__ = ["smooth", "write_curves"]

CSV = "curve.csv"
PNG = "curve.png"


def write_curves(folder: Path, history: History, *, picture: bool) -> None:
    """Write ``curve.csv`` and, if asked for, ``curve.png``.

    The table has one row for each step, counted from 1: its loss, and where there was a validation after it, the
    validation loss, the mean Dice and the Dice of each class. Row 0 is the validation of the untrained network.
    """
    _write_table(folder / CSV, history)
    if picture:
        _draw(folder / PNG, history)


def smooth(values: npt.NDArray[np.float64], window: int) -> npt.NDArray[np.float64]:
    """Return the mean of each value and the up to ``window - 1`` before it, float (n,).

    >>> smooth(np.array([4.0, 2.0, 3.0]), 2)
    array([4. , 3. , 2.5])
    """
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return np.asarray((sums[ends] - sums[starts]) / (ends - starts))


def _classes(history: History) -> list[str]:
    return list(history.validations[0].dice) if history.validations else []


def _write_table(path: Path, history: History) -> None:
    rows = {row.step: row for row in history.validations}
    names = _classes(history)
    heading = ["validation_loss", "mean_dice", *(f"dice {name}" for name in names)] if rows else []
    temporary = path.with_suffix(".csv.tmp")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "loss", *heading])
        for step in range(0 if 0 in rows else 1, len(history.losses) + 1):
            row = rows.get(step)
            figures = [row.loss, row.mean_dice, *(row.dice[name] for name in names)] if row else [""] * len(heading)
            writer.writerow([step, history.losses[step - 1] if step else "", *figures])
    temporary.replace(path)


def _draw(path: Path, history: History) -> None:
    """Draw the losses and, beside them, Dice."""
    rows, losses = history.validations, np.asarray(history.losses)
    figure = Figure(figsize=(10 if rows else 5.5, 4), dpi=110, layout="constrained")
    axes = figure.subplots(1, 2 if rows else 1, squeeze=False)[0]
    steps = np.arange(1, len(losses) + 1)
    window = max(len(losses) // 20, 1)
    axes[0].plot(steps, losses, color="#9ecae1", linewidth=0.8, label="training")
    axes[0].plot(steps, smooth(losses, window), color="#08519c", label=f"training, mean of {window} steps")
    axes[0].set(xlabel="step", ylabel="loss", ylim=(0, None))
    if rows:
        at = [row.step for row in rows]
        axes[0].plot(at, [row.loss for row in rows], "o-", color="#d94801", markersize=3, label="validation")
        for name in _classes(history):
            axes[1].plot(at, [row.dice[name] for row in rows], "o-", markersize=3, linewidth=1, label=name)
        axes[1].plot(at, [row.mean_dice for row in rows], "o-", color="black", markersize=4, label="mean")
        axes[1].axvline(history.best_step, color="grey", linestyle=":", label=f"best: step {history.best_step}")
        axes[1].set(xlabel="step", ylabel="Dice on the validation windows", ylim=(0, 1))
    for axis in axes:
        axis.legend(fontsize=8, frameon=False)
        axis.grid(alpha=0.25)
    temporary = path.with_suffix(".png.tmp")
    FigureCanvasAgg(figure).print_figure(temporary, format="png")
    temporary.replace(path)
