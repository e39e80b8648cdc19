"""Fitting a cell model to labelled cells: what is fitted, what is refused, and that the new bundle says so."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import tifffile
from click.testing import CliRunner, Result
from scipy import ndimage

from pyhisto.bundle.spec import ModelClass, ModelSpec
from pyhisto.objects import make_objects
from pyhisto.stain import H_DAB, StainReference, optical_density_sum
from qupath_ext.cli import main
from qupath_ext.project import Project, create_project

NUMBERS = {"threshold": 0.35, "sigma_um": 1.0, "min_distance_um": 3.0, "reach_um": 7.0, "core_um": 1.5}
NAMES = (None, "Tumor: Positive", None, "Tumor: Negative", None)


def scene() -> tuple[Any, Any, Any]:
    """Return RGB (400, 400, 3) at 0.5 µm/px with 49 discs of 15 px on a grid, their centres, and which are brown.

    Brown ones have a DAB OD of 0.5, blue ones of 0.15, and every cell the network calls negative.
    """
    y, x = np.mgrid[0:400, 0:400]
    centres = np.array([(40 + 50 * i, 40 + 50 * j) for i in range(7) for j in range(7)], dtype=float)
    brown = np.arange(49) % 3 == 0
    amounts = np.full((400, 400, 2), 0.02)
    for (cx, cy), is_brown in zip(centres, brown, strict=True):
        amounts[np.hypot(x + 0.5 - cx, y + 0.5 - cy) < 7.5] = (0.2, 0.5) if is_brown else (0.5, 0.15)
    amounts = ndimage.gaussian_filter(amounts, (0.7, 0.7, 0))
    return np.rint(255 * 10.0 ** -(amounts @ H_DAB.matrix[:2])).astype(np.uint8), centres, brown


class Blind:
    """Takes the place of a bundle that finds every dark spot and calls it negative."""

    path = Path("models/cells")
    sha256 = "c" * 64
    device = "cpu"
    stride, stream_tile, tiles_at_once = 1, (64, 8), 8
    spec = ModelSpec(
        "cell_detection",
        "fake",
        tuple(ModelClass(f"class {number}", name) for number, name in enumerate(NAMES)),
        tile_size=64,
        overlap=8,
        postprocessing=NUMBERS,
    )

    def predict(self, tiles: Any) -> Any:
        out = np.zeros((len(tiles), 5, *tiles.shape[1:3]), dtype=np.float32)
        for tile, probability in zip(tiles, out, strict=True):
            probability[3] = np.clip(optical_density_sum(tile) - 0.3, 0, 0.9)
            probability[0] = 1 - probability[3]
        return out


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    tifffile.imwrite(tmp_path / "slide.tif", scene()[0], photometric="rgb")
    monkeypatch.setattr("pyhisto.bundle.files.load_bundle", lambda path, **options: Blind())
    project = create_project(tmp_path / "project")
    project.add_image(tmp_path / "slide.tif", mpp=0.5)
    return project


def label(project: Project, *, some: int = 49, rectangle: bool = True) -> None:
    """Mark cells with point annotations, as QuPath keeps them: all points of a class in one."""
    _, centres, brown = scene()
    groups = [shapely.MultiPoint(centres[:some][brown[:some] == kind]) for kind in (True, False)]
    names = ["Tumor: Positive", "Tumor: Negative"]
    if rectangle:
        groups.append(shapely.box(0, 0, 400, 400))
        names.append("Training")
    project.entries[0].write_objects(add=make_objects(groups, object_type="annotation", classification=names))


def run(project: Project, tmp_path: Path, saved: list[Any], monkeypatch: pytest.MonkeyPatch) -> Result:
    monkeypatch.setattr("pyhisto.bundle.files.resave_bundle", lambda *args: saved.append(args))
    folder = str(project.path.parent)
    command = ["calibrate", "models/cells", folder, "--output", str(tmp_path / "new"), "--stains", "default", "--json"]
    return CliRunner().invoke(main, command)


def test_what_was_fitted_to_recoloured_slides_is_used_on_recoloured_slides(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training slides four times as dark: the network sees the slide darkened, and so it will when it annotates."""
    label(project)
    dark = StainReference(H_DAB, (2.0, 2.0))
    monkeypatch.setattr(Blind, "spec", dataclasses.replace(Blind.spec, stains=dark))
    plain = Blind.predict
    shown: list[int] = []

    def predict(bundle: Blind, tiles: Any) -> Any:
        shown.append(int(tiles.min()))
        return plain(bundle, tiles)

    monkeypatch.setattr(Blind, "predict", predict)
    saved: list[Any] = []
    assert run(project, tmp_path, saved, monkeypatch).exit_code == 0
    assert saved[0][2].stains == dark
    assert min(shown) < 10  # the darkest pixel of the scene is 10 ** -0.55 of white


@pytest.mark.parametrize("rectangle", [True, False])
def test_the_cut_is_fitted_to_the_labels(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rectangle: bool
) -> None:
    label(project, rectangle=rectangle)
    saved: list[Any] = []
    result = run(project, tmp_path, saved, monkeypatch)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["cells"] == {"Tumor: Positive": 17, "Tumor: Negative": 32}
    # all 49 are found and called negative: F1 of negative 64 / 81, of positive 0
    assert found["f1_before"] == pytest.approx(64 / 81 / 2, abs=1e-3)
    assert found["f1_after"] > 0.97
    assert 0.15 < found["chosen"]["dab_threshold"] < 0.5
    ((bundle, folder, spec, about),) = saved
    assert isinstance(bundle, Blind)
    assert folder == tmp_path / "new"
    assert spec.postprocessing["dab_threshold"] == found["chosen"]["dab_threshold"]
    assert spec.mpp == pytest.approx(0.5)
    assert "49 cells" in about["calibrated on"]
    assert bool(found["notes"]) != rectangle  # without a rectangle the threshold stays, and that is said


@pytest.mark.parametrize(("some", "message"), [(15, "15 labelled cells"), (0, "0 labelled cells")])
def test_too_few_cells_are_refused(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, some: int, message: str
) -> None:
    if some:
        label(project, some=some)
    saved: list[Any] = []
    result = run(project, tmp_path, saved, monkeypatch)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "expected 20 or more, 5 of each class" in result.stderr
    assert saved == []


def test_the_output_must_be_new(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "file").touch()
    result = run(project, tmp_path, [], monkeypatch)
    assert result.exit_code == 2
    assert "exists already" in result.stderr
