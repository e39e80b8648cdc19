"""The scripts for proposed regions, run by Groovy in QuPath's core: next, done, rejected."""

import datetime
import re
from pathlib import Path

import pandas as pd
import pytest
import shapely
import tifffile
from qupath_scripts import NEEDS, QUPATH, by_name, nuclei_image, run_scripts

from pyhisto.objects import make_objects
from qupath_ext.project import create_project, open_project, pack_rgb
from qupath_ext.workflows.scripts import install_scripts

pytestmark = NEEDS

DONE_COLOR, OWN_REJECTED_COLOR = pack_rgb(0, 140, 60), pack_rgb(9, 9, 9)
HAS_METADATA = QUPATH is not None and not Path(QUPATH).name.startswith("0.4")
NAMES = ["Round 10 #1 0.80 entropy", "Round 2 #10 0.12 entropy", None, "Round 2 #9 0.55 entropy+diversity", "note"]
"""In the order of rounds and ranks: 2 #9, 2 #10, 10 #1, then the one without a name; a note is no region."""


@pytest.fixture
def project(tmp_path):
    """Two images with regions, and one without between them."""
    slide = tmp_path / "Schnitt ä.tif"
    tifffile.imwrite(slide, nuclei_image(), tile=(256, 256), photometric="rgb")
    project = create_project(tmp_path / "Projekt", classes={"Rejected*": OWN_REJECTED_COLOR}, backend="native")
    entries = [project.add_image(slide, name=name, mpp=0.5) for name in ("first", "empty", "last")]
    boxes = [shapely.box(x, 100, x + 80, 180) for x in (100, 200, 300, 400, 500)]
    kinds = ["Region*"] * 4 + [None]
    with entries[0].edit() as change:
        change.add(make_objects(boxes, object_type="annotation", classification=kinds, name=NAMES, locked=True))
        points = [shapely.Point(540, 140), shapely.Point(140, 140)]
        change.add(make_objects(points, object_type="annotation", name=["beside", "inside 10 #1"]))
    with entries[2].edit() as change:
        change.add(make_objects(boxes[:1], object_type="annotation", classification="Region*", name="Round 3 #1 0.1 x"))
    install_scripts(project.path, python="/nowhere/python")  # none is needed
    return project


def of_first(seen):
    """Return what was seen of the first image after each step."""
    return [one for one in seen if one["image"] == "first"]


def classes(seen):
    return {one.get("name"): one.get("class") for one in seen["objects"]}


def classified(ids, name):
    """Return what gives objects a class."""
    return pd.DataFrame({"classification": name}, index=list(ids))


NEXT, DONE, REJECT = ("Next region",), ("Mark done",), ("Reject region",)


def test_next_goes_round_in_the_order_of_the_proposals_and_changes_nothing(project):
    seen, said = run_scripts(
        project, NEXT, ("Next region", "select=Round 2 #9 0.55 entropy+diversity"), NEXT, NEXT, NEXT
    )
    at = [one["selected"] for one in of_first(seen)]
    # each image is opened anew for each script: what was selected is not, and where one was is known all the same
    assert at == [[NAMES[3]], [NAMES[1]], [NAMES[0]], [None], [NAMES[3]]], said
    assert not any(one["changed"] for one in seen), said
    assert of_first(seen)[0]["result"] == "Round 2 #9 0.55 entropy+diversity (4 of this image are open)"
    assert {one["result"] for one in seen if one["image"] == "empty"} == {"No region of this image is open."}


def test_done_and_rejected_are_noted_with_their_time_and_locks_stay(project):
    begin = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    seen, said = run_scripts(project, ("Mark done", f"select={NAMES[0]}"), ("Reject region", f"select={NAMES[1]}"))
    done, rejected = of_first(seen)
    assert done["result"] == "Round 10 #1 0.80 entropy: done (3 of this image are open)", said
    assert classes(rejected) == {
        NAMES[0]: "Done*",
        NAMES[1]: "Rejected*",
        NAMES[3]: "Region*",
        "note": None,
        "beside": None,
        "inside 10 #1": None,
        None: "Region*",
    }
    assert all(by_name(rejected, name)["locked"] for name in (*NAMES[:2], "note"))
    assert [one["classes"].get("Done*") for one in of_first(seen)] == [DONE_COLOR] * 2
    assert rejected["classes"]["Rejected*"] == OWN_REJECTED_COLOR
    assert [step for step in rejected["steps"] if step.startswith("Mark")] == ["Mark done", "Mark rejected"]
    assert "select one" in seen[1]["failed"].lower()  # the image without regions
    objects = open_project(project.path, backend="native").entries[0].read_objects().set_index("name")
    assert objects.loc[NAMES[0], "classification"] == "Done*"
    for name, key in ((NAMES[0], "qupath-ext: done at"), (NAMES[1], "qupath-ext: rejected at")):
        if HAS_METADATA:
            time = datetime.datetime.fromisoformat(objects.loc[name, "metadata"][key])
            assert begin <= time <= datetime.datetime.now(datetime.UTC)
        else:
            assert not objects.loc[name, "metadata"]


SELECT_BESIDE = "selectObjects(getAnnotationObjects().findAll { it.name == 'beside' })\n"
LIBRARY = "evaluate(new File(buildPathInProject('qupath_ext', 'groovy', 'QuPathExt.groovy')))"


def test_what_is_meant_without_a_selected_region(project, tmp_path):
    """Around what is selected, else the one under way, else none: a region that nobody looked at is never done."""
    beside = tmp_path / "Beside.groovy"
    beside.write_text(SELECT_BESIDE + LIBRARY + ".markRegions('done')\n")
    seen, said = run_scripts(
        project,
        (beside,),
        ("Mark done", "select=inside 10 #1"),
        NEXT,
        REJECT,
        REJECT,
        ("Mark done", f"select={NAMES[0]}"),
        ("Reject region", f"select={NAMES[0]}"),
    )
    nothing, around, went, under_way, again, already, changed_mind = of_first(seen)
    assert "No region is meant." in nothing["failed"], said
    assert "changed" not in nothing
    assert classes(nothing)[NAMES[0]] == "Region*"
    assert around["result"].startswith("Round 10 #1"), said
    assert went["selected"] == [NAMES[3]]
    assert under_way["result"].startswith("Round 2 #9"), said
    assert again["failed"] == "Round 2 #9 0.55 entropy+diversity is rejected already."
    assert already["failed"] == "Round 10 #1 0.80 entropy is done already."
    assert classes(changed_mind)[NAMES[0]] == "Rejected*"


ONE_IMAGE = """
import qupath.lib.scripting.QP
binding.setVariable('qupath.script.batchSize', 1)
"""


def test_an_image_without_open_regions_names_the_next_one_that_has_some(project, tmp_path):
    alone = tmp_path / "Alone.groovy"
    alone.write_text(ONE_IMAGE + LIBRARY + ".nextRegion()\n")
    seen, said = run_scripts(project, (alone,))
    results = [one["result"] for one in seen]
    assert results[1] == "No region of this image is open; last has the next one.", said
    with open_project(project.path, backend="native").entries[2].edit() as change:
        change.update(classified(project.entries[2].read_objects().index, "Done*"))
    seen, said = run_scripts(project, (alone,))
    assert seen[1]["result"] == "No region of this image is open; first has the next one.", said
    assert seen[2]["result"] == "No region of this image is open; first has the next one.", said


def test_a_workflow_marks_the_same_regions_again_and_no_others(project, tmp_path):
    seen, said = run_scripts(project, ("Mark done", f"select={NAMES[0]}"))
    with open_project(project.path, backend="native").entries[0].edit() as change:
        (id_,) = [one["id"] for one in seen[0]["objects"] if one.get("name") == NAMES[0]]
        change.update(classified([id_], "Region*"))
    seen, said = run_scripts(project, ("workflow",), ("workflow",))
    first, second = of_first(seen)
    assert classes(first)[NAMES[0]] == "Done*", said
    assert sorted(re.sub(r"\W", "", str(one)) for one in classes(first).values()).count("Region") == 3
    assert "failed" not in second, said
