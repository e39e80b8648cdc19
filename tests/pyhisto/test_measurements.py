import math

import numpy as np
import pytest

from pyhisto.contours import Contours, trace_labels
from pyhisto.errors import ConfigError
from pyhisto.measurements import (
    Colours,
    cell_measurements,
    expand_cells,
    measure_cells,
    measure_intensities,
    measure_shapes,
)


def rectangle(width: int, height: int) -> Contours:
    labels = np.zeros((height + 8, width + 8), dtype=int)
    labels[4 : 4 + height, 4 : 4 + width] = 1
    return trace_labels(labels)


def test_shape_of_a_rectangle_by_hand() -> None:
    found = {name: float(values[0]) for name, values in measure_shapes(rectangle(20, 10), 0.5).items()}
    assert found["Area"] == 50.0
    assert found["Perimeter"] == 30.0
    assert found["Circularity"] == pytest.approx(4 * math.pi * 50 / 900)
    assert found["Max caliper"] == pytest.approx(0.5 * math.hypot(20, 10))
    assert found["Min caliper"] == pytest.approx(5.0)
    # variances of a box are side² / 12: eccentricity = sqrt(1 - (10/20)²)
    assert found["Eccentricity"] == pytest.approx(math.sqrt(0.75))


def test_shape_of_a_tilted_square() -> None:
    diamond = Contours(np.array([[30.0, 10.0], [50.0, 30.0], [30.0, 50.0], [10.0, 30.0]]), np.array([0, 4]))
    found = {name: float(values[0]) for name, values in measure_shapes(diamond, 1.0).items()}
    assert found["Area"] == pytest.approx(800, abs=20)
    assert found["Max caliper"] == pytest.approx(40.0)
    assert found["Min caliper"] == pytest.approx(20 * math.sqrt(2))
    assert found["Eccentricity"] < 0.1


def test_shape_of_nothing_is_nan() -> None:
    empty = Contours(np.empty((0, 2)), np.array([0, 0]))
    found = measure_shapes(empty, 1.0)
    assert all(np.isnan(found[name][0]) for name in ("Area", "Circularity", "Max caliper", "Eccentricity"))


def test_intensities_by_hand() -> None:
    labels = np.array([[1, 1, 0], [1, 3, 3]])
    image = np.array([[1.0, 2.0, 99.0], [6.0, 5.0, 5.0]])
    found = measure_intensities(labels, {"DAB OD": image}, 4, prefix="Nucleus: ")
    assert list(found) == [f"Nucleus: DAB OD {s}" for s in ("mean", "sum", "std dev", "max", "min", "range")]
    assert found["Nucleus: DAB OD mean"][[0, 2]].tolist() == [3.0, 5.0]
    assert found["Nucleus: DAB OD sum"][0] == 9.0
    assert found["Nucleus: DAB OD std dev"][0] == pytest.approx(math.sqrt(7.0))  # ((-2)² + (-1)² + 3²) / 2
    assert found["Nucleus: DAB OD range"].tolist()[:3:2] == [5.0, 0.0]
    assert np.isnan(found["Nucleus: DAB OD mean"][[1, 3]]).all()


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_intensities_of_any_number_of_channels_are_those_of_numpy(channels: int) -> None:
    rng = np.random.default_rng(channels)
    labels = rng.integers(0, 6, (9, 14))
    images = {f"stain {i}": rng.normal(size=labels.shape).astype(np.float32) for i in range(channels)}
    found = measure_intensities(labels, images, 5)
    of_numpy = {"mean": np.mean, "sum": np.sum, "max": np.max, "min": np.min, "range": np.ptp}
    for name, image in images.items():
        pixels = [image[labels == i].astype(float) for i in range(1, 6)]
        for key, function in of_numpy.items():
            np.testing.assert_allclose(found[f"{name} {key}"], [function(p) for p in pixels], atol=1e-12)
        np.testing.assert_allclose(found[f"{name} std dev"], [np.std(p, ddof=1) for p in pixels])


def test_an_image_without_pixels_has_no_intensities() -> None:
    found = measure_intensities(np.zeros((3, 0), dtype=np.int32), {"DAB OD": np.zeros((3, 0))}, 2)
    assert np.isnan(found["DAB OD mean"]).all()


def test_names_are_those_of_qupaths_cells() -> None:
    labels = np.zeros((40, 40), dtype=int)
    labels[15:25, 15:25] = 1
    od = np.random.default_rng(0).random((40, 40)).astype(np.float32)
    table = measure_cells(
        labels, {"Hematoxylin OD": od, "Eosin OD": od}, pixel_size_um=0.5, cells=expand_cells(labels, 6)
    )
    assert len(table.columns) == 41
    assert list(table.columns[:3]) == ["Nucleus: Area", "Nucleus: Perimeter", "Nucleus: Circularity"]
    assert "Cytoplasm: Eosin OD std dev" in table
    assert "Cytoplasm: Eosin OD sum" not in table
    assert 0 < table["Nucleus/Cell area ratio"].iloc[0] < 1
    cell_pixels = expand_cells(labels, 6) > 0
    assert table["Cell: Eosin OD mean"].iloc[0] == pytest.approx(od[cell_pixels].mean(), rel=1e-5)
    ring = cell_pixels & (labels == 0)
    assert table["Cytoplasm: Eosin OD max"].iloc[0] == pytest.approx(od[ring].max(), rel=1e-6)


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ConfigError, match="DAB OD"):
        measure_cells(np.zeros((4, 4), dtype=int), {"DAB OD": np.zeros((5, 4))}, pixel_size_um=0.5)


def test_cells_grow_to_the_radius_and_no_further() -> None:
    labels = np.zeros((41, 41), dtype=int)
    labels[20, 20] = 7
    grown = expand_cells(labels, 6.0)
    y, x = np.nonzero(grown == 7)
    distance = np.hypot(y - 20, x - 20)
    assert distance.max() < 6.0
    assert len(y) == sum(math.hypot(i, j) < 6 for i in range(-6, 7) for j in range(-6, 7))


def test_neighbours_share_the_room_and_keep_their_nuclei() -> None:
    labels = np.zeros((30, 40), dtype=int)
    labels[10:20, 8:14] = 1
    labels[10:20, 20:26] = 2
    labels[20:26, 20:26] = 3  # touches 2
    grown = expand_cells(labels, 20.0)
    assert (grown[labels > 0] == labels[labels > 0]).all()
    assert grown[15, 15] == 1
    assert grown[15, 18] == 2
    # a line of background keeps grown cells apart
    left, right = grown[:, :-1], grown[:, 1:]
    touching = (left != right) & (left > 0) & (right > 0)
    assert not touching.any()


def test_without_room_cells_are_nuclei() -> None:
    labels = np.zeros((5, 5), dtype=int)
    labels[2, 2] = 1
    assert expand_cells(labels, 0).sum() == 1


@pytest.mark.parametrize("backwards", [False, True])
def test_calipers_of_shapes_that_do_and_do_not_run_around_their_middle(backwards: bool) -> None:
    # the middle of the points of the cup lies in its opening; the dented square sees all its sides from its middle
    cup = [(0, 0), (9, 0), (9, 9), (8, 9), (8, 1), (1, 1), (1, 9), (0, 9)]
    dented = [(0, 0), (4, 2), (8, 0), (8, 6), (4, 5), (0, 6)]
    rings = [ring[::-1] if backwards else ring for ring in (cup, dented)]
    offsets = np.cumsum([0, *map(len, rings)])
    shapes = measure_shapes(Contours(np.array(rings[0] + rings[1], dtype=float), offsets), 0.5)
    np.testing.assert_allclose(shapes["Max caliper"], [9 * math.sqrt(2) / 2, 5])
    np.testing.assert_allclose(shapes["Min caliper"], [4.5, 3])


def test_only_labels_with_an_outline_are_measured() -> None:
    labels = np.zeros((6, 9), dtype=np.int32)
    labels[1:3, 1:4], labels[1:5, 5:8] = 1, 2
    images = np.stack([np.where(labels == 1, 3.0, 7.0), np.where(labels == 1, 5.0, 7.0)])
    outlines = trace_labels(labels, 1)
    nuclei = cell_measurements(labels, ("a", "b"), images, pixel_size_um=1.0, nucleus_contours=outlines)
    assert [nuclei[name].tolist() for name in ("Nucleus: a sum", "Nucleus: b mean")] == [[18], [5]]
    grown = np.where(labels == 0, 1, labels)
    cells = cell_measurements(
        labels, ("a", "b"), images, pixel_size_um=1.0, nucleus_contours=outlines, cells=(grown, outlines)
    )
    # 6 pixels of the nucleus, and 54 - 6 - 12 around it
    assert cells["Nucleus: a mean"].tolist() == [3]
    assert cells["Cytoplasm: b mean"].tolist() == [7]
    np.testing.assert_allclose(cells["Cell: b mean"], (6 * 5 + 36 * 7) / 42)


@pytest.mark.parametrize("grown", [True, False])
def test_colours_are_measured_as_the_images_that_they_make(grown: bool) -> None:
    rng = np.random.default_rng(4)
    labels = np.zeros((6, 9), dtype=np.uint16)
    labels[1:3, 1:4], labels[1:5, 5:8] = 1, 2
    cells = np.where(labels == 0, 1, labels).astype(np.uint16)
    rgb, tables = rng.integers(0, 256, (6, 9, 3), dtype=np.uint8), rng.random((3, 3, 256))
    image = sum(tables[2, channel][rgb[..., channel]] for channel in range(3))
    outlines = trace_labels(labels, 2)
    found = cell_measurements(
        labels,
        ("a", "b", "c"),
        Colours(rgb, tables),
        pixel_size_um=1.0,
        nucleus_contours=outlines,
        cells=(cells, outlines) if grown else None,
    )
    parts = {"Nucleus": [labels == 1, labels == 2]}
    if grown:
        parts |= {"Cell": [cells == 1, cells == 2], "Cytoplasm": [cells != labels]}
    for part, masks in parts.items():
        for name, statistic in (("mean", np.mean), ("max", np.max), ("std dev", lambda v: np.std(v, ddof=1))):
            values = found[f"{part}: c {name}"][: len(masks)]
            np.testing.assert_allclose(values, [statistic(image[mask]) for mask in masks], rtol=1e-5)
    assert ("Cell: c mean" in found) == grown


def test_where_cells_meet_the_line_goes_to_the_pixel_that_is_farther_away() -> None:
    labels = np.zeros((1, 9), dtype=np.int32)
    labels[0, [0, 5]] = 1, 2
    # 1, 2, then 2 and 1 from the right: equally far where they meet, so that the later one in the row gives way
    assert expand_cells(labels, 3).tolist() == [[1, 1, 1, 0, 2, 2, 2, 2, 0]]
