"""A person and a program take turns in one project: who owns what, what diff says, what undo brings back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from PIL import Image

from pyhisto.objects import concat_objects, make_objects
from qupath_ext.entry import ImageEntry
from qupath_ext.errors import ChangedOnDiskError, ProjectError
from qupath_ext.project import Project, create_project, open_project
from qupath_ext.runs.diff import diff_run
from qupath_ext.runs.ownership import read_ownership, write_run
from qupath_ext.runs.record import Run, find_run, list_runs, start_run
from qupath_ext.runs.undo import ImageUndo, undo_run


@pytest.fixture(params=["native", pytest.param("paquo", marks=pytest.mark.qupath)])
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Project:
    """A project of one image without objects."""
    path = tmp_path / "slide.tif"
    Image.new("RGB", (2000, 1500), (240, 240, 240)).save(path)
    project = create_project(tmp_path / "project", backend=request.param)
    project.add_image(path, name="slide", mpp=0.5)
    return project


def ids_of(letter: str, n: int) -> list[str]:
    return [f"{ord(letter):08x}-0000-4000-8000-{number:012d}" for number in range(n)]


def cells(letter: str, n: int, *, x: float = 0.0, parent: str | None = None) -> gpd.GeoDataFrame:
    """Return n cells of 8 x 8 px in a row."""
    boxes = [shapely.box(x + 10 * i, 100, x + 10 * i + 8, 108) for i in range(n)]
    nuclei = [shapely.box(x + 10 * i + 2, 102, x + 10 * i + 6, 106) for i in range(n)]
    return make_objects(
        boxes,
        object_type="cell",
        nucleus=nuclei,
        classification="Tumor: Negative",
        ids=ids_of(letter, n),
        parent_id=parent,
        measurements={"Nucleus: DAB OD mean": 0.1},
    )


def area(id_: str, *corners: float, **columns: Any) -> gpd.GeoDataFrame:
    columns = {"classification": "Tumor", **columns}
    return make_objects([shapely.box(*corners)], object_type="annotation", ids=[id_], **columns)


A_TUMOUR, BY_HAND = ids_of("t", 1)[0], ids_of("h", 1)[0]


def program(
    project: Project,
    objects: gpd.GeoDataFrame,
    *,
    analysis: str = "demo",
    replace: Sequence[str] | None = None,
    lock: Sequence[str] = (),
) -> Run:
    """Write objects as a run does, in place of all that is still untouched."""
    entry = project.entries[0]
    run = start_run(project, analysis, {"number": len(list(list_runs(project)))}, {})
    owned = read_ownership(project, analysis, entry)
    write_run(run, entry, objects, owned, replace=owned.untouched if replace is None else replace, lock=lock)
    run.finish()
    return run


def person(
    project: Project, *, add: gpd.GeoDataFrame | None = None, remove: Sequence[str] = (), **columns: Any
) -> None:
    """Change a project as a person does in QuPath; `columns` are new values by id."""
    entry = open_project(project.path, backend="native").entries[0]
    entry.read_objects()
    with entry.edit() as change:
        if add is not None:
            change.add(add)
        change.remove(list(remove))
        for column, values in columns.items():
            change.update(pd.DataFrame({column: pd.Series(values, dtype=object)}))


def objects(project: Project) -> gpd.GeoDataFrame:
    return open_project(project.path, backend="native").entries[0].read_objects()


def image(project: Project) -> ImageEntry:
    return project.entries[0]


def counts(project: Project, run: Run) -> dict[str, int]:
    (found,) = diff_run(project, run)
    return {name: n for name, n in found.counts().items() if n}


def undo(project: Project, run: Run, **options: Any) -> ImageUndo:
    (done,) = undo_run(project, run, **options)
    return done


# ---------------------------------------------------------------------- running again
def test_a_run_replaces_what_an_earlier_one_wrote(project: Project) -> None:
    program(project, cells("a", 5))
    program(project, cells("b", 3))
    assert set(objects(project).index) == set(ids_of("b", 3))


def test_another_analysis_replaces_nothing(project: Project) -> None:
    program(project, cells("a", 5))
    program(project, cells("b", 3), analysis="other")
    assert set(objects(project).index) == {*ids_of("a", 5), *ids_of("b", 3)}


@pytest.mark.parametrize(
    "edit",
    [
        {"classification": {ids_of("a", 1)[0]: "Stroma"}},
        {"name": {ids_of("a", 1)[0]: "checked"}},
        {"locked": {ids_of("a", 1)[0]: True}},
    ],
    ids=["reclassified", "renamed", "locked"],
)
def test_what_a_person_changed_stays_for_ever(project: Project, edit: dict[str, Any]) -> None:
    mine, *others = ids_of("a", 5)
    program(project, cells("a", 5))
    person(project, **edit)
    program(project, cells("b", 3))
    assert set(objects(project).index) == {mine, *ids_of("b", 3)}
    assert not set(others) & set(objects(project).index)
    person(project, classification={mine: "Tumor: Negative"}, name={mine: None}, locked={mine: False})
    program(project, cells("c", 2))  # changed back by hand: it is still the person's
    assert set(objects(project).index) == {mine, *ids_of("c", 2)}
    assert find_run(project, "latest").images["1"]["kept_by_person"] == 1


def test_a_reshaped_annotation_stays_with_what_was_drawn_inside(project: Project) -> None:
    program(project, area(A_TUMOUR, 0, 0, 500, 500, locked=True))
    person(project, add=area(BY_HAND, 10, 10, 20, 20, classification="Necrosis", parent_id=A_TUMOUR))
    person(project, geometry={A_TUMOUR: shapely.box(0, 0, 400, 500)})
    program(project, area(ids_of("u", 1)[0], 0, 0, 450, 450, locked=True))
    found = objects(project)
    assert set(found.index) == {A_TUMOUR, BY_HAND, *ids_of("u", 1)}
    assert found.at[A_TUMOUR, "geometry"].area == 400 * 500
    assert found.at[BY_HAND, "parent_id"] == A_TUMOUR


def test_what_was_drawn_inside_a_replaced_annotation_survives(project: Project) -> None:
    program(project, concat_objects([area(A_TUMOUR, 0, 0, 500, 500, locked=True), cells("a", 4, parent=A_TUMOUR)]))
    person(project, add=area(BY_HAND, 10, 10, 20, 20, classification="Necrosis", parent_id=A_TUMOUR))
    program(project, cells("b", 3))
    found = objects(project)
    assert set(found.index) == {BY_HAND, *ids_of("b", 3)}
    assert found.at[BY_HAND, "parent_id"] is None
    assert found.at[BY_HAND, "geometry"].equals(shapely.box(10, 10, 20, 20))


def test_an_object_put_under_another_parent_is_the_persons(project: Project) -> None:
    program(project, cells("a", 2))
    person(project, add=area(BY_HAND, 0, 0, 300, 300))
    mine = ids_of("a", 2)[0]
    entry = open_project(project.path, backend="native").entries[0]
    moved = entry.read_objects().loc[[mine]].assign(parent_id=BY_HAND)
    with entry.edit() as change:  # taken out and put under the drawn annotation, as dragging in QuPath's tree does
        change.remove([mine])
    with entry.edit() as change:
        change.add(moved)
    owned = read_ownership(project, "demo", image(project))
    assert (owned.untouched, owned.theirs) == ((ids_of("a", 2)[1],), (mine,))


def test_nobody_replaces_what_is_not_the_programs(project: Project) -> None:
    person(project, add=area(BY_HAND, 0, 0, 300, 300))
    run = start_run(project, "demo", {}, {})
    owned = read_ownership(project, "demo", image(project))
    with pytest.raises(ProjectError, match="is not this program's to replace"):
        write_run(run, image(project), cells("a", 1), owned, replace=[BY_HAND])
    assert list(objects(project).index) == [BY_HAND]


def test_an_image_that_changed_during_the_analysis_is_not_written(project: Project) -> None:
    run = start_run(project, "demo", {}, {})
    owned = read_ownership(project, "demo", image(project))
    person(project, add=area(BY_HAND, 0, 0, 300, 300))
    with pytest.raises(ChangedOnDiskError):
        write_run(run, image(project), cells("a", 3), owned, replace=[])
    assert list(objects(project).index) == [BY_HAND]
    run.release()
    program(project, cells("b", 2))
    assert set(objects(project).index) == {BY_HAND, *ids_of("b", 2)}


def test_the_record_names_slide_counts_and_classes(project: Project) -> None:
    person(project, add=area(BY_HAND, 0, 0, 300, 300))
    run = program(project, cells("a", 3, parent=BY_HAND), lock=[BY_HAND])
    record = json.loads((run.folder / "run.json").read_text("utf-8"))["images"]["1"]
    assert record["added"] == {"cell": 3}
    assert record["classes"] == {"Tumor: Negative": 3}
    assert (record["replaced"], record["kept_by_person"], record["locked"]) == (0, 0, 1)
    assert record["slide"]["mpp"] == [0.5, 0.5]
    assert (record["slide"]["width"], record["slide"]["height"]) == (2000, 1500)
    assert record["slide"]["bytes"] == Path(record["slide"]["path"]).stat().st_size
    written = gpd.read_parquet(run.objects_file("1"))
    assert written.geometry.area.tolist() == [64.0] * 3
    assert written["Nucleus: DAB OD mean"].tolist() == [0.1] * 3


# ---------------------------------------------------------------------- diff
def test_diff_tells_of_each_object(project: Project) -> None:
    run = program(project, concat_objects([area(A_TUMOUR, 0, 0, 500, 500), cells("a", 6, parent=A_TUMOUR)]))
    kept, reclassified, deleted, both = ids_of("a", 6)[:4]
    person(project, remove=[deleted], classification={reclassified: "Tumor: Positive", both: "Stroma"})
    person(project, name={both: "?"}, geometry={A_TUMOUR: shapely.box(0, 0, 500, 480)})
    person(project, add=area(BY_HAND, 600, 0, 700, 100, classification="Stroma"))
    (found,) = diff_run(project, run)
    assert found.objects.at[kept, "status"] == "untouched"
    assert found.objects.loc[reclassified].to_dict() == {
        "status": "changed",
        "changes": "reclassified",
        "object_type": "cell",
        "before": "Tumor: Negative",
        "now": "Tumor: Positive",
    }
    assert found.objects.at[deleted, "status"] == "deleted"
    assert found.objects.at[both, "changes"] == "reclassified, renamed"
    assert found.objects.at[A_TUMOUR, "changes"] == "reshaped"
    assert list(found.added.index) == [BY_HAND]
    assert counts(project, run) == {
        "untouched": 3,
        "changed": 3,
        "deleted": 1,
        "reshaped": 1,
        "reclassified": 2,
        "renamed": 1,
        "added": 1,
    }


def test_what_was_there_before_is_not_added(project: Project) -> None:
    person(project, add=area(BY_HAND, 0, 0, 300, 300))
    run = program(project, cells("a", 2))
    program(project, cells("o", 2), analysis="other")
    assert counts(project, run) == {"untouched": 2}


def test_what_a_later_run_replaced_was_not_deleted_by_a_person(project: Project) -> None:
    first = program(project, cells("a", 4))
    person(project, remove=ids_of("a", 1))
    second = program(project, cells("b", 2))
    assert counts(project, first) == {"deleted": 1, "replaced": 3}
    assert counts(project, second) == {"untouched": 2}


# ---------------------------------------------------------------------- undo
def test_undo_brings_back_what_was_replaced(project: Project) -> None:
    first = program(project, concat_objects([area(A_TUMOUR, 0, 0, 500, 500), cells("a", 4, parent=A_TUMOUR)]))
    before = objects(project).sort_index()
    second = program(project, cells("b", 3))
    done = undo(project, second)
    assert (done.removed, done.kept, done.restored) == (3, 0, 5)
    after = objects(project).sort_index()
    assert list(after.index) == list(before.index)
    for column in ("object_type", "classification", "locked", "parent_id", "Nucleus: DAB OD mean"):
        assert (
            after[column].astype(object).where(after[column].notna(), None).tolist()
            == before[column].astype(object).where(before[column].notna(), None).tolist()
        )
    assert shapely.equals(after.geometry.to_numpy(), before.geometry.to_numpy()).all()
    assert find_run(project, second.id).status == "undone"
    assert counts(project, first) == {"untouched": 5}
    assert set(read_ownership(project, "demo", image(project)).untouched) == set(before.index)


def test_undo_keeps_what_a_person_changed_unless_forced(project: Project) -> None:
    run = program(project, cells("a", 4))
    mine, deleted = ids_of("a", 2)
    person(project, classification={mine: "Tumor: Positive"}, remove=[deleted])
    assert undo(project, run, dry_run=True).removed == 2
    assert len(objects(project)) == 3
    done = undo(project, run)
    assert (done.removed, done.kept, done.restored) == (2, 1, 0)
    assert list(objects(project).index) == [mine]
    assert undo(project, run, force=True).removed == 1
    assert objects(project).empty


def test_undo_of_an_older_run_under_a_newer_one(project: Project) -> None:
    program(project, cells("z", 2))
    older = program(project, cells("a", 4))
    newer = program(project, cells("b", 3))
    done = undo(project, older)
    assert (done.removed, done.restored, done.covered_by) == (0, 0, (newer.id,))
    assert set(objects(project).index) == set(ids_of("b", 3))
    assert undo(project, newer).restored == 2  # not what the older one wrote, but what that had replaced
    assert set(objects(project).index) == set(ids_of("z", 2))


def test_undo_from_the_newest_to_the_oldest(project: Project) -> None:
    runs = [program(project, cells(letter, 3)) for letter in "abc"]
    for run, left in zip(reversed(runs), ("b", "a", ""), strict=True):
        undo(project, run)
        assert set(objects(project).index) == {id_ for letter in left for id_ in ids_of(letter, 3)}


def test_undo_unlocks_what_the_run_locked(project: Project) -> None:
    person(project, add=area(BY_HAND, 0, 0, 300, 300))
    locked_before = ids_of("l", 1)[0]
    person(project, add=area(locked_before, 0, 0, 300, 400, locked=True))
    found = concat_objects([cells("a", 3, parent=BY_HAND), cells("b", 2, parent=locked_before)])
    run = program(project, found, lock=[BY_HAND, locked_before])
    assert objects(project).loc[[BY_HAND, locked_before], "locked"].tolist() == [True, True]
    assert undo(project, run).unlocked == 1
    assert objects(project).loc[[BY_HAND, locked_before], "locked"].tolist() == [False, True]


def test_undo_keeps_what_was_drawn_inside(project: Project) -> None:
    run = program(project, area(A_TUMOUR, 0, 0, 500, 500, locked=True))
    person(project, add=area(BY_HAND, 10, 10, 20, 20, classification="Necrosis", parent_id=A_TUMOUR))
    undo(project, run)
    found = objects(project)
    assert list(found.index) == [BY_HAND]
    assert found.at[BY_HAND, "parent_id"] is None


def test_undo_twice_changes_nothing(project: Project) -> None:
    program(project, cells("a", 2))
    run = program(project, cells("b", 2))
    undo(project, run)
    data = image(project).read_objects()
    again = undo(project, run)
    assert (again.removed, again.restored) == (0, 0)
    assert set(objects(project).index) == set(data.index)


def test_a_run_after_an_undo_starts_anew(project: Project) -> None:
    run = program(project, cells("a", 2))
    undo(project, run)
    program(project, cells("b", 2))
    assert set(objects(project).index) == set(ids_of("b", 2))


def test_undo_of_a_run_that_was_killed_before_it_noted_its_end(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(project, cells("a", 2))
    with monkeypatch.context() as patched:
        patched.setattr(Run, "finish_image", lambda *args: (_ for _ in ()).throw(MemoryError()))
        with pytest.raises(MemoryError):
            program(project, cells("b", 3))
    run = find_run(project, "latest")
    run.release()
    assert run.status == "running"
    assert set(objects(project).index) == set(ids_of("b", 3))
    assert undo(project, run).restored == 2
    assert set(objects(project).index) == set(ids_of("a", 2))


# ---------------------------------------------------------------------- QuPath in between
@pytest.mark.qupath
def test_a_save_by_qupath_is_no_change(tmp_path: Path) -> None:
    """Shapes of all kinds, far from the origin, are written without Java and then saved by QuPath's own classes."""
    path = tmp_path / "slide.tif"
    Image.new("RGB", (64, 64), (240, 240, 240)).save(path)
    native = create_project(tmp_path / "project", backend="native")
    native.add_image(path, mpp=0.5)
    rng = np.random.default_rng(3)
    centres = rng.uniform(0, 90_000, (400, 2))
    round_ones = [shapely.Point(c).buffer(rng.uniform(4, 9), quad_segs=6) for c in centres]
    holed = [
        shapely.Point(c).buffer(60.3, quad_segs=40).difference(shapely.Point(c).buffer(20.7)) for c in centres[:20]
    ]
    pairs = [
        shapely.union_all([shapely.box(*c, *(c + 30.123)), shapely.box(*(c + 50.7), *(c + 80.9))]) for c in centres[:20]
    ]
    lines = [shapely.LineString([c, c + 33.37, c * 1.001]) for c in centres[:5]]
    table = concat_objects(
        [
            make_objects(round_ones, object_type="cell", nucleus=[s.buffer(-2) for s in round_ones]),
            make_objects([*holed, *pairs, *lines], object_type="annotation", classification="Tumor", locked=True),
            make_objects([shapely.MultiPoint(centres[:50])], object_type="annotation", name="points"),
        ]
    )
    run = program(native, table)
    for number in range(2):  # saved twice: rounding must not add up
        through_qupath = open_project(native.path, backend="paquo")
        with through_qupath.entries[0].edit() as change:
            change.add(area(ids_of("q", 2)[number], 0, 0, 10, 10))
    assert counts(open_project(native.path, backend="native"), run) == {"untouched": len(table), "added": 2}
