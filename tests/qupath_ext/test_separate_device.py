"""Networks on a device with a memory of its own, in place of a GPU: every tensor must be brought there and back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import separate_device
import shapely
import torch
from foreign_folders import SOFTMAX, UNET, monai_config, monai_metadata, write_hover, write_monai, write_wsinfer
from monai.networks.nets import UNet

from pyhisto.bundle.files import ModelClass, ModelSpec, normalise, save_bundle
from pyhisto.models import build_model
from pyhisto.slide import Slide
from pyhisto.synth import SynthSettings, make_slide
from qupath_ext.project import Project, create_project, open_project
from qupath_ext.runs.record import list_runs

BOTH = "separate:0,separate:1"
TISSUE = {"threshold": 0.5, "sigma_um": 2, "min_area_um2": 9, "min_hole_area_um2": 9, "simplify_um": 1}
CELLS = {"threshold": 0.3, "sigma_um": 1, "min_distance_um": 3, "reach_um": 7, "core_um": 1.5}
CHANNELS = (8, 8, 8, 8, 8)


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[separate_device.Worker]:
    if why := separate_device.why_not():
        pytest.skip(why)
    one = separate_device.Worker(separate_device.build(tmp_path_factory.mktemp("device")))
    yield one
    one.close()


def save(folder: Path, kind: str, classes: tuple[ModelClass, ...], numbers: dict[str, Any]) -> Path:
    """Write a bundle with an untrained network whose output is not nearly the same everywhere."""
    torch.manual_seed(2)
    spec = ModelSpec(kind, "unet-resnet34", classes, 0.5, 64, 8, CHANNELS, postprocessing=numbers)
    network = build_model(spec.architecture, out_channels=len(classes), decoder_channels=CHANNELS)
    head: Any = network.segmentation_head[0]  # type: ignore[index]
    make_slide(folder.with_suffix(".tif"), SynthSettings(width=480, height=480, seed=9, pen_mark=False))
    with Slide(folder.with_suffix(".tif")) as slide:
        example = normalise(torch.from_numpy(slide.read_region(112, 112, 256, 256)[None].copy()), spec)
    with torch.no_grad():
        head.weight *= 10 / network.eval()(example).std()
        head.bias -= network(example).quantile(0.5, dim=3).quantile(0.5, dim=2)[0]  # no class is everywhere
    tile = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    save_bundle(folder, network, spec, golden_tile=tile, description="untrained")
    return folder


@pytest.fixture(scope="module")
def tumour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    classes = ModelClass("background"), ModelClass("tumour", "Tumor")
    return save(tmp_path_factory.mktemp("bundles") / "tumour", "tissue_segmentation", classes, TISSUE)


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = ("positive", "Tumor: Positive"), ("ring", None), ("negative", "Tumor: Negative"), ("ring 2", None)
    classes = ModelClass("background"), *(ModelClass(name, classification) for name, classification in names)
    return save(tmp_path_factory.mktemp("bundles") / "cells", "cell_detection", classes, CELLS)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Three images of 500 px."""
    folder = tmp_path_factory.mktemp("images")
    project = create_project(folder / "project")
    for seed in range(3):
        make_slide(folder / f"{seed}.tif", SynthSettings(width=500, height=500, seed=seed, pen_mark=False))
        project.add_image(folder / f"{seed}.tif")
    return project


@pytest.fixture
def two(images: Project, tmp_path: Path) -> tuple[Project, Project]:
    """The same project twice."""
    copies = []
    for name in ("mine", "theirs"):
        shutil.copytree(images.path.parent, tmp_path / name)
        copies.append(open_project(tmp_path / name))
    return copies[0], copies[1]


def options(project: Project, device: str, *more: str) -> list[str]:
    return [str(project.path.parent), "--json", "--device", device, *more]


def contents(project: Project) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in project.path.parent.rglob("*") if path.is_file()}


def test_a_tensor_of_another_device_is_refused(worker: separate_device.Worker) -> None:
    said = worker.ask("refusals")
    assert len(said) == 2
    assert all("Expected all tensors to be on the same device" in words for words in said)


def test_two_devices_share_the_images_and_find_what_the_cpu_finds(
    worker: separate_device.Worker, two: tuple[Project, Project], tumour: Path
) -> None:
    wanted = "--model", str(tumour), "--precision", "float32", "--batch-size", "2"
    mine, theirs = (
        worker.ask("command", arguments=["annotate", "--region", "image", *options(project, device, *wanted)])
        for project, device in zip(two, (BOTH, "cpu"), strict=True)
    )
    assert (mine["code"], theirs["code"]) == (0, 0), mine["stderr"]
    assert min(mine["operations"]) > 0
    assert theirs["operations"] == [0, 0]
    assert list(list_runs(two[0]))[-1].record["device"] == BOTH
    for one, other in zip(two[0].entries, two[1].entries, strict=True):
        found, expected = (entry.read_objects() for entry in (one, other))
        drawn, truth = shapely.union_all(found.geometry), shapely.union_all(expected.geometry)
        assert 0.02 < truth.area / 500**2 < 0.98
        assert shapely.area(shapely.symmetric_difference(drawn, truth)) <= 1e-3 * truth.area


def test_ki67_with_two_models_in_bfloat16(
    worker: separate_device.Worker, two: tuple[Project, Project], tumour: Path, cells: Path
) -> None:
    models = "--tumour", str(tumour), "--cells", str(cells), "--precision", "bfloat16", "--batch-size", "2"
    arguments = options(two[0], "separate:1", *models, "--image", two[0].entries[0].name)
    answer = worker.ask("command", arguments=["ki67", *arguments])
    assert answer["code"] == 0, answer["stderr"]
    assert answer["operations"][0] == 0
    assert answer["operations"][1] > 0
    (image,) = json.loads(answer["stdout"])["images"]
    assert image["settings"]["network-tumour"]["precision"] == "bfloat16"


def test_how_many_tiles_at_once_are_fastest_is_measured_in_silence(
    worker: separate_device.Worker, two: tuple[Project, Project], tumour: Path
) -> None:
    chosen = "--model", str(tumour), "--precision", "float32", "--image", two[0].entries[0].name
    answer = worker.ask("command", arguments=["annotate", "--region", "image", *options(two[0], "separate:1", *chosen)])
    assert answer["code"] == 0, answer["stderr"]
    assert "Warning" not in answer["stderr"]


@pytest.mark.parametrize("left", [40, 170], ids=["weights", "making ready"])
def test_a_device_with_too_little_memory_is_a_line_and_no_change(
    worker: separate_device.Worker, two: tuple[Project, Project], tumour: Path, left: int
) -> None:
    before = contents(two[0])
    arguments = options(two[0], "separate:0", "--model", str(tumour), "--precision", "float32")
    answer = worker.ask("command", arguments=["annotate", "--region", "image", *arguments], limit=left * 2**20)
    assert answer["code"] == 1
    assert "qupath-ext: the memory is used up (separate:0 is out of memory); end what else uses it" in answer["stderr"]
    assert "Traceback" not in answer["stderr"]
    assert contents(two[0]) == before


@pytest.mark.parametrize(("kind", "limit"), [("own", 4_000_000), ("wsinfer", 9000), ("hover", 400_000)])
def test_fewer_tiles_at_once_where_the_memory_is_small(
    worker: separate_device.Worker, tmp_path: Path, tumour: Path, kind: str, limit: int
) -> None:
    folder, mpp, side = tumour, None, 64
    if kind == "wsinfer":
        folder, side = write_wsinfer(tmp_path / "model"), 16
    elif kind == "hover":
        folder, mpp = write_hover(tmp_path / "model"), 0.5
    found = worker.ask("narrow", folder=str(folder), mpp=mpp, shape=[side, side], limit=limit)
    assert found["most"] < 1e-6
    assert found["operations"][1] > found["operations"][0] > 0
    assert found["refused"].startswith("the memory of separate:1 is too small for one tile")


@pytest.mark.parametrize("kind", ["own", "wsinfer", "monai", "hover"])
def test_a_model_says_there_what_it_says_on_the_cpu(
    worker: separate_device.Worker, tmp_path: Path, cells: Path, kind: str
) -> None:
    mpp, precision, shape = None, "auto", [64, 64]
    if kind == "own":
        folder, precision = cells, "float32"
    elif kind == "wsinfer":
        folder, shape = write_wsinfer(tmp_path / "model"), [16, 16]
    elif kind == "hover":
        folder, mpp = write_hover(tmp_path / "model"), 0.5
    else:
        torch.manual_seed(1)
        network = UNet(spatial_dims=2, in_channels=3, out_channels=3, channels=(4, 8), strides=(2,))
        metadata = monai_metadata({"0": "background", "1": "a", "2": "b"})
        folder = write_monai(tmp_path / "model", metadata, monai_config(UNET, activation=SOFTMAX), weights=network)
        mpp, shape = 0.5, [32, 32]
    found = worker.ask("differences", folder=str(folder), mpp=mpp, precision=precision, shape=shape)
    assert found["spread"] > 0.1
    assert found["most"] < 1e-5
