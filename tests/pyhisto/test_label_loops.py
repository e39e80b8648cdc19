"""The loops that make labels of nuclei and cells: against scipy and scikit-image, and by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.ndimage as ndi
from skimage.segmentation import watershed

from pyhisto.loops.basins import claim, ways_down
from pyhisto.loops.blurs import blur, blur_colours, blur_nuclei
from pyhisto.loops.ground import block_sums, core_means
from pyhisto.loops.nuclei import compacted, disks, open_labels, stained_part, vertices
from pyhisto.loops.regions import expanded, marked
from pyhisto.loops.scratch import Scratch
from pyhisto.nuclei.labelling import find_peaks

CROSS = ndi.generate_binary_structure(2, 1)
NUMBERS = {"threshold": 0.35, "min_distance_um": 3.0}


def beside(image: Any) -> Any:
    """Return the four neighbours of each pixel, (4, H, W); beyond the edge the pixel itself."""
    padded = np.pad(image, 1, mode="edge")
    return np.stack([padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]])


@pytest.mark.parametrize("above", [0, 70_000])  # labels of two bytes, and of more
@pytest.mark.parametrize("radius", [0.5, 3.0, 9.5, 40.0])
def test_pixels_grow_from_the_nearest_label_and_a_line_stays_where_two_meet(radius: float, above: int) -> None:
    rng = np.random.default_rng(3)
    labels = np.zeros((90, 70), dtype=np.int32)
    for label in range(1, 13):
        y, x = rng.integers(0, (87, 67))
        labels[y : y + 3, x : x + 2] = label + above
    grown = expanded(labels if above else labels.astype(np.uint16), radius, Scratch())
    each = {label: ndi.distance_transform_edt(labels != label) for label in np.unique(labels[labels > 0])}
    nearest = np.min(list(each.values()), axis=0)
    assert (grown[labels > 0] == labels[labels > 0]).all()
    assert (grown[nearest >= radius] == 0).all()
    for label, distance in each.items():
        np.testing.assert_array_equal(distance[grown == label], nearest[grown == label])
    # where a pixel stays free within the radius, it and its neighbours are nearest to two labels
    nearest_to = np.array([distance == nearest for distance in each.values()])
    several = np.sum([of | beside(of).any(axis=0) for of in nearest_to], axis=0)
    assert (several[(grown == 0) & (nearest < radius)] > 1).all()
    apart = (beside(grown) == grown) | (beside(grown) == 0) | (grown == 0)
    assert apart[:, labels == 0].all()


def test_peaks_lie_between_pixels_where_a_parabola_is_highest() -> None:
    rows, columns = np.indices((7, 9), dtype=np.float32)
    image = -((rows - 3.25) ** 2) - 2 * (columns - 4.5) ** 2
    image[0, 8] = 100.0  # at the edge
    found = vertices(image, np.array([[3, 4], [0, 8]]))
    assert found.tolist() == [[3.25, 4.5], [0, 8]]
    flat = np.ones((5, 5), dtype=np.float32)
    flat[2, 1] = 0.0  # lower on the left: the plateau's side is half a pixel to the right
    assert vertices(flat, np.array([[2, 2]])).tolist() == [[2, 2.5]]


def test_images_fall_with_the_distance_from_the_nearest_place() -> None:
    rng = np.random.default_rng(0)
    image = rng.random((40, 50), dtype=np.float32)
    places = np.array([[10.25, 12.0], [14.5, 20.75], [39.5, 0.0], [3.0, 49.0]])
    rows, columns = np.indices(image.shape)
    distance = np.min([np.hypot(rows - y, columns - x) for y, x in places], axis=0)
    within, near, out = np.empty(image.shape, bool), np.empty(image.shape, bool), np.empty_like(image)
    beyond = np.empty(image.shape, np.uint8)
    compacted(image, places, 9.0, 0.02, within, out, beyond)
    disks(places, 9.0, near)
    assert within.tolist() == near.tolist() == (distance <= 9).tolist()
    # 1 where the image is 1 at a place, 0 where it is 0 at 9 px from it: 1 - (1 - image + 0.02 d) / (1 + 0.18)
    np.testing.assert_allclose(out[within], 1 - (1 - image + 0.02 * distance)[within] / 1.18, atol=1e-6)
    assert (out[~within] == 0).all()
    np.testing.assert_allclose(beyond, 255 * np.clip(distance - 8.5, 0, 1), atol=1)


@pytest.mark.parametrize("part", [(0, 0, 90, 110), (7, 5, 60, 81)])
def test_marked_basins_are_flooded_as_scikit_image_does_it(part: tuple[int, int, int, int]) -> None:
    top, left, height, width = part
    place = (slice(top, top + height), slice(left, left + width))
    rng = np.random.default_rng(5)
    smooth = ndi.gaussian_filter(rng.random((90, 110)), 2)
    rank = smooth.ravel().argsort().argsort().reshape(smooth.shape)  # no two pixels are equally low
    image = (1 - (rank + 0.5) / 65535).astype(np.float32)
    where = ndi.gaussian_filter(rng.random(rank.shape), 6) > 0.48
    where[38:52, 58:72] = False  # an island without marks
    island = np.zeros_like(where)
    island[40:50, 60:70] = where[40:50, 60:70] = True
    lowest = (rank == ndi.minimum_filter(rank, 5))[place] & (where & ~island)[place]
    marks = np.where(lowest & (rng.random(lowest.shape) < 0.6), np.cumsum(lowest).reshape(lowest.shape), 0)
    expected = watershed(rank[place], marks, connectivity=1, mask=where[place])
    links = np.empty((height + 2, width + 2), dtype=np.int32)
    ways_down(image, where, (top, left), 65536, links)
    assert (links[1:-1, 1:-1] == -1).tolist() == (~where[place]).tolist()
    links[1:-1, 1:-1][marks > 0] = -1 - marks[marks > 0]
    for few in (0.1, 1.0):  # a pixel's label does not depend on which others are wanted
        wanted = np.flatnonzero((links != -1) & (rng.random(links.shape) < few)).astype(np.int32)
        claim(links, wanted, image, (top - 1, left - 1), 65536, np.empty(links.size, dtype=np.int32))
    found = -1 - links[1:-1, 1:-1].astype(np.int64)
    np.testing.assert_array_equal(np.where(found > len(rank) ** 2, 0, found), expected)
    assert np.count_nonzero(where[place] & (expected == 0)) >= 100
    assert len(np.unique(expected)) > 15


def test_a_label_is_where_its_core_or_stain_is_and_no_farther_than_it_may_be() -> None:
    dark = np.full((1, 9), 0.5, dtype=np.float32)
    dark[0, 3] = 0.1
    links = np.full((3, 11), -1, dtype=np.int32)
    links[1, 1:8] = -2  # of label 1, whose position is in column 1
    links[1, 8:10] = -(1 << 31)  # no label reaches them
    core = np.zeros(links.shape, dtype=bool)
    core[1, 4] = True
    places, found = np.arange(11 + 1, 11 + 10, dtype=np.int32), np.empty_like(links)
    nuclei = np.array([[0, 1.0, 0.3]])
    stained_part(links, core, places, dark, (-1, -1), nuclei, 4.0, found)
    assert found.tolist() == [[0] * 11, [0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0], [0] * 11]
    core[1, 4] = False  # pale
    stained_part(links, core, places, dark, (-1, -1), nuclei, 4.0, found)
    assert found[1].tolist() == [0, 1, 1, 1, 0, 1, 1, 0, 0, 0, 0]


def test_labels_are_opened_as_scipy_opens_each_for_itself() -> None:
    rng = np.random.default_rng(1)
    labels = np.zeros((62, 83), dtype=np.int32)
    labels[1:-1, 1:-1] = np.digitize(ndi.gaussian_filter(rng.random((60, 81)), 2), (0.45, 0.48, 0.5, 0.52, 0.55))
    core = (rng.random(labels.shape) < 0.02) & (labels > 0)
    expected = np.zeros_like(labels)
    for label in range(1, 6):
        mask = labels[1:-1, 1:-1] == label
        opened = ndi.binary_dilation(ndi.binary_erosion(mask, CROSS, border_value=1), CROSS)
        expected[1:-1, 1:-1][mask & (opened | core[1:-1, 1:-1])] = label
    assert np.count_nonzero(labels != expected) > 100
    open_labels(labels, core, np.ones_like(core))
    np.testing.assert_array_equal(labels, expected)


def test_blocks_keep_to_the_frame_of_the_slide() -> None:
    image = np.arange(30, dtype=np.float32).reshape(5, 6)
    weight = np.full(image.shape, 255, dtype=np.uint8)
    weight[0, 0] = weight[4] = 0
    weight[1, 5] = 51  # a fifth
    # blocks of 4 x 4 begin 3 px above and 1 px left of the image: rows 0, 1 to 4; columns 0 to 2, 3 to 5
    total, count = block_sums(image, weight, (3, 1))
    np.testing.assert_allclose(
        total, [[1 + 2, 3 + 4 + 5], [3 * (12 + 13 + 14), 3 * (15 + 16 + 17) - 0.8 * 11]], rtol=1e-6
    )
    np.testing.assert_allclose(count, [[2, 3], [9, 9 - 0.8]], rtol=1e-6)


def test_the_ground_of_a_core_is_sampled_between_the_centres_of_blocks() -> None:
    dark = np.full((8, 12), 0.5, dtype=np.float32)
    ground = np.array([[0, 4, 8], [8, 12, 16]], dtype=np.float32)  # centres in columns 1.5, 5.5, 9.5 and rows 1.5, 5.5
    links = np.full((10, 14), -1, dtype=np.int32)
    places = np.array([1 * 14 + 1, 4 * 14 + 4, 4 * 14 + 5], dtype=np.int32)  # pixels (0, 0), (3, 3) and (3, 4)
    links.ravel()[places] = [-2, -3, -3]
    dark[3, 4] = 0.9
    positions = np.array([[0, 0], [3, 3.25], [6, 6]])
    middles = core_means(dark, (-1, -1), ground, (0, 0), links, places, positions, 0.5)
    # beyond the outermost centres the ground goes on as it is; a row is 2 more, a column 1
    # of a core of 0.5 px, a pixel 0.25 px from its middle counts 0.75, and one 0.75 px from it 0.25
    np.testing.assert_allclose(middles[:2], [[0.5, 0], [0.5 + 0.1, 1.5 * 2 + 1.5 + 0.25]])
    assert np.isnan(middles[2]).all()


@pytest.mark.parametrize("n", [0, 1, 8, 29])
def test_marked_pixels_are_found_in_their_order(n: int) -> None:
    state = np.zeros(29, dtype=np.uint8)
    state[np.random.default_rng(0).permutation(29)[:n]] = 4
    assert marked(state, np.empty(29, dtype=np.int32)).tolist() == np.flatnonzero(state).tolist()


@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (20, 30)])
def test_an_even_image_has_no_peaks(shape: tuple[int, int]) -> None:
    image = np.full(shape, 0.9, dtype=np.float32)
    assert len(find_peaks(image, 0.5, NUMBERS)) == 0
    if image.size > 1:
        image[3, 4] = 1
        assert [3, 4] in find_peaks(image, 0.5, NUMBERS).tolist()


@pytest.mark.parametrize("shape", [(1, 1), (2, 9), (40, 33)])
@pytest.mark.parametrize("weights", [[1.0], [0.4, 0.2, 0.1], [0.2, 0.15, 0.1, 0.08, 0.04, 0.02, 0.01]])
def test_sums_are_filtered_as_scipy_filters_them(shape: tuple[int, int], weights: list[float]) -> None:
    rng = np.random.default_rng(2)
    kernel = np.array(weights, dtype=np.float32)

    def expected(image: Any) -> Any:
        return ndi.correlate1d(ndi.correlate1d(image, [*weights[:0:-1], *weights], axis=0), [*weights[:0:-1], *weights])

    out = np.full(shape, np.nan, dtype=np.float32)
    image = rng.random(shape, dtype=np.float32)
    blur(image, kernel, out)
    np.testing.assert_allclose(out, expected(image.astype(float)), rtol=1e-5)
    probability = rng.random((5, *shape), dtype=np.float32)  # background, then nucleus and membrane of two classes
    blur_nuclei(probability, kernel, out)
    np.testing.assert_allclose(out, expected((probability[1] + probability[3]).astype(float)), rtol=1e-5)
    rgb = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    table = rng.random((3, 256))
    blur_colours(rgb, table, kernel, out)
    each = sum(table[channel][rgb[..., channel]] for channel in range(3))
    np.testing.assert_allclose(out, expected(each), rtol=1e-5)


def test_memory_is_used_again_by_arrays_of_the_same_name() -> None:
    scratch = Scratch()
    first = scratch.array("a", (3, 4), np.int32)
    other = scratch.array("b", (3, 4), np.int32)
    again = scratch.array("a", (5, 2), np.float32)  # 40 bytes of 48
    assert (again.shape, again.dtype, again.flags.c_contiguous) == ((5, 2), np.float32, True)
    assert np.shares_memory(first, again)
    assert not np.shares_memory(other, again)
    larger = scratch.array("a", (7, 7), np.uint16)
    assert not np.shares_memory(larger, again)
    scratch.clear()
    assert not np.shares_memory(larger, scratch.array("a", (7, 7), np.uint16))
