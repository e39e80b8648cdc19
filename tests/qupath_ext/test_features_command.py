"""The command features: one file an image, made once; and bags from elsewhere."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import shapely
import torch
from click.testing import CliRunner, Result
from foreign_folders import save_torchscript
from torch import nn

from pyhisto.features.bags import list_bags, read_bag
from pyhisto.objects import make_objects
from pyhisto.slide import Slide
from pyhisto.synth import SynthSettings, make_slide
from qupath_ext.cli import main
from qupath_ext.project import Project, create_project


class MeanColour(nn.Module):
    """Gives the mean of red, green and blue, 0 to 1."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3))


@pytest.fixture(autouse=True)
def torch_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile nothing by OpenVINO, which takes seconds."""
    monkeypatch.setattr("pyhisto.device.has_openvino", lambda: False)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a slide and an encoder of tiles of 64 px at 1 µm/px: 128 px of the slide."""
    folder = tmp_path_factory.mktemp("features")
    make_slide(folder / "slide.tif", SynthSettings(width=512, height=512, seed=3))
    save_torchscript(MeanColour(), folder / "colour.pt")
    told = {"mpp": 1.0, "tile_size": 64, "mean": [0, 0, 0], "std": [1, 1, 1]}
    (folder / "colour.json").write_text(json.dumps(told), "utf-8")
    return folder


@pytest.fixture
def project(tmp_path: Path, made: Path) -> Project:
    """An image with two squares, of which a corner is to be ignored."""
    project = create_project(tmp_path / "project")
    entry = project.add_image(made / "slide.tif", metadata={"Patient": "P 7"})
    areas = [shapely.box(0, 0, 256, 128), shapely.box(128, 384, 256, 512), shapely.box(120, 0, 256, 128)]
    classes = ["Tumor", "Tumor", "Ignore*"]
    entry.write_objects(add=make_objects(areas, object_type="annotation", classification=classes))
    return project


def run(project: Project, made: Path, output: Path, *options: str) -> Result:
    arguments = ["features", str(project.path.parent), "--output", str(output), "--encoder", str(made / "colour.pt")]
    return CliRunner().invoke(main, [*arguments, "--json", *options])


def test_tiles_of_a_class(project: Project, made: Path, tmp_path: Path) -> None:
    result = run(project, made, tmp_path / "out", "--region", "Tumor", "--half")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    (bag,) = list_bags(tmp_path / "out")
    assert document["images"][0]["tiles"] == bag.instances == 2
    assert document["encoder"]["sha256"] == bag.encoder_sha256
    assert (bag.name, bag.patient, bag.entry_id, bag.patch_size) == ("slide.tif", "P 7", project.entries[0].id, 128)
    assert bag.coords is not None
    assert bag.coords.tolist() == [[0, 0], [128, 384]]  # 120 of 128 columns of the first are left
    with Slide(made / "slide.tif") as slide:
        colours = [slide.read_region(x, y, 128, 128).mean(axis=(0, 1)) / 255 for x, y in bag.coords.tolist()]
    np.testing.assert_allclose(bag.features, colours, atol=0.004)


def test_what_is_there_is_not_made_again(project: Project, made: Path, tmp_path: Path) -> None:
    assert run(project, made, tmp_path / "out").exit_code == 0
    (path,) = (tmp_path / "out").iterdir()
    before = path.stat().st_mtime_ns, path.stat().st_ino
    second = run(project, made, tmp_path / "out")
    assert second.exit_code == 0
    assert json.loads(second.stdout)["images"][0]["existed"]
    other = run(project, made, tmp_path / "out", "--min-tissue", "0.9")
    assert other.exit_code == 1
    assert "min_tissue 0.5; expected 0.9" in json.loads(other.stdout)["failed"][0]["error"]
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before


def test_a_bad_slide_does_not_stop_the_others(project: Project, made: Path, tmp_path: Path) -> None:
    lost = tmp_path / "lost.tif"
    lost.write_bytes((made / "slide.tif").read_bytes())
    project.add_image(lost)
    project.add_image(made / "slide.tif")
    lost.unlink()
    result = run(project, made, tmp_path / "out")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert [failure["image"] for failure in document["failed"]] == ["lost.tif"]
    ids = [project.entries[0].id, project.entries[2].id]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"slide.tif-{id_}.h5" for id_ in ids]


def test_a_run_that_was_killed_goes_on(project: Project, made: Path, tmp_path: Path) -> None:
    project.add_image(made / "slide.tif", name="second")
    options = ("--region", "image", "--batch-size", "7")  # 15 tiles and the corner to be ignored: three batches a slide
    arguments = ["pyhisto.features.encoders", "Encoder.encode", "5", "features", project.path.parent]
    arguments += ["--output", tmp_path / "out", "--encoder", made / "colour.pt", *options]
    program = Path(__file__).with_name("killed_command.py")
    killed = subprocess.run([sys.executable, program, *map(str, arguments)], check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert [path.name for path in (tmp_path / "out").glob("*.h5")] == ["slide.tif.h5"]
    resumed = run(project, made, tmp_path / "out", *options)
    assert resumed.exit_code == 0, resumed.output
    assert [image["existed"] for image in json.loads(resumed.stdout)["images"]] == [True, False]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["second.h5", "slide.tif.h5"]
    assert run(project, made, tmp_path / "whole", *options).exit_code == 0
    for bag, other in zip(list_bags(tmp_path / "out"), list_bags(tmp_path / "whole"), strict=True):
        assert bag.features.tolist() == other.features.tolist()
        assert bag.attributes.keys() == other.attributes.keys()


def test_macenko(project: Project, made: Path, tmp_path: Path) -> None:
    refused = run(project, made, tmp_path / "out", "--normalise", "macenko")
    assert refused.exit_code == 1
    assert "stained with H-DAB; expected H&E" in json.loads(refused.stdout)["failed"][0]["error"]
    stained = create_project(tmp_path / "stained")
    stained.add_image(made / "slide.tif", image_type="BRIGHTFIELD_H_E")
    assert run(stained, made, tmp_path / "plain").exit_code == 0
    result = run(stained, made, tmp_path / "out", "--normalise", "macenko")
    assert result.exit_code == 0, result.output
    plain, normal = (read_bag(tmp_path / name / "slide.tif.h5") for name in ("plain", "out"))
    assert normal.attributes["normalise"] == "macenko"
    assert normal.coords is not None
    assert plain.coords is not None
    assert normal.coords.tolist() == plain.coords.tolist()
    assert np.abs(normal.features - plain.features).max() > 0.02


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["--tile-mpp", "0"], "at 0 µm/px"),
        (["--encoder-sha256", "ab"], "with weights of sha256"),
        (["--encoder-weights", "random"], "which has its own"),
        (["--device", "cuda:9"], "'cuda:9' is not available"),
    ],
)
def test_options_that_are_refused(project: Project, made: Path, tmp_path: Path, options: list[str], found: str) -> None:
    result = run(project, made, tmp_path / "out", *options)
    assert result.exit_code == 2
    assert found in result.output
    assert not (tmp_path / "out").exists()


def test_bags_from_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "clean1.data").write_text("A,A_1,46,-108,1.\nB,B_1,41,-188,0.\nA,A_2,1,2,1.\n", "utf-8")
    arguments = ["mil", "import", str(tmp_path / "clean1.data"), "--output", str(tmp_path / "musk")]
    result = CliRunner().invoke(main, [*arguments, "--label-column", "-1", "--ignore-column", "2"])
    assert result.exit_code == 0, result.output
    assert "2 bags (1 of 0, 1 of 1) of 1 to 2 instances with 2 features" in result.output
    assert {bag.name: bag.features.tolist() for bag in list_bags(tmp_path / "musk")} == {
        "A": [[46, -108], [1, 2]],
        "B": [[41, -188]],
    }
    assert (tmp_path / "musk" / "labels.csv").read_text("utf-8").split() == ["bag,patient,label", "A,,1", "B,,0"]
    again = CliRunner().invoke(main, [*arguments, "--label-column", "9"])
    assert again.exit_code == 2
    assert "no column '9'" in again.output
