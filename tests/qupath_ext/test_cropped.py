"""Analyses of images that show a part of their slide: nothing is written outside of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from frame_cases import affine, cropped, entry_of, rotated

from pyhisto.nuclei import CellDetectionSettings
from pyhisto.objects import concat_objects, make_objects
from pyhisto.synth import SynthSettings, make_slide
from qupath_ext.frames import image_area, open_slide
from qupath_ext.native.builderframe import builder_size
from qupath_ext.native.builders import make_builder
from qupath_ext.project import open_project
from qupath_ext.workflows.ki67 import ImageResult, Ki67Settings, annotate_project
from qupath_ext.workflows.regions import cut_to

X, Y, WIDTH, HEIGHT = 130, 90, 331, 280
DETECTION = CellDetectionSettings(threshold=0.15)


@pytest.fixture(scope="module")
def leaf(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("slide") / "slide.tif"
    make_slide(path, SynthSettings(width=640, height=640, seed=3))
    return make_builder(path, None)[0]


def analysed(folder: Path, builder: dict[str, Any], region: str, drawn: Any = None) -> tuple[ImageResult, Any]:
    """Return the result of an image, and what is in the project then, in QuPath's frame."""
    entry = entry_of(folder, builder)
    if drawn is not None:
        entry.write_objects(add=drawn)
    project = open_project(folder, backend="native")
    settings = Ki67Settings(automatic=False, stains="default", region=region, detection=DETECTION)  # type: ignore[arg-type]
    (result,) = annotate_project(project, project.entries, settings)
    assert isinstance(result, ImageResult), result
    return result, open_project(folder, backend="native").entries[0].read_objects()


@pytest.mark.parametrize("region", ["tissue", "image"])
def test_nothing_outside_of_a_crop(tmp_path: Path, leaf: dict[str, Any], region: str) -> None:
    result, objects = analysed(tmp_path, rotated(90, cropped(X, Y, WIDTH, HEIGHT, leaf)), region)
    cells = objects[objects["object_type"] == "cell"]
    assert len(cells) > 50
    x0, y0, x1, y1 = shapely.union_all(objects.geometry.to_numpy()).bounds
    assert 0 <= x0 < 5
    assert 0 <= y0 < 5
    assert HEIGHT - 5 < x1 <= HEIGHT  # turned
    assert WIDTH - 5 < y1 <= WIDTH
    nuclei = cells["nucleus"].to_numpy()
    assert shapely.covers(shapely.box(0, 0, HEIGHT, WIDTH), nuclei).all()
    assert result.region_area_mm2 <= WIDTH * HEIGHT * result.settings["mpp"][0] ** 2 / 1e6 + 1e-12


def test_cells_of_a_crop_are_those_of_the_slide(tmp_path: Path, leaf: dict[str, Any]) -> None:
    """The same annotation, drawn in the whole image and in the crop, has the same cells."""
    area = shapely.box(X + 10, Y + 15, X + 310, Y + 260)
    folders = [tmp_path / "whole", tmp_path / "crop"]
    found = []
    for folder, builder, (dx, dy) in zip(
        folders, [leaf, cropped(X, Y, WIDTH, HEIGHT, leaf)], [(0, 0), (X, Y)], strict=True
    ):
        folder.mkdir()
        drawn = make_objects(
            [shapely.affinity.translate(area, -dx, -dy)], object_type="annotation", classification="Tumor"
        )
        _, objects = analysed(folder, builder, "tumour", drawn)
        cells = objects[objects["object_type"] == "cell"]
        centres = shapely.get_coordinates(shapely.centroid(cells["nucleus"].to_numpy()))
        found.append(np.sort(centres + np.array([dx, dy]), axis=0))
    assert len(found[0]) > 50
    np.testing.assert_allclose(found[0], found[1], atol=0.01)


def test_an_annotation_over_the_border_is_looked_inside_as_far_as_it_shows(
    tmp_path: Path, leaf: dict[str, Any]
) -> None:
    drawn = make_objects([shapely.box(-100, -100, 150, 150)], object_type="annotation", classification="Tumor")
    result, objects = analysed(tmp_path, cropped(X, Y, WIDTH, HEIGHT, leaf), "tumour", drawn)
    cells = objects[objects["object_type"] == "cell"]
    assert len(cells) > 10
    assert shapely.bounds(cells.geometry.to_numpy()).min() >= 0
    assert result.region_area_mm2 == pytest.approx(150 * 150 * result.settings["mpp"][0] ** 2 / 1e6)


def test_a_turned_image_ends_at_its_slanted_border(tmp_path: Path, leaf: dict[str, Any]) -> None:
    c, s = np.cos(0.3), np.sin(0.3)
    builder = affine((c, -s, 20.0, s, c, 0.0), cropped(X, Y, WIDTH, HEIGHT, leaf))
    result, _ = analysed(tmp_path, builder, "image")
    entry = entry_of(tmp_path, builder)
    with open_slide(entry) as slide:
        area = image_area(entry, slide)
    assert builder_size(builder) == (np.ceil(c * WIDTH + s * HEIGHT), np.ceil(s * WIDTH + c * HEIGHT))
    assert area.area < 0.95 * WIDTH * HEIGHT  # a corner has no place in QuPath's rectangle
    assert len(result.objects) > 50
    assert shapely.covers(area.buffer(1e-6), result.objects.geometry.to_numpy()).all()


def test_objects_cut_to_an_area() -> None:
    area = shapely.box(0, 0, 10, 10)
    cells = make_objects(
        [shapely.box(1, 1, 3, 3), shapely.box(8, 4, 12, 8), shapely.box(8, 4, 14, 8), shapely.box(20, 0, 22, 2)],
        object_type="cell",
        nucleus=[None, shapely.box(9, 5, 11, 7), shapely.box(11, 5, 13, 7), shapely.box(20, 0, 21, 1)],
        name=list("abcd"),
    )
    comb = shapely.union_all([shapely.box(2, -4, 3, 2), shapely.box(5, -4, 6, 2), shapely.box(2, -4, 6, -3)])
    tissue = make_objects([comb, shapely.box(3, 10, 5, 12)], object_type="annotation", name=["e", "f"])
    out = cut_to(concat_objects([cells, tissue]), area)
    assert list(out["name"]) == ["a", "b", "e"]  # a cell goes with its nucleus, and what only touches goes
    assert out.geometry.iloc[0].equals(shapely.box(1, 1, 3, 3))
    assert out.geometry.iloc[1].equals(shapely.box(8, 4, 10, 8))
    assert out["nucleus"].iloc[1].equals(shapely.box(9, 5, 10, 7))
    assert out["nucleus"].iloc[0] is None
    assert out.geometry.iloc[2].equals(shapely.MultiPolygon([shapely.box(2, 0, 3, 2), shapely.box(5, 0, 6, 2)]))
    inside = cells.iloc[:1]
    assert cut_to(inside, area) is inside
