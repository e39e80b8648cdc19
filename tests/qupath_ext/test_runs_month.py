"""A month in one project: a person and the program take turns, and nothing the person made is ever lost or altered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from PIL import Image

from pyhisto.objects import concat_objects, empty_objects, make_objects
from qupath_ext.entry import ImageEntry
from qupath_ext.project import Project, create_project, open_project
from qupath_ext.runs.diff import diff_run
from qupath_ext.runs.ownership import read_ownership, write_run
from qupath_ext.runs.record import list_runs, start_run
from qupath_ext.runs.undo import undo_run

SIDE = 4000
CLASSES = ("Tumor", "Stroma", "Necrosis", "Tumor: Positive", "Tumor: Negative")


@dataclass
class Month:
    """The project, and what the person knows of it."""

    project: Project
    rng: np.random.Generator
    mine: dict[str, dict[str, Any]] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)

    @property
    def entry(self) -> ImageEntry:
        return self.project.entries[0]

    def fresh(self) -> ImageEntry:
        """The image as QuPath would open it: read now, by a program that knows nothing of this one."""
        return open_project(self.project.path, backend="native").entries[0]

    def pick(self, objects: gpd.GeoDataFrame) -> str | None:
        return None if len(objects) == 0 else str(self.rng.choice(objects.index.to_numpy()))

    def remember(self, objects: gpd.GeoDataFrame) -> None:
        for id_ in objects.index:
            row = objects.loc[id_]
            self.mine[id_] = {key: row[key] for key in ("geometry", "classification", "name")}

    def box(self, low: float, high: float) -> shapely.Polygon:
        x, y = np.round(self.rng.uniform(0, SIDE - high, 2))
        w, h = np.round(self.rng.uniform(low, high, 2))
        return shapely.box(x, y, x + w, y + h)

    # ------------------------------------------------------------------ what the person does
    def draw(self) -> None:
        """Draw an annotation, sometimes inside another one, which may be the program's."""
        entry = self.fresh()
        annotations = entry.read_objects().query("object_type == 'annotation'")
        parent = self.pick(annotations) if self.rng.random() < 0.5 else None
        shape = self.box(20, 200) if self.rng.random() < 0.8 else shapely.MultiPoint(self.rng.integers(0, SIDE, (3, 2)))
        new = make_objects(
            [shape], object_type="annotation", classification=str(self.rng.choice(CLASSES)), parent_id=parent
        )
        entry.write_objects(add=new)
        self.remember(new)

    def change(self) -> None:
        """Reclassify, rename or reshape an object, whoever made it."""
        entry = self.fresh()
        objects = entry.read_objects()
        id_ = self.pick(objects)
        if id_ is None:
            return
        row = objects.loc[id_]
        match self.rng.integers(3):
            case 0:
                changed = {"classification": str(self.rng.choice([c for c in CLASSES if c != row["classification"]]))}
            case 1:
                changed = {"name": f"checked {self.rng.integers(1000)}"}
            case _ if row["object_type"] == "annotation":
                changed = {"geometry": shapely.affinity.translate(row["geometry"], 3, 0)}
            case _:
                return
        with entry.edit() as change:
            change.update(pd.DataFrame({k: pd.Series([v], index=[id_], dtype=object) for k, v in changed.items()}))
        self.remember(self.fresh().read_objects().loc[[id_]])

    def delete(self) -> None:
        """Delete an object; what is inside moves up."""
        entry = self.fresh()
        id_ = self.pick(entry.read_objects())
        if id_ is not None:
            entry.write_objects(remove=[id_])
            self.mine.pop(id_, None)
            self.deleted.add(id_)

    # ------------------------------------------------------------------ what the program does
    def analyse(self) -> None:
        """Find tumour and cells in it, and cells in an annotation of the person."""
        analysis = str(self.rng.choice(["ki67", "tumour"]))
        run = start_run(self.project, analysis, {"run": len(list(list_runs(self.project)))}, {})
        owned = read_ownership(self.project, analysis, self.entry)
        replace = [i for i in owned.untouched if self.rng.random() < 0.9]
        kept = owned.present.drop(index=replace)
        host = self.pick(kept.query("object_type == 'annotation'"))
        tumour = make_objects([self.box(300, 900)], object_type="annotation", classification="Tumor", locked=True)
        parts = [tumour, self.cells(tumour.index[0]), self.cells(host) if host else empty_objects()]
        write_run(run, self.entry, concat_objects(parts), owned, replace=replace, lock=[host] if host else [])
        run.finish()

    def cells(self, parent: str) -> gpd.GeoDataFrame:
        boxes = [self.box(5, 10) for _ in range(int(self.rng.integers(1, 20)))]
        return make_objects(boxes, object_type="cell", classification="Tumor: Negative", parent_id=parent)

    def undo(self) -> None:
        runs = list(list_runs(self.project))
        if runs:
            list(undo_run(self.project, runs[int(self.rng.integers(len(runs)))]))

    def diff(self) -> None:
        """Look at a run: what it says was changed or added is the person's, and deleted is what they deleted."""
        runs = list(list_runs(self.project))
        if not runs:
            return
        (found,) = diff_run(self.project, runs[int(self.rng.integers(len(runs)))])
        status = found.objects["status"]
        assert set(status.index[status == "deleted"]) <= self.deleted
        assert set(status.index[status == "changed"]) <= set(self.mine)
        assert set(found.added.index) <= set(self.mine)

    # ------------------------------------------------------------------ what must hold
    def check(self) -> None:
        present = self.fresh().read_objects()
        assert present.index.is_unique
        missing = set(self.mine) - set(present.index)
        assert not missing, f"lost: {missing}"
        for id_, known in self.mine.items():
            row = present.loc[id_]
            assert row["geometry"].equals(known["geometry"]), id_
            assert row["classification"] == known["classification"], id_
            assert (row["name"] or None) == (known["name"] or None), id_
        assert not self.deleted & set(present.index), "what a person deleted came back"
        parents = present["parent_id"].dropna()
        assert parents.isin(present.index).all()


@pytest.mark.parametrize(
    ("backend", "seed", "days"),
    [
        ("native", 0, 12),
        pytest.param("native", 0, 30, marks=pytest.mark.slow),
        pytest.param("native", 1, 30, marks=pytest.mark.slow),
        pytest.param("paquo", 2, 30, marks=pytest.mark.qupath),
    ],
)
def test_a_month(tmp_path: Path, backend: str, seed: int, days: int) -> None:
    """Seven operations a day, half of them the person's."""
    slide = tmp_path / "slide.tif"
    Image.new("RGB", (SIDE, SIDE), (240, 240, 240)).save(slide)
    project = create_project(tmp_path / "project", backend=backend)
    project.add_image(slide, mpp=0.5)
    month = Month(project, np.random.default_rng(seed))
    persons: list[Callable[[], None]] = [month.draw, month.draw, month.change, month.change, month.delete]
    programs: list[Callable[[], None]] = [month.analyse, month.analyse, month.undo, month.diff]
    for number in range(7 * days):
        turn = persons if number % 2 == 0 else programs
        turn[int(month.rng.integers(len(turn)))]()
        month.check()
    assert len(month.mine) > days
    assert len(list(list_runs(project))) > days
