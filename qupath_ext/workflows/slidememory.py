"""What was measured on slides, kept in a project: the next analysis of a slide need not measure it again.

Stains, the size of nuclei and the thresholds of the classical detector take seconds, and are the same each time as long
as the slide is. They stand in ``<project>/qupath_ext/slides/<name of the slide>-<hash>.json``, which may be removed at
any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import shapely

import qupath_ext
from pyhisto.config import from_mapping
from pyhisto.errors import ConfigError
from pyhisto.nuclei import AutoSettings, CellDetectionSettings, auto_settings
from pyhisto.nuclei.survey import Survey, survey_slide
from pyhisto.slide import Slide
from pyhisto.stain import H_DAB, StainReference, StainVectors
from qupath_ext.errors import ProjectError

__all__ = ["FOLDER", "SlideMemory"]

FOLDER = Path("qupath_ext") / "slides"
"""Where it is kept, as seen from the folder of a project."""
MEMORY_VERSION = 2
"""Raised when the files change their layout, or what is measured its meaning."""

MOST_KEPT = 8
"""Of a slide: what was measured longest ago goes first."""

COLUMNS = ("diameter_um", "assumed_um", "vote")
"""Those of :attr:`pyhisto.nuclei.survey.Survey.observed`."""

T = TypeVar("T")


class SlideMemory:
    """Measures slides, unless it was done before.

    What is kept counts only for the same file (path, size, time of change), series, frame and pixel size, by the same
    version of this program; else all that is kept of the slide is thrown away.

    Parameters
    ----------
    project
        The folder of the project; nothing is kept if None.
    """

    def __init__(self, project: Path | None = None) -> None:
        self._folder = None if project is None else project / FOLDER

    def survey(
        self,
        slide: Slide,
        *,
        stains: StainVectors | None = None,
        reference: StainVectors | None = None,
        nuclei: bool = True,
    ) -> Survey:
        """Return what sample tiles of a slide show; see :func:`pyhisto.nuclei.survey.survey_slide`.

        Raises
        ------
        ProjectError
            If it cannot be kept.
        """
        asked = {
            "measured": "survey",
            "stains": _stains_to_json(stains),
            "reference": _stains_to_json(reference),
            "nuclei": nuclei,
        }

        def measure() -> Survey:
            return survey_slide(slide, stains=stains, reference=reference, nuclei=nuclei)

        return self._remembered(slide, asked, measure, _survey_to_json, _survey_from_json)

    def settings(
        self,
        slide: Slide,
        *,
        base: CellDetectionSettings,
        reference: StainVectors = H_DAB,
        stains: StainVectors | None = None,
        region: Any | None = None,
    ) -> AutoSettings:
        """Return settings derived from a slide; see :func:`pyhisto.nuclei.auto_settings`.

        Raises
        ------
        ProjectError
            If they cannot be kept.
        """
        asked = {
            "measured": "settings",
            "stains": _stains_to_json(stains),
            "reference": _stains_to_json(reference),
            "base": asdict(base),
            "region": None if region is None else hashlib.sha256(shapely.to_wkb(region)).hexdigest(),
        }

        def measure() -> AutoSettings:
            return auto_settings(slide, base=base, reference=reference, stains=stains, region=region)

        return self._remembered(slide, asked, measure, _settings_to_json, _settings_from_json)

    def _remembered(
        self,
        slide: Slide,
        asked: Mapping[str, Any],
        measure: Callable[[], T],
        to_json: Callable[[T], dict[str, Any]],
        from_json: Callable[[Mapping[str, Any]], T],
    ) -> T:
        if self._folder is None:
            return measure()
        described = _describe(slide)
        name = hashlib.sha256(f"{described['path']}#{slide.series}".encode()).hexdigest()[:12]
        path = self._folder / f"{slide.path.stem}-{name}.json"
        kept = _read(path, described)
        for one in kept:
            try:
                if one["asked"] == asked:
                    return from_json(one["found"])
            except (KeyError, TypeError, ValueError, ConfigError):  # somebody edited the file
                kept = []
        found = measure()
        _write(path, described, [*kept, {"asked": dict(asked), "found": to_json(found)}][-MOST_KEPT:])
        return found


# ---------------------------------------------------------------------- the file of a slide
def _describe(slide: Slide) -> dict[str, Any]:
    """Return what must be the same for measurements to count."""
    path = slide.path.resolve()
    state = path.stat()
    return {
        "path": str(path),
        "bytes": state.st_size,
        "changed_ns": state.st_mtime_ns,
        "series": slide.series,
        "dimensions": list(slide.dimensions),
        "levels": [list(size) for size in slide.level_dimensions],
        "mpp": list(slide.mpp),
    }


def _read(path: Path, described: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what is kept of a slide; nothing if it is about another state of it, or damaged."""
    try:
        content = json.loads(path.read_text("utf-8"))
        same = content["version"] == MEMORY_VERSION and content["program"] == qupath_ext.__version__
        return list(content["kept"]) if same and content["slide"] == described else []
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _write(path: Path, described: Mapping[str, Any], kept: list[dict[str, Any]]) -> None:
    """Write what is kept of a slide, all or nothing; of two writers at once the later one counts."""
    content = {"version": MEMORY_VERSION, "program": qupath_ext.__version__, "slide": described, "kept": kept}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise ProjectError(f"{path} cannot be written: {error.strerror or error}") from error


# ---------------------------------------------------------------------- values as JSON and back, to the last bit
def _stains_to_json(stains: StainVectors | None) -> dict[str, Any] | None:
    if stains is None:
        return None
    return {
        "names": list(stains.names),
        "vectors": [list(vector) for vector in stains.vectors],
        "background": list(stains.background),
    }


def _stains_from_json(content: Mapping[str, Any]) -> StainVectors:
    return from_mapping(StainVectors, content, "stains")


def _survey_to_json(survey: Survey) -> dict[str, Any]:
    return {
        "stains": _stains_to_json(survey.stains.stains),
        "p99": list(survey.stains.p99),
        "observed": {name: survey.observed[:, i].tolist() for i, name in enumerate(COLUMNS)},
    }


def _survey_from_json(content: Mapping[str, Any]) -> Survey:
    observed = np.stack([np.asarray(content["observed"][name], dtype=np.float64) for name in COLUMNS], axis=1)
    low, high = content["p99"]
    return Survey(StainReference(_stains_from_json(content["stains"]), (low, high)), observed)


def _settings_to_json(found: AutoSettings) -> dict[str, Any]:
    return {
        "settings": asdict(found.settings),
        "stains": _stains_to_json(found.stains),
        "notes": list(found.notes),
        "numbers": dict(found.measured),
    }


def _settings_from_json(content: Mapping[str, Any]) -> AutoSettings:
    return AutoSettings(
        from_mapping(CellDetectionSettings, content["settings"], "settings"),
        _stains_from_json(content["stains"]),
        tuple(content["notes"]),
        dict(content["numbers"]),
    )
