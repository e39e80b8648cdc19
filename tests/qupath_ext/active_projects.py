"""Projects for the active-learning loop: slides of pink tissue with brown and blue nuclei at known places."""

from __future__ import annotations

import functools
import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
import tifffile

from pyhisto.objects import make_objects, new_ids
from qupath_ext.active.loop import TRAINING, Loop, LoopSettings, find_loop, start_loop
from qupath_ext.active.predict import Looker
from qupath_ext.active.propose import ProposeOptions, propose_round
from qupath_ext.project import Project, create_project, open_project
from qupath_ext.study import LabelStudy
from qupath_ext.workflows.trainingdata import Source, truth_objects

WIDTH, HEIGHT, MPP = 800, 600, 0.5
"""Size of a slide, px, and µm of a pixel."""

PITCH = 40
"""Distance of the nuclei, px; the first is at (20, 20)."""

RADIUS = 8.0
"""Of the nuclei, px: 4 µm."""

CELLS = ("Tumor: Positive", "Tumor: Negative")


def nuclei() -> np.ndarray[Any, Any]:
    """Return the centres of the nuclei of a slide, px; every other one, row by row, is brown."""
    y, x = np.mgrid[PITCH // 2 : HEIGHT : PITCH, PITCH // 2 : WIDTH : PITCH]
    return np.column_stack([x.ravel(), y.ravel()]).astype(float)


@functools.cache
def slide_file(seed: int) -> bytes:
    """Return a slide: tissue everywhere but in the outermost 10 px, darker towards the right by the seed."""
    rng = np.random.default_rng(seed)
    image = np.full((HEIGHT, WIDTH, 3), 245.0)
    image[10:-10, 10:-10] = (220, 190, 210)
    image[10:-10, 10:-10] -= np.linspace(0, 20 + 5 * (seed % 7), WIDTH - 20)[None, :, None]
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH] + 0.5
    for number, (cx, cy) in enumerate(nuclei()):
        top, left = int(cy) - 10, int(cx) - 10
        here = (slice(max(top, 0), top + 20), slice(max(left, 0), left + 20))
        inside = (x[here] - cx) ** 2 + (y[here] - cy) ** 2 < RADIUS**2
        image[here][inside] = (120, 80, 50) if number % 2 == 0 else (90, 100, 160)
    image += rng.normal(0, 3, image.shape)
    file = io.BytesIO()
    tifffile.imwrite(
        file,
        image.clip(0, 255).astype(np.uint8),
        tile=(128, 128),
        photometric="rgb",
        compression="adobe_deflate",
        resolution=(20000, 20000),
        resolutionunit="CENTIMETER",
    )
    return file.getvalue()


def make_project(folder: Path, patients: Sequence[str] = ("A", "B", "C", "D")) -> Project:
    """Make a project with one slide a patient, without annotations."""
    folder.mkdir(parents=True)
    project = create_project(folder / "project")
    for number, patient in enumerate(patients):
        path = folder / f"{patient}.tif"
        path.write_bytes(slide_file(number))
        project.add_image(path, metadata={"Patient": patient})
    return project


def begin(project: Project, *others: Project, target: str = "cells", **settings: Any) -> Loop:
    """Begin a loop with regions of 100 µm and a budget of two of them."""
    classes = CELLS if target == "cells" else ("Tumor",)
    given: dict[str, Any] = {"target": target, "classes": classes, "region_um": 96.0, "budget_mm2": 0.02, **settings}
    return start_loop([project, *others], "first", LoopSettings(**given))


def person(project: Project, entry_id: str, **changes: Any) -> None:
    """Change an image as a person does: ``add`` a table, ``remove`` ids, or columns of values by id."""
    entry = open_project(project.path, backend="native").entry(int(entry_id))
    with entry.edit() as change:
        if "add" in changes:
            change.add(changes.pop("add"))
        change.remove(changes.pop("remove", []))
        for column, values in changes.items():
            change.update(pd.DataFrame({column: pd.Series(values, dtype=object)}))


def hush(line: str) -> None:
    """Take a line and say nothing."""
    del line


TUMOUR = [shapely.box(0, 0, 60, 60), shapely.box(100, 100, 160, 160)]
"""Where the stand-in for a model finds tumour, px from the corner of a region."""


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Find in each region the same, whatever the slide shows."""

    def editable(found: Any, region: Any, parent_id: str, settings: Any, mpp: float) -> gpd.GeoDataFrame:
        x, y = region.bounds[:2]
        if settings.target == "cells":
            rows = {CELLS[0]: [(20, 20), (40, 20), (60, 20)], CELLS[1]: [(20, 60), (40, 60)]}
            shapes = [shapely.MultiPoint(np.add(xy, [x, y])) for xy in rows.values()]
            return make_objects(shapes, object_type="annotation", classification=list(rows), parent_id=parent_id)
        shapes = [shapely.transform(shape, lambda xy: np.add(xy, [x, y])) for shape in TUMOUR]
        return make_objects(shapes, object_type="annotation", classification="Tumor", parent_id=parent_id)

    monkeypatch.setattr("qupath_ext.active.propose.editable", editable)
    monkeypatch.setattr(Looker, "found", lambda *args: None)


def first_round(target: str, folder: Path, factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Loop:
    """Return a loop whose first round is in the images: in each region 3 positive and 2 negative cells, or 2 areas."""
    stand_in(monkeypatch)
    made = factory.getbasetemp() / f"first-round-of-{target}"
    if not made.exists():
        propose_round(begin(make_project(made / "one"), target=target), ProposeOptions(), hush)
    shutil.copytree(made / "one", folder / "one")
    return find_loop(folder / "one" / "project")


class Region:
    """A region of the first round and what is in it."""

    def __init__(self, loop: Loop, rank: int = 1, project: int = 0) -> None:
        proposals = loop.round(1).table("proposals")
        self.row = proposals[(proposals["rank"] == rank) & (proposals["project"] == project)].iloc[0]
        self.id = str(self.row.name)
        self.project = loop.projects[project]
        self.x, self.y = self.row.geometry.bounds[:2]

    @property
    def source(self) -> Source:
        opened = open_project(self.project.path, backend="native")
        return Source(opened, opened.entry(int(self.row["entry_id"])))

    @property
    def inside(self) -> gpd.GeoDataFrame:
        present = self.source.entry.read_objects()
        return present[present["parent_id"] == self.id]

    def of(self, name: str) -> str:
        """Return the id of the points of a class."""
        found = self.inside
        return str(found.index[found["classification"] == name][0])

    def at(self, *places: tuple[float, float]) -> Any:
        return shapely.MultiPoint(np.add(places, [self.x, self.y]))

    def change(self, **changes: Any) -> None:
        person(self.project, self.row["entry_id"], **changes)

    def answer(self, verdict: str = "Done*") -> None:
        self.change(classification={self.id: verdict})

    def truth(self, **labels: Any) -> gpd.GeoDataFrame:
        return truth_objects(self.source, LabelStudy(**labels)).objects


def drawn(shape: Any, name: str, **columns: Any) -> gpd.GeoDataFrame:
    return make_objects([shape], object_type="annotation", classification=name, ids=new_ids(1), **columns)


def answer(loop: Loop, number: int, verdict: str = "Done*", *, ranks: tuple[int, ...] = ()) -> None:
    """Set the class of regions of a round, all by default, as a person does."""
    for id_, row in loop.round(number).table("proposals").iterrows():
        if not ranks or row["rank"] in ranks:
            person(loop.projects[row["project"]], row["entry_id"], classification={id_: verdict})


def trained(loop: Loop, number: int) -> None:
    """Note a training that had nothing to learn from, as far as the loop is concerned."""
    record = {"model": None, "added": {}, "figures": {}}
    (loop.round(number).folder / TRAINING).write_text(json.dumps(record), "utf-8")


def two_persons(folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Loop:
    """Begin a loop over the projects of Anna and Berta, who have the same slides, with one region proposed to both."""
    stand_in(monkeypatch)
    first = make_project(folder / "anna", "AB")
    second = create_project(folder / "berta")
    for entry in first.entries:
        second.add_image(entry.slide_path, metadata=entry.metadata)
    loop = begin(first, second, budget_mm2=0.01, **settings)
    propose_round(loop, ProposeOptions(), hush)
    return loop
