"""HoVer-Nets: labels and types as MONAI's own post-processing gives them, and nuclei over a slide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.ndimage as ndi
import shapely
from foreign_folders import DISKS, painted, write_hover, write_wsinfer
from monai.apps.pathology.transforms.post.array import (
    HoVerNetInstanceMapPostProcessing,
    HoVerNetNuclearTypePostProcessing,
)

from pyhisto.bundle.anymodel import load_model
from pyhisto.bundle.foreign.hover import hover_instances, predict_branches
from pyhisto.bundle.foreign.models import HoverModel
from pyhisto.errors import BundleError, ConfigError
from pyhisto.nuclei.hover import predict_hover_cells
from pyhisto.slide import Slide
from pyhisto.stain import H_DAB

NUMBERS = {"min_object_size": 10, "sobel_kernel_size": 5, "marker_threshold": 0.4, "marker_radius": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> HoverModel:
    folder = write_hover(tmp_path_factory.mktemp("models") / "nuclei")
    found = load_model(folder, mpp=0.5, class_names=("Tumor", "Immune cells"))
    assert isinstance(found, HoverModel)
    return found


@pytest.mark.filterwarnings("ignore:Parameter `min_size` is deprecated:FutureWarning")
def test_labels_and_types_are_those_of_monais_post_processing(model: HoverModel) -> None:
    branches = predict_branches(painted(), model)
    labels, types = hover_instances(branches, NUMBERS)
    whole = HoVerNetInstanceMapPostProcessing(sobel_kernel_size=5, marker_threshold=0.4, marker_radius=2)
    info, instances = whole(branches["nucleus_prediction"], branches["horizontal_vertical"])
    info, _ = HoVerNetNuclearTypePostProcessing()(branches["type_prediction"], info, instances)
    instances = np.asarray(instances)[0]
    assert len(info) == len(DISKS) == len(types) == labels.max()
    for number, found in info.items():
        theirs = ndi.binary_fill_holes(instances == number)
        mine = int(np.bincount(labels[theirs]).argmax())
        np.testing.assert_array_equal(labels == mine, theirs)
        counts = types[mine - 1]
        assert counts[1:].argmax() + 1 == found["type"]
        assert counts[found["type"]] / counts.sum() == pytest.approx(found["type_prob"], abs=1e-4)


def test_each_painted_nucleus_is_one_label_of_its_type(model: HoverModel) -> None:
    labels, types = hover_instances(predict_branches(painted(), model), NUMBERS)
    numbers = [labels[y, x] for x, y, _, _ in DISKS]
    assert sorted(numbers) == list(range(1, len(DISKS) + 1))
    assert [types[n - 1, 1:].argmax() + 1 for n in numbers] == [kind for _, _, _, kind in DISKS]


def test_branches_of_a_window_do_not_depend_on_its_size(model: HoverModel) -> None:
    rgb = painted()
    whole, part = predict_branches(rgb, model), predict_branches(rgb[20:150, 37:160], model, batch_size=3)
    for name, values in whole.items():
        assert values.shape[1:] == rgb.shape[:2]
        np.testing.assert_array_equal(values[:, 20:150, 37:160], part[name])


def test_tiles_far_from_where_nuclei_are_wanted_are_left_out(
    model: HoverModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = np.zeros((180, 200), dtype=bool)
    wanted[100, 100] = True
    seen: list[int] = []
    predict = model.predict
    monkeypatch.setattr(model, "predict", lambda tiles: seen.append(len(tiles)) or predict(tiles))
    predict_branches(painted(), model, wanted=wanted)
    # Tiles of 40 px that lie within 12 px of the pixel: rows and columns of 80 to 120 only
    assert sum(seen) == 1


def test_nothing_found_is_no_error(model: HoverModel) -> None:
    labels, types = hover_instances(predict_branches(np.full((90, 70, 3), 255, dtype=np.uint8), model), NUMBERS)
    assert labels.max() == 0
    assert types.shape == (0, 3)


def test_cells_of_a_slide(tmp_path: Path, write_tiff: Any, model: HoverModel) -> None:
    path = write_tiff(tmp_path / "slide.tif", [painted()], mpp=(0.5, 0.5))
    with Slide(path) as slide:
        cells = predict_hover_cells(slide, model, stains=H_DAB, cell_expansion_um=2.0)
        some = predict_hover_cells(slide, model, stains=H_DAB, region=shapely.box(0, 0, 90, 180), cell_expansion_um=0)
    assert len(cells) == len(DISKS)
    for x, y, r, kind in DISKS:
        (row,) = np.flatnonzero(shapely.contains_xy(cells["nucleus"].to_numpy(), x, y))
        cell = cells.iloc[row]
        assert cell["classification"] == ("Tumor", "Immune cells")[kind - 1]
        assert cell["class_probability"] == pytest.approx(1.0, abs=0.2)
        assert cell["nucleus"].area == pytest.approx(np.pi * r**2, rel=0.15)
        assert cell["Nucleus: Area"] == pytest.approx(np.pi * r**2 / 4, rel=0.15)
        assert cell["geometry"].area > cell["nucleus"].area
    assert len(some) == 3
    assert set(some["object_type"]) == {"detection"}


def test_other_windows_give_the_same_nuclei(
    tmp_path: Path, write_tiff: Any, model: HoverModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rgb = np.tile(painted(), (4, 4, 1))
    path = write_tiff(tmp_path / "slide.tif", [rgb], mpp=(0.5, 0.5))
    found = []
    for size in (2048, 256):
        monkeypatch.setattr("pyhisto.nuclei.hover.WINDOW_PX", size)
        with Slide(path) as slide:
            found.append(predict_hover_cells(slide, model, stains=H_DAB))
    assert len(found[0]) == len(found[1]) == 16 * len(DISKS)
    centres = [shapely.get_coordinates(shapely.centroid(cells["nucleus"].to_numpy())) for cells in found]
    order = [np.lexsort(np.round(c / 3).T) for c in centres]
    distance = np.abs(centres[0][order[0]] - centres[1][order[1]]).max()
    assert distance <= 1.0


def test_the_types_of_the_zoos_model_are_not_in_its_metadata(tmp_path: Path) -> None:
    folder = write_hover(tmp_path / "nuclei")
    found = load_model(folder, mpp=0.25)
    assert [c.classification for c in found.spec.classes] == [None, "Type 1", "Type 2"]
    assert any("--model-classes" in note for note in found.notes)
    assert found.spec.postprocessing["marker_threshold"] == 0.4
    assert found.spec.postprocessing["sobel_kernel_size"] == 5
    with pytest.raises(BundleError, match="3 names for 2 types"):
        load_model(folder, mpp=0.25, class_names=("a", "b", "c"))


def test_another_kind_is_refused(tmp_path: Path, gradient_slide: Path) -> None:
    other: Any = load_model(write_wsinfer(tmp_path / "tiles"))
    with Slide(gradient_slide) as slide, pytest.raises(ConfigError, match="tile_classification"):
        predict_hover_cells(slide, other, stains=H_DAB)


@pytest.mark.slow
def test_monais_hovernet_by_its_weights(tmp_path: Path) -> None:
    from monai.networks.nets import HoVerNet

    folder = write_hover(tmp_path / "nuclei", network=HoVerNet(mode="fast", out_classes=5), size=256)
    found = load_model(folder, mpp=0.25)
    assert isinstance(found, HoverModel)
    assert (found.output_size, found.spec.overlap, len(found.spec.classes)) == (164, 46, 5)
    assert found.spec.architecture == "MONAI HoVerNet"
