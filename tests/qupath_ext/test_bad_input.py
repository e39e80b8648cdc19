"""Bad input: one clear line on stderr, exit code 2, and nothing on disk that was not there before."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from pyhisto.bundle.files import ModelClass, ModelSpec, save_bundle
from pyhisto.models import build_model
from pyhisto.synth import SynthSettings, make_slide
from qupath_ext.cli import main
from qupath_ext.project import create_project

BROKEN = Path(__file__).parents[2] / ".." / "shared" / "data" / "broken"
QUICK = ("--classical", "--no-auto", "--stains", "default", "--json")
NAMES = sorted(path.name for path in BROKEN.iterdir()) if BROKEN.is_dir() else ["(absent)"]
TILE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
TINY = {"boxes_0.dcm", "boxes_1.dcm", "small.svs", "😐.svs"}


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bad-input") / "good.tif"
    make_slide(path, SynthSettings(width=512, height=512, seed=5))
    return path


def vivid(model: torch.nn.Module) -> torch.nn.Module:
    """Return an untrained network whose output is not nearly the same everywhere."""
    with torch.no_grad():
        model.segmentation_head[0].weight *= 200  # type: ignore[index,union-attr,operator]
    return model


@pytest.fixture(scope="module")
def tumour_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "tumour"
    classes = (ModelClass("background"), ModelClass("tumour", "Tumor"))
    numbers = {"threshold": 0.5, "sigma_um": 4, "min_area_um2": 9, "min_hole_area_um2": 9, "simplify_um": 1}
    spec = ModelSpec(
        "tissue_segmentation", "unet-resnet34", classes, 0.5, 64, 8, (8, 8, 8, 8, 8), postprocessing=numbers
    )
    model = build_model(spec.architecture, out_channels=2, decoder_channels=spec.decoder_channels)
    save_bundle(folder, vivid(model), spec, golden_tile=TILE, description="d")
    return folder


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr("pyhisto.bundle.files.fast_bfloat16", lambda device: False)
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    monkeypatch.setattr("qupath_ext.workflows.reporting.overlay_png", lambda *args, **options: picture.getvalue())
    return folder


def contents(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["ki67", *(str(argument) for argument in arguments)])


def refused(folder: Path, *arguments: object) -> str:
    """Run the command, check that it refuses in one line and leaves the folder as it was; return the line."""
    before = contents(folder)
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    (line,) = [line for line in result.stderr.splitlines() if not line.startswith("project backend: ")]
    assert line.startswith("qupath-ext: ")
    assert contents(folder) == before
    return line


def refused_usage(folder: Path, *arguments: object) -> str:
    """Like :func:`refused` for options that click refuses in its own form: usage, then ``Error: ...``."""
    before = contents(folder)
    result = run(*arguments)
    assert result.exit_code == 2
    assert contents(folder) == before
    assert result.stderr.startswith("Usage: ")
    return result.stderr.splitlines()[-1]


# ---------------------------------------------------------------------- slides
def test_missing_slide(inside: Path) -> None:
    assert "none.svs does not exist" in refused(inside, "none.svs", *QUICK)


@pytest.mark.parametrize("name", NAMES)
def test_broken_files(inside: Path, name: str) -> None:
    """Most are no slide or have no pixel size; the others are slides, though tiny ones without a cell."""
    if not BROKEN.is_dir():
        pytest.skip("needs ../shared/data/broken beside the repository")
    if name in TINY:
        result = run(BROKEN / name, *QUICK)
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["images"][0]["cells"] == 0
    else:
        assert name in refused(inside, BROKEN / name, *QUICK)


@pytest.mark.parametrize("name", NAMES)
def test_broken_files_with_a_pixel_size(inside: Path, name: str) -> None:
    """With --mpp boxes.tiff is a tiny slide too; what cannot be decoded is refused as before."""
    if not BROKEN.is_dir():
        pytest.skip("needs ../shared/data/broken beside the repository")
    arguments = (BROKEN / name, "--mpp", "0.5", "--region", "image", *QUICK)
    if name in {*TINY, "boxes.tiff"}:
        result = run(*arguments)
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["images"][0]["settings"]["mpp"] == [0.5, 0.5]
    else:
        assert name in refused(inside, *arguments)


@pytest.mark.parametrize("content", [b"", b"II*\0", b"hello", b"\0" * 5000])
def test_files_that_are_no_slide(inside: Path, content: bytes) -> None:
    (inside / "odd.tif").write_bytes(content)
    assert "odd.tif" in refused(inside, "odd.tif", *QUICK)


def test_a_truncated_slide(inside: Path, slide: Path) -> None:
    data = slide.read_bytes()
    (inside / "cut.tif").write_bytes(data[: len(data) // 2])
    assert "cut.tif" in refused(inside, "cut.tif", *QUICK)


def test_a_slide_without_pixel_size(inside: Path, write_tiff: Any) -> None:
    write_tiff(inside / "plain.tif", [np.full((256, 256, 3), 200, np.uint8)], mpp=None)
    line = refused(inside, "plain.tif", *QUICK)
    assert "plain.tif has no pixel size" in line
    assert "--mpp" in line


@pytest.mark.parametrize("value", ["0", "-1", "1000", "nan", "inf", "half"])
def test_pixel_sizes_that_cannot_be(inside: Path, slide: Path, value: str) -> None:
    before = contents(inside)
    result = run(slide, *QUICK, "--mpp", value)
    assert result.exit_code == 2
    assert "--mpp" in result.stderr.splitlines()[-1]
    assert contents(inside) == before


@pytest.mark.parametrize(
    ("option", "value"), [("--threshold", "nan"), ("--sigma-um", "-1"), ("--requested-pixel-size-um", "0")]
)
def test_settings_out_of_range(inside: Path, slide: Path, option: str, value: str) -> None:
    line = refused(inside, slide, *QUICK, option, value)
    assert option[2:].replace("-", "_") in line


# ---------------------------------------------------------------------- projects
def test_a_folder_that_is_no_project(inside: Path) -> None:
    (inside / "folder").mkdir()
    assert "no QuPath project in folder" in refused(inside, "folder", *QUICK)
    assert "no QuPath project in none.qpproj" in refused(inside, "none.qpproj", *QUICK)


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe\0", b"[1, 2]", b'{"images": 3}', b'{"images": [{}]}'])
def test_a_project_file_that_is_none(inside: Path, content: bytes) -> None:
    (inside / "p").mkdir()
    (inside / "p" / "project.qpproj").write_bytes(content)
    assert "project.qpproj" in refused(inside, "p", *QUICK)


def test_an_unknown_image(inside: Path, slide: Path) -> None:
    create_project(inside / "p").add_image(slide)
    line = refused(inside, "p", *QUICK, "--image", "other.svs")
    assert "no image 'other.svs'" in line
    assert "'good.tif'" in line


def test_an_output_folder_with_something_in_it(inside: Path, slide: Path) -> None:
    create_project(inside / "p").add_image(slide)
    line = refused(inside, slide, *QUICK, "--output", "p")
    assert "holds a project already" in line
    assert f"qupath-ext ki67 {inside / 'p'}" in line  # how to go on with it
    (inside / "file").write_text("x", "utf-8")
    assert "is not empty" in refused(inside, slide, *QUICK, "--output", "file")
    (inside / "good-ki67").mkdir()
    (inside / "good-ki67" / "notes.txt").write_text("x", "utf-8")
    assert "good-ki67 is not empty" in refused(inside, slide, *QUICK)


def test_a_damaged_run_record(inside: Path, slide: Path) -> None:
    create_project(inside / "p").add_image(slide)
    folder = inside / "p" / "qupath_ext" / "runs" / "20260101-000000-ki67-abcdef"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{", "utf-8")
    assert "run.json is damaged" in refused(inside, "p", *QUICK)


# ---------------------------------------------------------------------- options that contradict each other
def test_cells_and_classical(inside: Path, slide: Path) -> None:
    assert "either --cells BUNDLE or --classical" in refused_usage(inside, slide)
    assert "either --cells BUNDLE or --classical" in refused_usage(inside, slide, "--classical", "--cells", "b")


def test_options_of_the_other_kind_of_target(inside: Path, slide: Path) -> None:
    create_project(inside / "p")
    assert "--output is for a slide" in refused_usage(inside, "p", "--classical", "--output", "q")
    assert "--image is for a project" in refused_usage(inside, slide, "--classical", "--image", "1")


# ---------------------------------------------------------------------- models
def test_no_bundle(inside: Path, slide: Path) -> None:
    assert "is no model bundle" in refused(inside, slide, "--cells", "none")
    (inside / "model.pt").write_bytes(b"weights")
    assert "is no model bundle" in refused(inside, slide, "--cells", "model.pt")


def test_a_bundle_of_the_wrong_kind(inside: Path, slide: Path, tumour_bundle: Path) -> None:
    line = refused(inside, slide, "--cells", tumour_bundle)
    assert "a model for tissue_segmentation; expected one for cell_detection" in line


@pytest.mark.parametrize("damage", ["weights", "truncated", "missing", "golden", "metadata"])
def test_a_damaged_bundle(inside: Path, slide: Path, tumour_bundle: Path, damage: str) -> None:
    bundle = inside / "tumour"
    shutil.copytree(tumour_bundle, bundle)
    weights = bundle / "models" / "model.pt"
    data = weights.read_bytes()
    if damage == "weights":
        weights.write_bytes(data[:1000] + bytes([data[1000] ^ 1]) + data[1001:])
    elif damage == "truncated":
        weights.write_bytes(data[: len(data) // 2])
    elif damage == "missing":
        weights.unlink()
    elif damage == "golden":
        (bundle / "models" / "golden.npz").write_bytes(b"PK")
    else:
        (bundle / "configs" / "metadata.json").write_text('{"pyhisto": {}}', "utf-8")
    assert "tumour" in refused(inside, slide, "--tumour", bundle, "--classical")


def test_a_device_that_is_not_there(
    inside: Path, slide: Path, tumour_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    line = refused(inside, slide, "--tumour", tumour_bundle, "--classical", "--device", "cuda")
    assert "device 'cuda' is not available; expected one of cpu" in line
    line = refused(inside, slide, "--classical", "--device", "toaster")
    assert "device 'toaster' is not available; expected one of cpu" in line


# ---------------------------------------------------------------------- a full disk
class FullDisk:
    """Lets `left` flushes and renames through, then every one fails as on a full disk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, left: int) -> None:
        self.left = left
        self.failed = 0
        for name in ("fsync", "replace"):
            monkeypatch.setattr(os, name, self._limited(getattr(os, name)))
        write_text, write_bytes = Path.write_text, Path.write_bytes
        monkeypatch.setattr(Path, "write_text", self._limited(write_text, leave_part=True))
        monkeypatch.setattr(Path, "write_bytes", self._limited(write_bytes, leave_part=True))

    def _limited(self, function: Any, *, leave_part: bool = False) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            if self.left <= 0:
                self.failed += 1
                if leave_part:
                    args[0].touch()  # a full disk still makes empty files
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(args[0]))
            self.left -= 1
            return function(*args, **options)

        return call


@pytest.mark.parametrize("left", [0, 1, 4, 8, 12, 16, 20, 40])
def test_a_full_disk_leaves_no_half_written_project(
    inside: Path, slide: Path, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    with monkeypatch.context() as patched:
        disk = FullDisk(patched, left)
        result = run(slide, *QUICK, "--output", "new/project")
    if disk.failed == 0:
        assert left == 40  # there was room for everything
        assert result.exit_code == 0
        return
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if not line.startswith("project backend: ")]
    assert line.startswith("qupath-ext: ")
    assert "space" in line or "disk is full" in line
    assert list(inside.iterdir()) == []
    assert run(slide, *QUICK, "--output", "new/project", "--dry-run").exit_code == 0


def test_a_disk_that_is_full_when_the_report_is_written(
    inside: Path, slide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("qupath_ext.workflows.reporting.write_report", full)
    assert "the disk is full" in refused(inside, slide, *QUICK)


@pytest.mark.parametrize("left", [0, 3, 6, 10])
def test_a_full_disk_leaves_an_old_project_as_it_was_or_finished(
    inside: Path, slide: Path, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    """What is done stays done; the same command goes on, and no object is there twice."""
    project = create_project(inside / "p")
    project.add_image(slide)
    data = project.path.parent / "data" / "1" / "data.qpdata"
    before = data.read_bytes()
    with monkeypatch.context() as patched:
        disk = FullDisk(patched, left)
        result = run("p", *QUICK)
    assert disk.failed > 0
    assert result.exit_code in {1, 2}
    assert "Traceback" not in result.output
    assert not [path for path in inside.rglob("*") if "tmp" in path.name]
    n = len(project.entries[0].read_objects())
    assert (data.read_bytes() == before) == (n == 0)
    again = run("p", *QUICK)
    assert again.exit_code == 0, again.output
    image = json.loads(again.stdout)["images"][0]
    assert len(project.entries[0].read_objects()) == image["cells"] + image["annotations"]


def test_a_full_disk_when_a_bundle_is_saved(
    tumour_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyhisto.bundle.files import load_bundle

    bundle = load_bundle(tumour_bundle)
    model = build_model("unet-resnet34", out_channels=2, decoder_channels=bundle.spec.decoder_channels)
    for left in (0, 1, 2):
        with monkeypatch.context() as patched:
            FullDisk(patched, left)
            with pytest.raises(OSError, match="No space"):
                save_bundle(tmp_path / "b", vivid(model), bundle.spec, golden_tile=TILE, description="d")
        assert [path.name for path in tmp_path.iterdir()] == ["here"]
