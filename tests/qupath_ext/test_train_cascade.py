"""Coarse-to-fine models trained by ``qupath-ext train``: two stages, one bundle; killed, they go on."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import tifffile
import torch
from click.testing import CliRunner, Result

from pyhisto.bundle.files import load_bundle, read_spec
from pyhisto.config import from_mapping
from pyhisto.dataset import TrainingImage
from pyhisto.errors import BundleError, ConfigError
from pyhisto.inference import predict_tissue
from pyhisto.inference.cascade import heated
from pyhisto.labels import mask_to_polygons
from pyhisto.objects import concat_objects, make_objects
from pyhisto.synth import SynthSettings, make_slide
from pyhisto.tissue import detect_tissue
from pyhisto.train.checkpoint import Checkpoints
from qupath_ext.cli import main
from qupath_ext.project import create_project
from qupath_ext.study import TrainStudy
from qupath_ext.workflows.training import train_bundle

SIDE = 512
"""Side of a slide, px of 0.5 µm."""

STUDY = """
kind = "tissue"
classes = ["Tumor"]
validation_windows = 8
[model]
architecture = "attention-unet"
decoder_channels = [24, 16, 8]
mpp = 2.0
tile_size = 64
overlap = 16
[augmentation]
scale = 0.0
rotation = 0.0
stain = 0.1
hue = 0.05
blur_px = 0.0
noise = 1.0
[training]
steps = 80
batch_size = 6
learning_rate = 1e-2
workers = 0
checkpoint_every = 20
validate_every = 40
[cascade]
detector = "cnn"
channels = [8, 12, 16]
mpp = 0.5
patch_size = 32
hidden = 0.4
proposal_threshold = 0.3
proposal_margin_um = 4.0
[cascade.training]
steps = 40
batch_size = 12
learning_rate = 1e-2
workers = 0
checkpoint_every = 20
validate_every = 20
loss = {name = "cross-entropy"}
"""

SHORT = STUDY.replace("steps = 80", "steps = 6").replace("steps = 40", "steps = 6").replace("_every = 20", "_every = 2")
"""The same in a few steps, with a checkpoint after every other one."""


def write_slide(path: Path, seed: int) -> tuple[Path, list[Any]]:
    """Write a slide with dark blobs, half of them tumour: these are chequered with squares of 1 µm, the others plain.

    At 2 µm/px the squares are gone, and all blobs look alike.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:SIDE, 0:SIDE] + 0.5
    image = np.full((SIDE, SIDE, 3), (205, 180, 205), dtype=float)
    tumour = []
    places = [(110, 110), (390, 120), (120, 390), (390, 380), (250, 250)]
    for number, (cx, cy) in enumerate(places):
        cx, cy = cx + rng.uniform(-15, 15), cy + rng.uniform(-15, 15)
        across, down = rng.uniform(55, 80, 2)
        inside = ((x - cx) / across) ** 2 + ((y - cy) / down) ** 2 < 1
        is_tumour = (number + seed) % 2 == 0
        squares = is_tumour * np.where((x // 2 + y // 2) % 2 < 1, 35.0, -35.0)
        image[inside] = (np.array((150, 115, 165)) + squares[..., None])[inside]
        if is_tumour:
            tumour.append(shapely.affinity.scale(shapely.Point(cx, cy).buffer(1, 64), across, down))
    image += rng.normal(0, 5, image.shape)
    tifffile.imwrite(
        path,
        image.clip(0, 255).astype(np.uint8),
        tile=(64, 64),
        photometric="rgb",
        compression="adobe_deflate",
        resolution=(20000, 20000),
        resolutionunit="CENTIMETER",
    )
    return path, tumour


def annotations(tumour: Sequence[Any], side: int = SIDE) -> Any:
    frame = make_objects([shapely.box(0, 0, side, side)], object_type="annotation", classification="Training")
    return concat_objects([frame, make_objects(list(tumour), object_type="annotation", classification="Tumor")])


def images(folder: Path) -> list[TrainingImage]:
    """Return slides to train, train and validate on."""
    out = []
    for number, part in enumerate(("train", "train", "validation")):
        path, tumour = write_slide(folder / f"{number}.tif", number)
        out.append(TrainingImage(path, annotations(tumour), patient=f"P{number}", part=part))  # type: ignore[arg-type]
    return out


def study(text: str) -> TrainStudy:
    return from_mapping(TrainStudy, tomllib.loads(text), "study")


def dice(found: Any, tumour: Sequence[Any]) -> float:
    mine, theirs = shapely.union_all(found), shapely.union_all(tumour)
    return float(2 * mine.intersection(theirs).area / (mine.area + theirs.area))


def _in_full_precision(patched: pytest.MonkeyPatch) -> None:
    patched.setattr("pyhisto.bundle.files.fast_bfloat16", lambda device: False)
    patched.setattr("pyhisto.train.loop.fast_bfloat16", lambda device: False)


@pytest.fixture(autouse=True)
def _in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    _in_full_precision(monkeypatch)


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> list[TrainingImage]:
    return images(tmp_path_factory.mktemp("slides"))


def train(slides: list[TrainingImage], folder: Path, text: str = SHORT, **options: Any) -> tuple[Any, list[str]]:
    """Train without what takes longer than a few steps: pictures of learning curves, and looking at nuclei."""
    said: list[str] = []
    work = folder.with_suffix(".work")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("pyhisto.train.checkpoint.write_curves", lambda *given, **options: None)
        patched.setattr("qupath_ext.workflows.training.training_references", lambda images: (None, None))
        made = train_bundle(slides, study(text), folder=folder, work=work, about={}, say=said.append, **options)
    return made, said


def weights(bundle: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(bundle / "models" / "model.pt", weights_only=True)
    return state


def figure(said: Sequence[str], what: str) -> float:
    (line,) = (line for line in said if what in line)
    return float(line.split(what)[1].split()[0].strip(",%"))


@pytest.mark.slow
def test_it_sees_what_shows_at_high_magnification_and_keeps_the_outlines(
    slides: list[TrainingImage], tmp_path: Path
) -> None:
    """Plain blobs at low magnification, patches of 16 µm at high: neither alone knows which outline is tumour's."""
    trained, said = train(slides, tmp_path / "both", STUDY)
    heat = figure(said, "Dice Tumor, heatmap alone")
    refined = trained.result.validation[-1].mean_dice
    assert refined > max(0.8, heat + 0.05)
    assert figure(said, "share of Tumor inside the proposal") > 95
    assert figure(said, "share of the labelled area inside the proposal") < 75
    path, tumour = write_slide(tmp_path / "new.tif", 7)
    with TrainingImage(path, slides[0].objects).open() as slide:
        found = predict_tissue(slide, load_bundle(tmp_path / "both"), shapely.box(0, 0, SIDE, SIDE))
    assert dice(found.geometry.to_numpy(), tumour) > 0.8


@pytest.fixture(scope="module")
def never_killed(slides: list[TrainingImage], tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("never") / "b"
    with pytest.MonkeyPatch.context() as patched:
        _in_full_precision(patched)
        trained, _ = train(slides, folder)
    return weights(folder), trained.result.losses


class TestKilled:
    """An exception after a checkpoint leaves on the disk what a killed process leaves."""

    @pytest.mark.parametrize("saves", [1, 3, 5], ids=["first stage", "end of the first stage", "second stage"])
    def test_at_a_checkpoint(self, slides: list[TrainingImage], never_killed: Any, tmp_path: Path, saves: int) -> None:
        done: list[int] = []
        save = Checkpoints.save

        def dying(self: Checkpoints, *arguments: Any, **options: Any) -> None:
            save(self, *arguments, **options)
            done.append(1)
            if len(done) == saves:
                raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Checkpoints, "save", dying)
            with pytest.raises(KeyboardInterrupt):
                train(slides, tmp_path / "b")
        assert not (tmp_path / "b").exists()
        assert (tmp_path / "b.work" / "heat").exists() == (saves > 3)
        self.same(slides, tmp_path, never_killed)

    def test_while_the_heatmaps_are_made(self, slides: list[TrainingImage], never_killed: Any, tmp_path: Path) -> None:
        from qupath_ext.workflows import cascade

        detect, made = cascade.detect_heat, []

        def dying(*arguments: Any, **options: Any) -> Any:
            if len(made) == 2:
                raise KeyboardInterrupt
            made.append(1)
            return detect(*arguments, **options)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(cascade, "detect_heat", dying)
            with pytest.raises(KeyboardInterrupt):
                train(slides, tmp_path / "b")
        assert len(list((tmp_path / "b.work" / "heat").glob("*.npz"))) == 2
        self.same(slides, tmp_path, never_killed)

    @staticmethod
    def same(slides: list[TrainingImage], folder: Path, never_killed: Any) -> None:
        """Go on, and compare."""
        trained, _ = train(slides, folder / "b")
        expected, losses = never_killed
        found = weights(folder / "b")
        assert trained.result.losses == losses
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected)
        left = {path.name for path in (folder / "b.work").iterdir()}
        assert not left & {"detector", "heat", "checkpoint.pt", "best.pt"}


def in_project(folder: Path) -> Path:
    project = create_project(folder / "project")
    for number in range(2):
        path, tumour = write_slide(folder / f"slide-{number}.tif", number)
        project.add_image(path, metadata={"Patient": f"P{number}"}).write_objects(add=annotations(tumour))
    return project.path.parent


def run(*words: Any) -> Result:
    return CliRunner().invoke(main, [*map(str, words)])


def test_the_commands(tmp_path: Path) -> None:
    """``train`` makes a bundle of both stages, and ``annotate`` runs it."""
    project = in_project(tmp_path)
    path = tmp_path / "study.toml"
    path.write_text(f"validation = 0.5\n{SHORT}", "utf-8")
    result = run("train", project, "--study", path, "-o", tmp_path / "tumour")
    assert result.exit_code == 0, result.output
    docs = {found.name for found in (tmp_path / "tumour" / "docs").iterdir()}
    curves = {"curve.csv", "curve.png", "detector-curve.csv", "detector-curve.png"}
    assert docs == {"README.md", "study.toml", "split.json", "train.log", *curves}
    assert "Dice Tumor, heatmap alone" in (tmp_path / "tumour" / "docs" / "README.md").read_text("utf-8")
    spec, _ = read_spec(tmp_path / "tumour")
    assert spec.kind == "tissue_segmentation"
    assert spec.cascade is not None
    assert (spec.mpp, spec.cascade.mpp, spec.cascade.patch_size) == (2.0, 0.5, 32)
    assert not (tmp_path / "tumour.training").exists()

    result = run("annotate", project, "--model", tmp_path / "tumour", "--json")
    assert result.exit_code == 0, result.output
    assert {row["image"] for row in json.loads(result.stdout)["images"]} == {"slide-0.tif", "slide-1.tif"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('kind = "tissue"', 'kind = "cells"'), "[cascade] for cells"),
        (("mpp = 0.5", "mpp = 0.6"), "a whole multiple"),
        (("mpp = 0.5", "mpp = 4.0"), "a whole multiple"),
        (("patch_size = 32", "patch_size = 0"), "patch_size = 0"),
        (("hidden = 0.4", "hidden = 0.0"), "hidden = 0.0"),
        (("threshold = 0.3", "threshold = 1.0"), "proposal_threshold = 1.0"),
        (("patch_size = 32", "proposal_margin = 1.0"), "proposal_margin"),
        (("patch_size = 32", "rule = {least = 0.1, most = 0.2}"), "most < least"),
        (('"cross-entropy"', '"boundary-cross-entropy"'), "boundary-cross-entropy for patches"),
    ],
)
def test_a_study_that_does_not_fit(change: tuple[str, str], message: str) -> None:
    text = STUDY.replace(*change) if change[0] in STUDY.split("[cascade]")[0] else STUDY
    head, _, tail = text.partition("[cascade]")
    with pytest.raises(ConfigError) as caught:
        study(f"{head}[cascade]{tail.replace(*change, 1)}")
    assert message in str(caught.value)


def test_a_model_of_one_network_is_not_gone_on_from(slides: list[TrainingImage], tmp_path: Path) -> None:
    alone = SHORT.partition("[cascade]")[0].replace("steps = 6", "steps = 1")
    train(slides, tmp_path / "one", alone)
    bundle = load_bundle(tmp_path / "one")
    with pytest.raises(BundleError, match="--init has one network; expected two stages"):
        train(slides, tmp_path / "two", init=bundle)
    assert not (tmp_path / "two.work").exists()


def test_going_on_keeps_both_networks(slides: list[TrainingImage], tmp_path: Path) -> None:
    """And the frame of the model, whatever the study says; a step at a rate of almost 0 moves little."""
    train(slides, tmp_path / "before")
    init = load_bundle(tmp_path / "before")
    still = (
        SHORT.replace("steps = 6", "steps = 1").replace("1e-2", "1e-9").replace("patch_size = 32", "patch_size = 64")
    )
    _, said = train(slides, tmp_path / "after", still, init=init)
    assert any(line.endswith("both networks") for line in said)
    assert read_spec(tmp_path / "after")[0].cascade == init.spec.cascade
    before, after = weights(tmp_path / "before"), weights(tmp_path / "after")
    assert all(torch.allclose(before[name], after[name], atol=1e-5) for name in before if name.endswith("weight"))


@pytest.mark.slow
def test_synthetic_tissue(tmp_path: Path) -> None:
    """Nests of tumour in stroma of five patients' slides, judged on a sixth one's; patches are 32 µm wide."""
    given, truth = [], []
    for number, part in enumerate(("train", "train", "train", "train", "validation", "test")):
        path = tmp_path / f"{number}.tif"
        settings = SynthSettings(width=1536, height=1536, seed=number + 1, pen_mark=False, compression="deflate")
        truth = list(make_slide(path, settings).tumour.geometry)
        objects = annotations(truth, 1536)
        given.append(TrainingImage(path, objects, patient=f"P{number}", part=part))  # type: ignore[arg-type]
    longer = {
        "mpp = 0.5": "mpp = 1.0",
        "steps = 80": "steps = 200",
        "validate_every = 40": "validate_every = 50",
        "steps = 40": "steps = 150",
        "1e-2": "5e-3",
        "[24, 16, 8]": "[48, 32, 16]",
        "[8, 12, 16]": "[16, 24, 32]",
        "noise = 1.0": "noise = 4.0",
        "stain = 0.1": "stain = 0.3",
    }
    text = STUDY
    for short, long in longer.items():
        text = text.replace(short, long)
    trained, said = train(given, tmp_path / "b", text)
    assert trained.result.validation[-1].mean_dice > figure(said, "Dice Tumor, heatmap alone") + 0.05
    bundle = load_bundle(tmp_path / "b")
    with given[-1].open() as slide:
        tissue = shapely.union_all(detect_tissue(slide).geometry.to_numpy())
        heat = heated(slide, bundle, tissue)[0].read_region(0, 0, 1536, 1536, mpp=0.5)[..., 3] >= 128
        found = predict_tissue(slide, bundle, tissue)
    refined = dice(found.geometry.to_numpy(), truth)
    alone = dice(mask_to_polygons(heat), truth)
    assert refined > max(0.85, alone + 0.05)
