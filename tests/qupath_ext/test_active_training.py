"""The training of a round: what it sees, what it refuses, and what it writes down."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from active_projects import CELLS, hush, make_project, nuclei, slide_file
from PIL import Image

from pyhisto.bundle.files import save_bundle
from pyhisto.bundle.spec import ModelClass, ModelSpec
from pyhisto.dataset import CellTask, Split, TissueTask, TrainingImage
from pyhisto.errors import ConfigError, TrainingError
from pyhisto.models import build_model
from pyhisto.objects import concat_objects, make_objects
from qupath_ext.active.loop import Loop, LoopSettings, Round, find_loop, start_loop
from qupath_ext.active.measuring import count_images
from qupath_ext.active.training import TrainOptions, round_images, train_round
from qupath_ext.active.truth import TruthChanges
from qupath_ext.errors import ProjectError
from qupath_ext.project import Project
from qupath_ext.workflows.trainrun import TrainRun

STUDY = """
kind = "cells"
classes = ["Tumor: Positive", "Tumor: Negative"]
[model]
architecture = "attention-unet"
decoder_channels = [8, 4]
mpp = 1.0
tile_size = 64
overlap = 8
[training]
steps = 2
batch_size = 2
workers = 0
"""

SPLIT = Split({"A": "train", "B": "validation", "C": "test"})


def annotate(project: Project, classes: tuple[str, ...] = CELLS) -> None:
    """Annotate all cells of all slides, of some classes, with a small area in which nothing else is."""
    frame = make_objects([shapely.box(0, 0, 120, 120)], object_type="annotation", classification="Training")
    points = [shapely.MultiPoint(nuclei()[CELLS.index(name) :: 2]) for name in classes]
    labels = make_objects(points, object_type="annotation", classification=list(classes))
    for entry in project.entries:
        entry.write_objects(add=concat_objects([frame, labels]))


def collected(loop: Loop) -> Round:
    """Begin a round that a person went through."""
    one = loop.begin_round()
    regions = {
        "a": {"answer": "done", "area_mm2": 0.25, "marked": ""},
        "b": {"answer": "open", "area_mm2": 1, "marked": ""},
    }
    one.save(
        proposed={}, collected={"regions": regions, "minutes": 3.0, "totals": {"confirmed": 4}, "disagreements": []}
    )
    return one


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Three annotated slides; what they look like is measured in seconds, and told to no test here."""
    monkeypatch.setattr("qupath_ext.workflows.training.training_references", lambda images: (None, None))
    monkeypatch.setattr("qupath_ext.active.training.truth_changes", lambda *args, **named: TruthChanges())
    return make_project(tmp_path / "first", ("A", "B", "C"))


@pytest.fixture
def loop(project: Project) -> Loop:
    return start_loop([project], "first", LoopSettings("cells", CELLS), split=SPLIT)


@pytest.fixture
def options(tmp_path: Path) -> TrainOptions:
    (tmp_path / "study.toml").write_text(STUDY)
    return TrainOptions(study=tmp_path / "study.toml")


def test_who_comes_later_is_learnt_from(project: Project, loop: Loop, tmp_path: Path) -> None:
    (tmp_path / "D.tif").write_bytes(slide_file(4))
    project.add_image(tmp_path / "D.tif", metadata={"Patient": "D"})
    parts = {image.patient: image.part for _, image in round_images(loop, 1)}
    assert parts == {"A": "train", "B": "validation", "C": "test", "D": "train"}


def test_what_the_loop_knows_beside_the_annotations(
    project: Project, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Corrected places weigh 3, disputed ones are ignored, and what another person drew there is no truth."""
    annotate(project)
    entry = project.entries[0]
    outvoted = entry.read_objects().index[2]
    changes = TruthChanges(((shapely.box(0, 0, 50, 50), 3.0),), (shapely.box(100, 100, 200, 200),), (outvoted,))
    monkeypatch.setattr(
        "qupath_ext.active.training.truth_changes",
        lambda loop, source, *, until: changes if source.entry.id == entry.id else TruthChanges(),
    )
    first, second, _ = (image for _, image in round_images(loop, 1))
    assert [(one.geometry.bounds, one.weight) for one in first.weights] == [((0, 0, 50, 50), 3.0)]
    assert second.weights == ()
    task = CellTask(CELLS)
    centres, number = task.nuclei(first, "train")
    assert set(number.tolist()) == {0}
    hidden = [xy for xy in nuclei()[::2] if shapely.box(100, 100, 200, 200).intersects(shapely.Point(xy))]
    assert len(hidden) > 0
    assert len(centres) == len(nuclei()[::2]) - len(hidden)


def test_a_round_is_trained_once_and_goes_on_where_it_stopped(
    project: Project, loop: Loop, options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after the model was saved: the next call measures it, and trains nothing."""
    annotate(project)
    one = collected(loop)
    with monkeypatch.context() as patch:
        patch.setattr("qupath_ext.active.training.count_images", _stopped)
        with pytest.raises(KeyboardInterrupt):
            train_round(loop, 1, options, hush)
    assert (one.folder / "model").is_dir()
    assert one.state == "collected"
    monkeypatch.setattr("qupath_ext.active.training.run_training", _stopped)
    record = train_round(loop, 1, options, hush)
    assert record["added"] == {"regions": 1, "area_mm2": 0.25, "minutes": 3.0, "objects": {"confirmed": 4}}
    assert (one.state, one.model) == ("trained", one.folder / "model")
    assert not (one.folder / "training").exists()


def test_the_first_round_goes_on_from_the_model_of_the_loop(
    project: Project, options: TrainOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("background", *(f"{name} {part}" for name in CELLS for part in ("nucleus", "membrane")))
    classes = tuple(
        ModelClass(name, own) for name, own in zip(names, (None, CELLS[0], None, CELLS[1], None), strict=True)
    )
    network = {"architecture": "attention-unet", "decoder_channels": (8, 4)}
    spec = ModelSpec("cell_detection", classes=classes, mpp=1.0, tile_size=64, overlap=8, **network)
    model = build_model("attention-unet", out_channels=5, decoder_channels=(8, 4))
    tile = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    bundle = save_bundle(tmp_path / "elsewhere", model, spec, golden_tile=tile, description="For a test.")
    annotate(project)
    settings = LoopSettings("cells", CELLS, init=str(bundle.path))
    collected(start_loop([project], "first", settings, split=SPLIT))
    asked: list[TrainRun] = []
    monkeypatch.setattr("qupath_ext.active.training.run_training", lambda run, *args: asked.append(run) or _stopped())
    with pytest.raises(KeyboardInterrupt):
        train_round(find_loop(project.path), 1, options, hush)
    assert asked[0].init is not None
    assert asked[0].init.sha256 == bundle.sha256
    assert (asked[0].wanted.kind, asked[0].wanted.classes) == ("cells", CELLS)


def _stopped(*args: Any, **named: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("classes", [(), CELLS[:1]])
def test_a_round_without_a_class_trains_no_model(
    project: Project, loop: Loop, options: TrainOptions, classes: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one of two classes, that one is learnt; with none, nothing is, and the loop goes on."""
    annotate(project, classes)
    one = collected(loop)
    asked: list[Any] = []
    monkeypatch.setattr("qupath_ext.active.training._trained", lambda *args: asked.append(args[3]) or _stopped())
    if classes:
        with pytest.raises(KeyboardInterrupt):
            train_round(loop, 1, options, hush)
        assert asked == [classes]
        return
    said: list[str] = []
    record = train_round(loop, 1, options, said.append)
    assert (record["model"], record["classes"], record["figures"], asked) == (None, [], {}, [])
    assert "nothing is trained" in said[-1]
    assert (one.state, one.model, loop.model()) == ("trained", None, None)


def test_a_slide_in_two_parts_is_refused(tmp_path: Path, project: Project, options: TrainOptions) -> None:
    """The same pixels under two names, one patient to learn from and the other to validate on."""
    other = make_project(tmp_path / "second", ("D",))
    path = tmp_path / "copied.tif"
    shutil.copy(project.entries[0].slide_path, path)
    other.add_image(path, metadata={"Patient": "E"})
    for each in (project, other):
        annotate(each)
    split = Split({**SPLIT.patients, "D": "train", "E": "validation"})
    loop = start_loop([project, other], "both", LoopSettings("cells", CELLS), split=split)
    one = collected(loop)
    with pytest.raises(TrainingError, match="is in the parts train"):
        train_round(loop, 1, options, hush)
    assert one.state == "collected"
    assert not (one.folder / "model").exists()


def test_bad_input_changes_nothing(loop: Loop, options: TrainOptions, tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match="no round 1"):
        train_round(loop, 1, options, hush)
    loop.begin_round()
    with pytest.raises(ProjectError, match="was not collected"):
        train_round(loop, 1, options, hush)
    (tmp_path / "tissue.toml").write_text('kind = "tissue"\nclasses = ["Tumor"]')
    one = collected(loop)
    before = sorted(one.folder.rglob("*"))
    with pytest.raises(ConfigError, match="is a study of tissue"):
        train_round(loop, one.number, replace(options, study=tmp_path / "tissue.toml"), hush)
    with pytest.raises(ConfigError, match="does not exist"):
        train_round(loop, one.number, replace(options, study=tmp_path / "none.toml"), hush)
    assert sorted(one.folder.rglob("*")) == before


# ---------------------------------------------------------------------- figures
def image_of(*objects: tuple[str, Any], path: Path, part: Any, patient: str = "") -> TrainingImage:
    """Return an image with annotations (class, shape)."""
    shapes, names = [shape for _, shape in objects], [name for name, _ in objects]
    table = make_objects(shapes, object_type="annotation", classification=names)
    return TrainingImage(path, table, part=part, patient=patient)


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    (tmp_path / "slide.tif").write_bytes(slide_file(0))
    return tmp_path / "slide.tif"


def test_areas_are_counted_where_something_is_labelled(slide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tumour of 100 x 100 px of 0.25 µm²; half of what is found lies beside it, and a third piece beside the label."""
    image = image_of(
        ("Training", shapely.box(0, 0, 200, 100)),
        ("Tumor", shapely.box(0, 0, 100, 100)),
        path=slide,
        part="test",
        patient="P",
    )
    shapes = [shapely.box(50, 0, 150, 100), shapely.box(0, 200, 100, 300)]
    found = make_objects(shapes, object_type="annotation", classification="Tumor")
    monkeypatch.setattr("qupath_ext.active.measuring.predict_tissue", lambda *args, **named: found)
    model: Any = None
    (counted,) = count_images([image], model, TissueTask(("Tumor", "Lymphoid")))
    assert (counted.image, counted.patient) == ("slide.tif", "P")
    assert counted.by_class["Tumor"] == pytest.approx((1250, 2500, 2500))
    assert counted.by_class["Lymphoid"] == (0, 0, 0)
    bare = image_of(path=image.path, part="test")
    assert count_images([bare], model, TissueTask()) == []


def test_a_field_cut_out_of_tissue_is_looked_at_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 x 64 µm, less than the smallest piece of tissue that counts on a slide."""
    Image.fromarray(np.full((256, 256, 3), (200, 150, 190), np.uint8)).save(tmp_path / "field.png")
    frame = shapely.box(0, 0, 256, 256)
    labels = [("Training", frame), (CELLS[0], shapely.MultiPoint([(9, 9)]))]
    image = replace(image_of(*labels, path=tmp_path / "field.png", part="test"), mpp=(0.25, 0.25))
    asked: list[Any] = []

    def predicted(*args: Any, region: Any, **named: Any) -> Any:
        asked.append(region)
        return make_objects([shapely.box(5, 5, 13, 13)], object_type="cell", classification=CELLS[0])

    monkeypatch.setattr("qupath_ext.workflows.finetuning.predict_cells", predicted)
    model: Any = None
    (counted,) = count_images([image], model, CellTask(CELLS))
    assert asked[0].equals(frame)
    assert counted.by_class[CELLS[0]] == (1, 1, 1)


def test_nothing_is_looked_for_on_glass_or_pen_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A labelled slide of 2.4 mm with tissue from 400 to 2000 µm and a broad black stroke beside it."""
    rgb = np.full((300, 300, 3), 240, np.uint8)
    rgb[50:250, 50:250] = (200, 150, 190)
    rgb[260:285] = (25, 25, 28)
    Image.fromarray(rgb).save(tmp_path / "marked.png")
    asked: list[Any] = []

    def predicted(slide: Any, model: Any, region: Any, **named: Any) -> Any:
        asked.append(region)
        return make_objects([region], object_type="annotation", classification="Tumor")

    monkeypatch.setattr("qupath_ext.active.measuring.predict_tissue", predicted)
    labels = [("Training", shapely.box(0, 0, 300, 300)), ("Tumor", shapely.box(100, 100, 200, 200))]
    image = replace(image_of(*labels, path=tmp_path / "marked.png", part="test"), mpp=(8.0, 8.0))
    model: Any = None
    (counted,) = count_images([image], model, TissueTask())
    assert asked[0].bounds == pytest.approx((44, 44, 256, 256), abs=1)  # 50 µm wider than the tissue
    both, found, true = (um2 / 64 for um2 in counted.by_class["Tumor"])
    assert (both, true) == pytest.approx((100**2, 100**2))
    assert found == pytest.approx(212.5**2, rel=0.02)


def test_cells_are_counted_where_all_are_labelled(slide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two positive cells one is found, and one as negative; a cell outside of the label counts on no side."""
    image = image_of(
        ("Training", shapely.box(0, 0, 200, 200)),
        (CELLS[0], shapely.MultiPoint([(50, 50), (100, 100), (300, 300)])),
        path=slide,
        part="validation",
    )
    shapes = [shapely.Point(xy).buffer(8) for xy in ((51, 50), (100, 101))]
    found = make_objects(shapes, object_type="cell", classification=list(CELLS))
    monkeypatch.setattr("qupath_ext.workflows.finetuning.predict_cells", lambda *args, **named: found)
    model: Any = None
    (counted,) = count_images([image], model, CellTask(CELLS))
    assert counted.patient == "slide.tif"
    assert counted.by_class == {CELLS[0]: (1, 1, 2), CELLS[1]: (0, 1, 0)}
