"""Rounds of a loop by hand-made edits: every correction is learnt from, and nothing that a person drew is lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import shapely
from active_projects import CELLS, hush, make_project, nuclei, person
from qupath_scripts import NEEDS, run_scripts

from pyhisto.bundle.files import load_bundle
from pyhisto.dataset import CellTask, Split, TrainingImage, labelled_areas, read_split
from pyhisto.objects import concat_objects, make_objects, new_ids
from qupath_ext.active.collect import collect_round
from qupath_ext.active.loop import Loop, LoopSettings, find_loop, start_loop
from qupath_ext.active.propose import ProposeOptions, propose_round
from qupath_ext.active.rollback import rollback
from qupath_ext.active.status import loop_status
from qupath_ext.active.training import TrainOptions, round_images, train_round
from qupath_ext.project import Project, open_project

STUDY = """
kind = "cells"
classes = ["Tumor: Positive", "Tumor: Negative"]
validation_windows = 2
[model]
architecture = "attention-unet"
decoder_channels = [8, 4]
mpp = 1.0
tile_size = 64
overlap = 8
[training]
steps = 4
batch_size = 2
workers = 0
checkpoint_every = 100
validate_every = 4
"""

POSITIVE, NEGATIVE = CELLS
MOVED = np.array([4.0, 0.0])
"""By how much a point is moved, px: 2 µm."""

Save = Callable[[Project, list[dict[str, Any]]], None]
Point = tuple[float, float, str]


def true_cells(slide: Any, regions: Any) -> gpd.GeoDataFrame:
    """Return the nuclei that a slide has, as a model without errors would find them."""
    del slide, regions
    shapes = [shapely.Point(centre).buffer(8) for centre in nuclei()]
    names = [CELLS[number % 2] for number in range(len(shapes))]
    return make_objects(shapes, object_type="detection", classification=names)


def save_natively(project: Project, edits: list[dict[str, Any]]) -> None:
    """Make edits in the native store."""
    for edit in edits:
        shape = shapely.MultiPoint(edit["points"]) if "points" in edit else None
        if "new" in edit:
            added = make_objects([shape], object_type="annotation", classification=edit["class"], ids=[edit["new"]])
            person(project, edit["image"], add=added)
        elif shape is None:
            person(project, edit["image"], classification={edit["id"]: edit["class"]})
        else:
            person(project, edit["image"], geometry={edit["id"]: shape})


EDITS = """
import groovy.json.JsonSlurper
import qupath.lib.geom.Point2
import qupath.lib.objects.PathObjects
import qupath.lib.objects.classes.PathClass
import qupath.lib.regions.ImagePlane
import qupath.lib.roi.ROIs
def image = getProjectEntry().getID()
new JsonSlurper().parse(new File(args[0])).findAll { it.image == image }.each { edit ->
    def points = edit.points?.collect { new Point2(it[0], it[1]) }
    def roi = points ? ROIs.createPointsROI(points, ImagePlane.getDefaultPlane()) : null
    def found = getAnnotationObjects().find { it.getID().toString() == edit.id }
    if (edit.new) {
        def added = PathObjects.createAnnotationObject(roi, PathClass.fromString(edit.class))
        added.setID(UUID.fromString(edit.new))
        addObject(added)
    } else if (roi)
        found.setROI(roi)
    else
        found.setPathClass(PathClass.fromString(edit.class))
}
fireHierarchyUpdate()
"""


def save_in_qupath(project: Project, edits: list[dict[str, Any]]) -> None:
    """Make edits by QuPath's own classes, and let QuPath save."""
    folder = project.path.parent.parent
    (folder / "edits.json").write_text(json.dumps(edits))
    (folder / "Edits.groovy").write_text(EDITS)
    seen, said = run_scripts(project, (folder / "Edits.groovy", str(folder / "edits.json")))
    assert not any("failed" in one for one in seen), said


class Pathologist:
    """Corrects regions of a project in a way that is known, and remembers what is true then."""

    def __init__(self, project: Project, save: Save) -> None:
        self.project = project
        self.save = save
        self.true: dict[str, list[Point]] = {}
        self.corrected: dict[str, list[tuple[float, float]]] = {}
        self.looked_at: dict[str, list[Any]] = {}
        self.drawn: dict[str, tuple[str, Any]] = {}

    def present(self, entry_id: str) -> gpd.GeoDataFrame:
        return open_project(self.project.path, backend="native").entry(int(entry_id)).read_objects()

    def correct(self, image: str, region: str) -> int:
        """Delete, move, reclassify and add a point, each once, and mark the region as done; return its points."""
        here = self.present(image)
        ids = {name: here.index[(here["parent_id"] == region) & (here["classification"] == name)][0] for name in CELLS}
        points = {name: shapely.get_coordinates(here.geometry[id_]) for name, id_ in ids.items()}
        positive, negative = points[POSITIVE], points[NEGATIVE]
        middle = shapely.get_coordinates(here.geometry[region].centroid)[0]
        added = negative[-1] + np.where(negative[-1] < middle, 20, -20)  # between the nuclei
        edited = {
            POSITIVE: np.concatenate([[positive[1] + MOVED], positive[2:], negative[:1]]),
            NEGATIVE: negative[1:],
        }
        new = new_ids(1)[0]
        edits = [{"image": image, "id": ids[name], "points": edited[name].tolist()} for name in CELLS]
        edits += [{"image": image, "new": new, "points": [added.tolist()], "class": NEGATIVE}]
        self.save(self.project, [*edits, {"image": image, "id": region, "class": "Done*"}])
        self.looked_at.setdefault(image, []).append(here.geometry[region])
        self.drawn |= {ids[name]: (image, shapely.MultiPoint(edited[name])) for name in CELLS}
        edited[NEGATIVE] = np.concatenate([edited[NEGATIVE], [added]])
        self.true.setdefault(image, []).extend((x, y, name) for name in CELLS for x, y in edited[name].tolist())
        places = [positive[0], positive[1] + MOVED, negative[0], added]
        self.corrected.setdefault(image, []).extend((float(x), float(y)) for x, y in places)
        self.drawn[new] = (image, shapely.MultiPoint([added]))
        return len(positive) + len(negative)

    def confirm(self, image: str, region: str) -> int:
        """Mark a region as done, and nothing else; return the number of its points."""
        here = self.present(image)
        self.save(self.project, [{"image": image, "id": region, "class": "Done*"}])
        inside = here[here["parent_id"] == region]
        found = [
            (x, y, str(name))
            for shape, name in zip(inside.geometry, inside["classification"], strict=True)
            for x, y in shapely.get_coordinates(shape).tolist()
        ]
        self.looked_at.setdefault(image, []).append(here.geometry[region])
        self.true.setdefault(image, []).extend(found)
        return len(found)

    def reject(self, image: str, region: str) -> None:
        self.save(self.project, [{"image": image, "id": region, "class": "Rejected*"}])

    def note(self, image: str, number: int) -> None:
        """Draw something that has nothing to do with the regions."""
        new = new_ids(1)[0]
        shape = shapely.MultiPoint([(2 + number, 3)])
        self.save(self.project, [{"image": image, "new": new, "points": [[2 + number, 3]], "class": "Other"}])
        self.drawn[new] = (image, shape)

    def check_nothing_is_lost(self) -> None:
        """Everything that a person drew or changed is in the images as it was left."""
        for id_, (image, shape) in self.drawn.items():
            assert shapely.hausdorff_distance(self.present(image).geometry[id_], shape) < 0.01

    def check_learnt(self, loop: Loop, number: int) -> None:
        """A training sees what is true in the regions that are done, and corrections weigh more."""
        task = CellTask(CELLS)
        seen = {source.entry.id: image for source, image in round_images(loop, number) if image.part == "train"}
        for entry_id, image in seen.items():
            assert _cells(image, task) == sorted(
                (round(x), round(y), name) for x, y, name in self.true.get(entry_id, [])
            )
            area = shapely.union_all(self.looked_at.get(entry_id, [])).area
            assert sum(part.area for part in labelled_areas(image, task, "train")) == pytest.approx(area, abs=1)
            corrected = self.corrected.get(entry_id, [])
            heavy = shapely.union_all([one.geometry for one in image.weights])
            assert {one.weight for one in image.weights} <= {3.0}
            assert shapely.intersects_xy(heavy, np.array(corrected).reshape(-1, 2)).all()
            for x, y, _ in self.true.get(entry_id, []):
                near = min((np.hypot(x - a, y - b) for a, b in corrected), default=np.inf)
                assert near < 17 or not heavy.intersects(shapely.Point(x, y))  # 8 µm are 16 px


def _cells(image: TrainingImage, task: CellTask) -> list[tuple[int, int, str]]:
    centres, number = task.nuclei(image, "train")
    return sorted((round(x), round(y), CELLS[k]) for (x, y), k in zip(centres.tolist(), number.tolist(), strict=True))


def regions_of(loop: Loop, number: int) -> list[tuple[str, str]]:
    """Return image and id of the regions of a round, by rank."""
    proposals = loop.round(number).table("proposals").sort_values("rank")
    return [(str(entry_id), str(id_)) for id_, entry_id in proposals["entry_id"].items()]


@pytest.fixture
def loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loop:
    """Two patients to learn from, one to validate on and one to test on; these two are annotated."""
    monkeypatch.setattr("qupath_ext.active.view.Viewer.found", lambda self, slide, regions: true_cells(slide, regions))
    # what slides look like is measured in seconds, and told to no test here
    monkeypatch.setattr("qupath_ext.workflows.training.training_references", lambda images: (None, None))
    project = make_project(tmp_path / "first")
    frame = make_objects([shapely.box(0, 0, 120, 120)], object_type="annotation", classification="Training")
    points = [shapely.MultiPoint(nuclei()[first::2]) for first in (0, 1)]
    labels = make_objects(points, object_type="annotation", classification=list(CELLS))
    for entry in project.entries[2:]:
        entry.write_objects(add=concat_objects([frame, labels]))
    settings = LoopSettings("cells", CELLS, region_um=96.0, budget_mm2=0.02)
    split = Split({"A": "train", "B": "train", "C": "validation", "D": "test"})
    return start_loop([project], "first", settings, split=split)


@pytest.fixture
def options(tmp_path: Path) -> TrainOptions:
    (tmp_path / "study.toml").write_text(STUDY)
    return TrainOptions(study=tmp_path / "study.toml")


def play(loop: Loop, options: TrainOptions, save: Save, rounds: int) -> Pathologist:
    """Correct one region in each round; the other is rejected in the first, left open, and confirmed in the third."""
    who = Pathologist(loop.projects[0], save)
    for number in range(1, rounds + 1):
        propose_round(fresh(loop), ProposeOptions(), hush)
        first, second = regions_of(loop, number)
        who.note(first[0], number)
        confirmed = who.correct(*first) - 3
        if number == 1:
            who.reject(*second)
        if number == 3:
            confirmed += who.confirm(*second)
        collect_round(fresh(loop), hush, minutes=4.0)
        record = train_round(fresh(loop), number, options, hush)
        counts = {"moved": 1, "reclassified": 1, "deleted": 1, "added": 1}
        assert record["added"]["objects"] == {"confirmed": confirmed, **counts}
        assert record["added"]["regions"] == (2 if number == 3 else 1)
        who.check_learnt(fresh(loop), number)
        who.check_nothing_is_lost()
    return who


def fresh(loop: Loop) -> Loop:
    """Return the loop as another process would find it."""
    return find_loop(loop.paths[0], loop.name)


def test_a_round(loop: Loop, options: TrainOptions) -> None:
    """The split stays, the model is in place, a second call trains nothing, and taking the round back loses nothing."""
    who = play(loop, options, save_natively, 1)
    one = fresh(loop).round(1)
    record = json.loads((one.folder / "training.json").read_text("utf-8"))
    assert sorted(path.name for path in one.folder.iterdir()) == [
        *("corrections.parquet", "model", "predictions.parquet", "proposals.parquet", "round.json", "training.json")
    ]
    assert record["model"]["sha256"] == load_bundle(one.folder / "model").sha256
    assert record["classes"] == list(CELLS)
    assert [record["figures"][part]["patients"] for part in ("validation", "test")] == [1, 1]
    kept = read_split(one.folder / "model" / "docs" / "split.json")
    assert kept.patients == {"A": "train", "B": "train", "C": "validation", "D": "test"}
    assert train_round(fresh(loop), 1, TrainOptions(study=Path("nowhere.toml")), hush) == record
    rollback(fresh(loop), 0, hush)
    assert fresh(loop).rounds() == []
    who.check_nothing_is_lost()


@pytest.mark.slow
def test_three_rounds(loop: Loop, options: TrainOptions) -> None:
    """Each goes on from the last one's model; back to the first, what was drawn stays, and the loop goes on."""
    who = play(loop, options, save_natively, 3)
    models = [load_bundle(fresh(loop).round(number).folder / "model") for number in (1, 2, 3)]
    assert [model.spec.init.get("sha256") for model in models] == [None, models[0].sha256, models[1].sha256]
    assert loop_status(fresh(loop)).axes[0].spent == (4.0, 8.0, 12.0)
    (image, still_open) = regions_of(loop, 2)[1]
    assert still_open in who.present(image).index
    back = rollback(fresh(loop), 1, hush)
    assert back is not None
    assert [one.number for one in fresh(loop).rounds()] == [1]
    assert {path.name for path in back.iterdir()} == {"02", "03", "rollback.json"}
    assert still_open not in who.present(image).index
    who.check_nothing_is_lost()
    again = propose_round(fresh(loop), ProposeOptions(), hush)
    assert again.number == 2
    assert again.record["proposed"]["model"]["sha256"] == models[0].sha256


def qupath(test: Callable[..., None]) -> Callable[..., None]:
    for mark in NEEDS:
        test = mark(test)
    return test


@qupath
def test_three_rounds_saved_by_qupath(loop: Loop, options: TrainOptions) -> None:
    who = play(loop, options, save_in_qupath, 3)
    rollback(fresh(loop), 1, hush)
    who.check_nothing_is_lost()
