"""Slide pixels and the frame that QuPath shows; QuPath's stains and pyhisto's."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely

from pyhisto.objects import make_objects
from pyhisto.stain import H_DAB as PYHISTO_H_DAB
from qupath_ext.errors import FormatError
from qupath_ext.frames import is_default_stains, open_slide, to_entry_frame, to_slide_frame, to_stain_vectors, to_stains
from qupath_ext.project import H_DAB, H_E, ImageEntry, create_project, open_project

WIDTH, HEIGHT = 128, 96


def entry_with(tmp_path: Path, slide: Path, wrap: Any) -> ImageEntry:
    """Return the image of a project whose server builder was changed, as QuPath would have written it."""
    project = create_project(tmp_path / "project")
    project.add_image(slide)
    content = json.loads(project.path.read_text("utf-8"))
    content["images"][0]["serverBuilder"] = wrap(content["images"][0]["serverBuilder"])
    project.path.write_text(json.dumps(content), "utf-8")
    return open_project(project.path).entries[0]


def rotated(by: str) -> Any:
    return lambda inner: {"builderType": "rotated", "builder": inner, "rotation": by}


def cropped(x: int, y: int, width: int, height: int) -> Any:
    region = {"x": x, "y": y, "width": width, "height": height, "z": 0, "t": 0}
    return lambda inner: {"builderType": "cropped", "builder": inner, "region": region}


def cell() -> Any:
    return make_objects(
        [shapely.box(10, 20, 30, 50)], object_type="cell", nucleus=[shapely.box(12, 24, 20, 40)], name="c"
    )


FRAMES = [
    # clockwise by 90°: (x, y) -> (H - y, x)
    pytest.param(rotated("ROTATE_90"), (46, 10, 76, 30), id="90"),
    pytest.param(rotated("ROTATE_180"), (98, 46, 118, 76), id="180"),
    # (x, y) -> (y, W - x)
    pytest.param(rotated("ROTATE_270"), (20, 98, 50, 118), id="270"),
    pytest.param(cropped(8, 16, 64, 64), (2, 4, 22, 34), id="cropped"),
    # first cropped, then turned inside its 64 x 60 px: (x, y) -> (60 - (y - 16), x - 8)
    pytest.param(
        lambda inner: rotated("ROTATE_90")(cropped(8, 16, 64, 60)(inner)), (26, 2, 56, 22), id="cropped and turned"
    ),
]


@pytest.mark.parametrize(("wrap", "bounds"), FRAMES)
def test_there_and_back(tmp_path: Path, gradient_slide: Path, wrap: Any, bounds: tuple[float, ...]) -> None:
    entry = entry_with(tmp_path, gradient_slide, wrap)
    shown = to_entry_frame(cell(), entry)
    assert shown.geometry.iloc[0].bounds == pytest.approx(bounds)
    assert shown.geometry.iloc[0].covers(shown["nucleus"].iloc[0])
    assert shown["nucleus"].iloc[0].area == pytest.approx(8 * 16)
    back = to_slide_frame(shown, entry)
    assert back.geometry.iloc[0].equals_exact(cell().geometry.iloc[0], 1e-9, normalize=True)
    assert back["nucleus"].iloc[0].equals_exact(cell()["nucleus"].iloc[0], 1e-9, normalize=True)
    assert back["name"].iloc[0] == "c"


def test_missing_geometry_stays_missing(tmp_path: Path, gradient_slide: Path) -> None:
    entry = entry_with(tmp_path, gradient_slide, rotated("ROTATE_90"))
    table = cell()
    table["nucleus"] = np.array([None], dtype=object)
    assert to_entry_frame(table, entry)["nucleus"].iloc[0] is None


def test_the_usual_frame_changes_nothing(tmp_path: Path, gradient_slide: Path) -> None:
    entry = create_project(tmp_path / "project").add_image(gradient_slide)
    table = cell()
    assert to_entry_frame(table, entry) is table
    assert to_slide_frame(table, entry).geometry.iloc[0].bounds == (10, 20, 30, 50)


def test_an_unknown_frame_is_refused(tmp_path: Path, gradient_slide: Path) -> None:
    entry = entry_with(tmp_path, gradient_slide, lambda inner: {"builderType": "affine", "builder": inner})
    with pytest.raises(FormatError, match="affine"):
        to_entry_frame(cell(), entry)


def test_pixel_size_of_option_project_and_file(tmp_path: Path, gradient_slide: Path) -> None:
    project = create_project(tmp_path / "project")
    plain, told = project.add_image(gradient_slide), project.add_image(gradient_slide, name="b", mpp=(0.3, 0.4))
    with open_slide(plain) as slide:
        assert slide.mpp == (0.5, 0.5)
    with open_slide(told) as slide:
        assert slide.mpp == (0.3, 0.4)
    with open_slide(told, 0.7) as slide:
        assert slide.mpp == (0.7, 0.7)


@pytest.mark.parametrize("turn", ["ROTATE_90", "ROTATE_180"])
def test_pixel_size_of_a_turned_image_is_that_of_the_slide(tmp_path: Path, stretched_slide: Path, turn: str) -> None:
    entry = entry_with(tmp_path, stretched_slide, rotated(turn))
    with open_slide(entry) as slide:
        assert slide.mpp == pytest.approx((0.5, 0.25))


def test_stains_there_and_back() -> None:
    vectors = to_stain_vectors(H_DAB)
    again = to_stains(vectors, H_DAB.name)
    assert again.background == H_DAB.background
    np.testing.assert_allclose([again.stain1, again.stain2], [H_DAB.stain1, H_DAB.stain2], atol=1e-5)
    assert vectors.names[:2] == ("Hematoxylin", "DAB")
    np.testing.assert_allclose(vectors.vectors[:2], PYHISTO_H_DAB.vectors[:2], atol=1e-3)


def test_default_stains_are_told_from_adjusted_ones() -> None:
    assert is_default_stains(None)
    assert is_default_stains(H_DAB)
    assert is_default_stains(H_E)
    red, green, blue = H_DAB.stain1
    assert not is_default_stains(dataclasses.replace(H_DAB, stain1=(red + 0.05, green, blue)))
    red, green, blue = H_DAB.background
    assert not is_default_stains(dataclasses.replace(H_DAB, background=(red - 20, green, blue)))


def test_the_four_turns_are_different(tmp_path: Path, gradient_slide: Path) -> None:
    found = []
    for number, by in enumerate(("ROTATE_NONE", "ROTATE_90", "ROTATE_180", "ROTATE_270")):
        folder = tmp_path / str(number)
        folder.mkdir()
        found.append(to_entry_frame(cell(), entry_with(folder, gradient_slide, rotated(by))).geometry.iloc[0])
    assert not any(a.equals(b) for a, b in itertools.combinations(found, 2))
