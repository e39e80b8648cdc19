"""What was measured on slides is not measured again, and is the same to the last bit."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import shapely
import tifffile
from live_jobs import make_job

import qupath_ext
from pyhisto.errors import MissingPixelSizeError
from pyhisto.nuclei import CellDetectionSettings, auto_settings
from pyhisto.nuclei.survey import Survey, survey_slide
from pyhisto.objects import make_objects
from pyhisto.slide import Slide
from pyhisto.stain import H_DAB, H_E
from qupath_ext.errors import ProjectError
from qupath_ext.exchange.geojson import read_geojson
from qupath_ext.live.tasks import run_job
from qupath_ext.project import create_project
from qupath_ext.runs.record import list_runs
from qupath_ext.workflows import slidememory
from qupath_ext.workflows.slidememory import SlideMemory

MPP = 0.5
BASE = CellDetectionSettings()


@pytest.fixture(scope="module")
def slide_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """256 x 256 px with 100 nuclei of 8 µm, each of its own shade: every other one blue, the others brown."""
    rows, columns = np.mgrid[:256, :256]
    rgb = np.full((256, 256, 3), (235, 225, 230), np.uint8)
    for number in range(100):
        x, y = 20 + 24 * (number % 10), 20 + 24 * (number // 10)
        colour = np.array((110, 60, 30) if number % 2 else (90, 90, 160)) + number // 10
        rgb[np.hypot(columns - x, rows - y) < 8] = colour
    path = tmp_path_factory.mktemp("slides") / "Schnitt ä.tif"
    tifffile.imwrite(path, rgb, photometric="rgb", tile=(256, 256))
    return path


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what is measured, as it is."""
    names: list[str] = []

    def noted(name: str, function: Any) -> Any:
        def measure(*arguments: Any, **options: Any) -> Any:
            names.append(name)
            return function(*arguments, **options)

        return measure

    monkeypatch.setattr(slidememory, "survey_slide", noted("survey", survey_slide))
    monkeypatch.setattr(slidememory, "auto_settings", noted("settings", auto_settings))
    return names


def same(one: Survey, other: Survey) -> bool:
    """Return whether two surveys are equal to the last bit."""
    return one.stains == other.stains and np.array_equal(one.observed, other.observed) and one.sizes == other.sizes


def kept_files(project: Path) -> list[Path]:
    return sorted((project / "qupath_ext" / "slides").iterdir())


def test_the_second_look_is_the_first_one_to_the_last_bit(
    slide_file: Path, tmp_path: Path, measured: list[str]
) -> None:
    region = shapely.box(0, 0, 256, 200)
    with Slide(slide_file, mpp=MPP) as slide:
        fresh = survey_slide(slide, reference=H_DAB), auto_settings(slide, base=BASE, region=region)
        for _ in range(2):  # each with a memory of its own, as two processes have
            memory = SlideMemory(tmp_path)
            assert same(memory.survey(slide, reference=H_DAB), fresh[0])
            assert memory.settings(slide, base=BASE, region=region) == fresh[1]
    assert measured == ["survey", "settings"]
    assert fresh[0].size.nuclei > 30
    assert fresh[1].stains != H_DAB
    (path,) = kept_files(tmp_path)
    content = json.loads(path.read_text("utf-8"))
    assert path.name.startswith("Schnitt ä-")
    assert content["slide"]["path"] == str(slide_file)
    assert content["slide"]["bytes"] == slide_file.stat().st_size
    assert [one["asked"]["measured"] for one in content["kept"]] == ["survey", "settings"]


def test_another_question_is_measured(slide_file: Path, tmp_path: Path, measured: list[str]) -> None:
    memory = SlideMemory(tmp_path)
    with Slide(slide_file, mpp=MPP) as slide:
        for _ in range(2):
            memory.survey(slide, nuclei=False)
            memory.survey(slide, nuclei=False, reference=H_E)
            memory.survey(slide, nuclei=False, stains=H_DAB)
            memory.settings(slide, base=BASE, stains=H_DAB)
            memory.settings(slide, base=BASE, stains=H_DAB, region=shapely.box(0, 0, 256, 100))
            memory.settings(slide, base=replace(BASE, sigma_um=2.0), stains=H_DAB)
    assert measured == ["survey"] * 3 + ["settings"] * 3


def test_what_was_asked_longest_ago_goes_first(slide_file: Path, tmp_path: Path, measured: list[str]) -> None:
    memory = SlideMemory(tmp_path)
    with Slide(slide_file, mpp=MPP) as slide:
        for white in range(slidememory.MOST_KEPT + 1):
            memory.survey(slide, nuclei=False, stains=H_DAB.with_background((240.0 + white, 240.0, 240.0)))
        measured.clear()
        memory.survey(slide, nuclei=False, stains=H_DAB.with_background((241.0, 240.0, 240.0)))
        assert measured == []
        memory.survey(slide, nuclei=False, stains=H_DAB.with_background((240.0, 240.0, 240.0)))
    assert measured == ["survey"]


@pytest.mark.parametrize("change", ["time", "content", "pixel size", "version of the program", "damage", "edited"])
def test_a_slide_that_is_another_one_is_measured_anew(
    slide_file: Path, tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    copy = tmp_path / "slide.tif"
    copy.write_bytes(slide_file.read_bytes())
    memory = SlideMemory(tmp_path)

    def look(mpp: float = MPP) -> None:
        with Slide(copy, mpp=mpp) as slide:
            memory.survey(slide, nuclei=False)

    look()
    state = copy.stat()
    (path,) = kept_files(tmp_path)
    if change == "time":
        os.utime(copy, ns=(state.st_atime_ns, state.st_mtime_ns + 1_000_000))
    elif change == "content":
        copy.write_bytes(copy.read_bytes() + b"\0")
        os.utime(copy, ns=(state.st_atime_ns, state.st_mtime_ns))
    elif change == "version of the program":
        monkeypatch.setattr(qupath_ext, "__version__", "0.0.0")
    elif change == "damage":
        path.write_bytes(path.read_bytes()[:-20])
    elif change == "edited":
        path.write_text(path.read_text("utf-8").replace('"p99"', '"p98"'), encoding="utf-8")
    for _ in range(2):
        look(0.25 if change == "pixel size" else MPP)
    assert measured == ["survey", "survey"]
    assert len(json.loads(path.read_text("utf-8"))["kept"]) == 1


def test_without_a_project_nothing_is_kept(slide_file: Path, tmp_path: Path, measured: list[str]) -> None:
    with Slide(slide_file, mpp=MPP) as slide:
        SlideMemory().survey(slide, nuclei=False)
        SlideMemory().survey(slide, nuclei=False)
    assert measured == ["survey", "survey"]
    assert list(tmp_path.iterdir()) == []


def test_errors_are_those_of_measuring_and_of_the_disk(slide_file: Path, tmp_path: Path) -> None:
    with Slide(slide_file) as slide, pytest.raises(MissingPixelSizeError):
        SlideMemory(tmp_path).survey(slide)
    (tmp_path / "qupath_ext").write_text("in the way")
    with Slide(slide_file, mpp=MPP) as slide, pytest.raises(ProjectError, match="cannot be written"):
        SlideMemory(tmp_path).survey(slide, nuclei=False)
    assert [path.name for path in tmp_path.iterdir()] == ["qupath_ext"]


BOXES = {"left": shapely.box(0, 0, 128, 180), "right": shapely.box(128, 0, 256, 180)}
"""Two selections, each with 40 of the nuclei."""


@pytest.mark.parametrize("task", ["ki67-selection", "detect-cells"])
def test_a_second_click_gives_the_same_cells_and_another_selection_the_same_settings(
    slide_file: Path, tmp_path: Path, measured: list[str], task: str
) -> None:
    project = create_project(tmp_path / "project", backend="native")
    entry = project.add_image(slide_file, mpp=MPP)
    drawn = make_objects(list(BOXES.values()), object_type="annotation", name=list(BOXES))

    def click(number: int, name: str) -> gpd.GeoDataFrame:
        folder = make_job(
            tmp_path / str(number),
            project,
            entry,
            task,
            objects=drawn,
            selected=list(drawn.index[drawn["name"] == name]),
            options={"automatic": True},
        )
        answer = run_job(folder, say=lambda line: None)
        assert answer.status == "done", answer.message
        assert answer.add is not None
        return read_geojson(folder / answer.add).reset_index(drop=True)

    first, second, other = click(1, "left"), click(2, "left"), click(3, "right")
    once = ["survey", "settings"] if task == "ki67-selection" else ["settings"]
    assert measured == once
    kept_files(project.path.parent)[0].unlink()
    anew = click(4, "left")  # by one that knows nothing
    assert measured == once * 2
    assert len(first) >= 35
    assert len(other) >= 35
    for same_again in (second, anew):
        assert first.drop(columns="nucleus").equals(same_again.drop(columns="nucleus"))
    results = [run.images[entry.id]["result"]["settings"] for run in list_runs(project)]
    assert len(results) == 4
    assert all(result == results[0] for result in results)
