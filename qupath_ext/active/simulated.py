"""The table, the plot and the summary of a simulation, from the loops of its runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from qupath_ext.active.loop import find_loop
from qupath_ext.runs.record import write_json

__all__ = ["SHARE", "area_to_reach", "in_words", "results", "summary", "write_results"]

SHARE = 0.95
"""Of the figure with all labels that is to be reached."""

ALL = "all-labels"
RESAMPLES = 10_000


def results(folder: Path, rounds: int) -> pd.DataFrame:
    """Return what the runs of a simulation brought so far.

    Parameters
    ----------
    folder
        Of the simulation.
    rounds
        Rounds of a run; of the runs with all labels those are taken that were trained for as long.

    Returns
    -------
    pandas.DataFrame
        ``strategy`` (``all-labels`` among them), ``seed``, ``round``, ``regions`` and ``area_mm2`` (both of all rounds
        so far), ``metric``, ``value`` with its interval over patients ``low`` and ``high``, ``value: <class>``, and the
        number of objects by kind of correction. A round without a model, for want of any object, has the value 0.
    """
    rows: list[dict[str, Any]] = []
    for run in sorted(folder.glob("runs/*/seed-*")):
        seed, _, length = run.name.removeprefix("seed-").partition("-")
        if length and length != f"{rounds}-rounds":
            continue
        if not (run / "qupath_ext" / "active").is_dir():
            continue
        area, regions = 0.0, 0
        for one in find_loop(run).rounds():
            record = one.training
            if record is None or one.number > rounds:
                break
            added = record["added"]
            area, regions = area + added["area_mm2"], regions + added["regions"]
            figures = record["figures"].get("test") or record["figures"].get("validation") or {}
            value = figures.get("value")
            rows.append(
                {
                    "strategy": run.parent.name,
                    "seed": int(seed),
                    "round": one.number,
                    "regions": regions,
                    "area_mm2": round(area, 6),
                    "metric": figures.get("metric", ""),
                    "value": 0.0 if value is None else value,
                    "low": figures.get("low"),
                    "high": figures.get("high"),
                    **{f"value: {name}": of["value"] for name, of in figures.get("classes", {}).items()},
                    **added["objects"],
                }
            )
    return pd.DataFrame(rows)


def area_to_reach(area: npt.NDArray[np.float64], value: npt.NDArray[np.float64], wanted: float) -> float:
    """Return the labelled area at which a curve first reaches a value, linear between rounds; infinite if it does not.

    Parameters
    ----------
    area, value
        Of the rounds, the areas rising, float64 (n,).
    wanted
        The value.
    """
    reached = np.flatnonzero(value >= wanted)
    if len(reached) == 0:
        return math.inf
    first = int(reached[0])
    if first == 0:
        return float(area[0])
    share = (wanted - value[first - 1]) / (value[first] - value[first - 1])
    return float(area[first - 1] + share * (area[first] - area[first - 1]))


def _median(values: Sequence[float]) -> dict[str, float | None]:
    """Return the median with its 95 % interval by the bootstrap over seeds (Efron 1979); None for infinite."""
    sample = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(0)
    medians = np.sort(np.median(rng.choice(sample, (RESAMPLES, len(sample))), axis=1))
    low, high = medians[int(0.025 * RESAMPLES)], medians[int(0.975 * RESAMPLES) - 1]
    numbers = {"median": float(np.median(sample)), "low": float(low), "high": float(high)}
    return {name: round(x, 5) if math.isfinite(x) else None for name, x in numbers.items()}


def summary(table: pd.DataFrame) -> dict[str, Any]:
    """Return what a simulation says.

    Parameters
    ----------
    table
        As :func:`results` returns it.

    Returns
    -------
    dict
        ``all_labels`` (median over seeds), and for each strategy ``seeds``, ``value`` at the end, ``best``, and
        ``area_to_95_percent``: the labelled area in mm² at which a seed first reaches 95 % of the median with all
        labels; each as median, low and high over seeds. None is an area that no round reached. Runs that are not at
        their last round do not count.
    """
    last = table["round"].max()
    full = table[table["strategy"] == ALL]["value"]
    out: dict[str, Any] = {"all_labels": _median(full.tolist()) if len(full) else None, "strategies": {}}
    for name, own in table[table["strategy"] != ALL].groupby("strategy"):
        runs = [one.sort_values("round") for _, one in own.groupby("seed") if one["round"].max() == last]
        if not runs:
            continue
        found: dict[str, Any] = {
            "seeds": len(runs),
            "value": _median([float(run["value"].iloc[-1]) for run in runs]),
            "best": _median([float(run["value"].max()) for run in runs]),
        }
        if len(full):
            wanted = SHARE * float(full.median())
            areas = [area_to_reach(run["area_mm2"].to_numpy(), run["value"].to_numpy(), wanted) for run in runs]
            found["area_to_95_percent"] = _median(areas)
            found["seeds_that_reach_it"] = sum(math.isfinite(area) for area in areas)
        out["strategies"][str(name)] = found
    return out


def in_words(found: dict[str, Any]) -> list[str]:
    """Return what a simulation says, a line for all labels and each strategy; `found` is of :func:`summary`."""
    full = found["all_labels"]
    out = ["all labels: no run is done yet" if full is None else f"all labels: {_numbers(full)}"]
    for name, own in found["strategies"].items():
        line = f"{name}: {_numbers(own['value'])} in the last round"
        if full is not None:
            area, seeds = own["area_to_95_percent"], f"{own['seeds_that_reach_it']} of {own['seeds']} seeds"
            line += f"; {100 * SHARE:g} % of all labels by {seeds}, "
            line += "not in the median" if area["median"] is None else f"with {_numbers(area)} mm²"
        out.append(line)
    return out


def _numbers(found: dict[str, float | None]) -> str:
    """Return a median with its interval; an area that some seeds do not reach has no upper limit."""
    high = "not reached" if found["high"] is None else f"{found['high']:.3g}"
    return f"{found['median']:.3g} ({found['low']:.3g} to {high})"


def write_results(folder: Path, rounds: int) -> pd.DataFrame:
    """Write ``simulation.csv``, ``summary.json`` and ``simulation.png``; return the table."""
    table = results(folder, rounds)
    if table.empty:
        return table
    table.to_csv(folder / "simulation.csv", index=False)
    write_json(folder / "summary.json", summary(table))
    _plot(table, folder / "simulation.png")
    return table


def _plot(table: pd.DataFrame, path: Path) -> None:
    """Draw the median over seeds with the range of all of them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, (name, own) in enumerate(table[table["strategy"] != ALL].groupby("strategy")):
        rounds = own.groupby("round")
        area, middle = rounds["area_mm2"].median(), rounds["value"].median()
        axes.plot(area, middle, marker="o", color=f"C{number}", label=str(name))
        axes.fill_between(area, rounds["value"].min(), rounds["value"].max(), color=f"C{number}", alpha=0.15)
    full = table[table["strategy"] == ALL]["value"]
    if len(full):
        axes.axhline(full.median(), color="0.3", linewidth=1, label="all labels")
        axes.axhline(SHARE * full.median(), color="0.3", linewidth=1, linestyle=":", label="95 % of it")
    metric = next((name for name in table["metric"] if name), "")
    axes.set_xlabel("labelled area, mm²")
    axes.set_ylabel(f"{metric} on the test patients, median and range of {table['seed'].nunique()} seeds")
    axes.legend()
    figure.savefig(path, dpi=120)
