"""Streams of windows from slides, with 'networks' whose answer is known at every pixel."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely

from pyhisto.bundle.files import ModelClass, ModelSpec
from pyhisto.errors import ConfigError, SlideError
from pyhisto.inference import InferenceSettings, Lens, PredictedWindow, stream_windows
from pyhisto.inference.tilestore import TileStore
from pyhisto.slide import Slide

Pixels = np.ndarray[Any, Any]

SPEC = ModelSpec(
    kind="tissue_segmentation",
    architecture="unet-resnet34",
    classes=(ModelClass("background"), ModelClass("green", "Green"), ModelClass("blue", "Blue")),
    mpp=0.5,
    tile_size=32,
    overlap=4,
)


class Colours:
    """Stands in for a bundle: the 'probabilities' are red, green and blue / 255."""

    def __init__(self, tile: tuple[int, int] = (32, 4), spec: ModelSpec = SPEC) -> None:
        self.spec = spec
        self.path = Path("colours")
        self.stream_tile = tile
        self.stride = 1
        self.tiles_at_once = 3
        self.batches: list[Pixels] = []

    def predict(self, tiles: Pixels) -> Pixels:
        self.batches.append(tiles)
        return tiles.transpose(0, 3, 1, 2).astype(np.float32) / 255

    def predict_flips(self, tiles: Pixels) -> tuple[Pixels, Pixels]:
        mean = self.predict(tiles)
        return mean / 2, mean[:, 0] / 4

    @property
    def predicted(self) -> int:
        return sum(len(batch) for batch in self.batches)


def stream(slide: Slide, bundle: Any, region: Any = None, **options: Any) -> Generator[PredictedWindow, None, None]:
    settings = {key: options.pop(key) for key in list(options) if key in InferenceSettings.__dataclass_fields__}
    region = shapely.box(0, 0, *slide.dimensions) if region is None else region
    return stream_windows(slide, bundle, region, settings=InferenceSettings(**settings), **options)


def joined(windows: Iterator[PredictedWindow]) -> tuple[Pixels, Pixels, Pixels]:
    """Put the own parts of windows together: probability, colours, and how often each pixel came."""
    probability = rgb = times = None
    for window in windows:
        if times is None:
            size = window.frame.height, window.frame.width
            probability, rgb = np.zeros((3, *size), np.float32), np.zeros((*size, 3), np.uint8)
            times = np.zeros(size, int)
        x0, y0, x1, y1 = window.core
        probability[:, y0:y1, x0:x1] = window.probability[(slice(None), *window.own)]
        rgb[y0:y1, x0:x1] = window.rgb[window.own]
        times[y0:y1, x0:x1] += 1
    assert probability is not None
    assert rgb is not None
    assert times is not None
    return probability, rgb, times


def noise(height: int, width: int) -> Pixels:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)


IMAGE = noise(270, 333)


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory, write_tiff: Callable[..., Path]) -> Path:
    return write_tiff(tmp_path_factory.mktemp("noisy") / "noisy.tif", [IMAGE])


@pytest.fixture(scope="module")
def noisy_pyramid(tmp_path_factory: pytest.TempPathFactory, write_tiff: Callable[..., Path]) -> Path:
    """331 x 287 px, and levels of 165 x 143 and 82 x 71 px."""
    image = noise(287, 331)
    levels = [image, image[:286:2, :330:2], image[:284:4, :328:4]]
    return write_tiff(tmp_path_factory.mktemp("pyramid") / "noisy.tif", [np.ascontiguousarray(each) for each in levels])


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, ...]]:
    """What is read of slides: (x, y, width, height), level-0 px and result px."""
    found: list[tuple[float, ...]] = []
    read = Slide.read_downsampled

    def recorded(self: Slide, x: float, y: float, width: int, height: int, downsample: Any) -> Pixels:
        found.append((x, y, width, height))
        return read(self, x, y, width, height, downsample)

    monkeypatch.setattr(Slide, "read_downsampled", recorded)
    return found


@pytest.fixture(autouse=True)
def threads_end() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize(
    ("tile", "window", "margin", "readers"),
    [
        ((32, 4), 64, 0, 1),
        ((32, 4), 100, 13, 4),
        ((32, 0), 96, 7, 2),
        ((40, 15), 64, 40, 2),  # overlap wider than the core
        ((64, 7), 1024, 5, 3),
        ((512, 32), 64, 0, 2),
    ],
)
def test_a_network_that_gives_the_colours_gives_the_image(
    noisy: Path, tile: tuple[int, int], window: int, margin: int, readers: int
) -> None:
    with Slide(noisy) as slide:
        windows = list(stream(slide, Colours(tile), window=window, margin=margin, readers=readers))
    for one in windows:
        x0, y0, x1, y1 = one.read
        np.testing.assert_array_equal(one.rgb, IMAGE[y0:y1, x0:x1])
        np.testing.assert_allclose(one.probability, IMAGE[y0:y1, x0:x1].transpose(2, 0, 1) / 255, atol=3e-7)
        assert one.wanted.all()
        cx0, cy0, cx1, cy1 = one.core
        assert one.read == (max(0, cx0 - margin), max(0, cy0 - margin), min(333, cx1 + margin), min(270, cy1 + margin))
    assert [one.number for one in windows] == list(range(len(windows)))
    _, _, times = joined(iter(windows))
    assert (times == 1).all()
    assert windows[0].probability.dtype == np.float32
    assert windows[0].variance is None


class Numbered(Colours):
    """Says in each tile which one it is, in the order of prediction."""

    def predict(self, tiles: Pixels) -> Pixels:
        first = self.predicted
        super().predict(tiles)
        number = np.arange(first, first + len(tiles), dtype=np.float32)
        return np.broadcast_to(number[:, None, None, None], (len(tiles), 3, *tiles.shape[1:3])).copy()


def test_neighbours_are_blended_over_the_inner_part_of_the_overlap(noisy: Path) -> None:
    with Slide(noisy) as slide:
        (window,) = stream(slide, Numbered((32, 4)), shapely.box(0, 0, 48, 48))
    # cores of 24: tiles 0 1 / 2 3; ramps of 2 px on each side of 24, so the squared sines of 11.25°,
    # 33.75°, 56.25° and 78.75° at the pixels 22 to 25
    rise = np.concatenate([np.zeros(22), [0.0380602, 0.3086583, 0.6913417, 0.9619398], np.ones(22)])
    np.testing.assert_allclose(window.probability[0], rise[None, :] + 2 * rise[:, None], atol=1e-6)


class Uneven(Colours):
    """Gives other values in every place of a tile, so that what is blended with what would show."""

    def predict(self, tiles: Pixels) -> Pixels:
        y, x = np.mgrid[0 : tiles.shape[1], 0 : tiles.shape[2]]
        return super().predict(tiles) * np.float32(0.3) + np.sin(0.37 * x + 0.73 * y).astype(np.float32)


def test_where_windows_are_cut_changes_no_bit(noisy: Path) -> None:
    found = []
    with Slide(noisy) as slide:
        for window, margin, batch in [(64, 0, 1), (100, 31, 2), (128, 3, 5), (1024, 0, 3)]:
            found.append(joined(stream(slide, Uneven(), window=window, margin=margin, batch_size=batch)))
    for probability, rgb, times in found:
        np.testing.assert_array_equal(probability, found[0][0])
        np.testing.assert_array_equal(rgb, IMAGE)
        assert (times == 1).all()


@pytest.mark.parametrize("mpp", [0.3, 0.4995, 0.22, 0.11])
def test_how_a_slide_is_cut_changes_no_colour(noisy_pyramid: Path, mpp: float) -> None:
    """Model pixels are 1.67, 1.001, 2.27 and 4.55 slide pixels wide: resampled, from levels that are not whole ones."""
    found = []
    with Slide(noisy_pyramid, mpp=mpp) as slide:
        for tile, window in [((512, 32), 1024), ((32, 4), 64), ((40, 15), 100), ((24, 2), 1024)]:
            found.append(joined(stream(slide, Colours(tile), window=window)))
    for probability, rgb, _ in found[1:]:
        np.testing.assert_array_equal(rgb, found[0][1])
        np.testing.assert_allclose(probability, found[0][0], atol=1e-6)


def test_margins_of_windows_are_what_the_neighbours_have(noisy: Path) -> None:
    with Slide(noisy) as slide:
        whole, _, _ = joined(stream(slide, Uneven()))
        for window in stream(slide, Uneven(), window=70, margin=29):
            x0, y0, x1, y1 = window.read
            np.testing.assert_array_equal(window.probability, whole[:, y0:y1, x0:x1])


def test_only_tiles_that_touch_the_region_are_read_each_once(noisy: Path, reads: list[tuple[float, ...]]) -> None:
    region = shapely.MultiPolygon([shapely.box(10, 20, 50, 40), shapely.box(200, 150, 230, 160)])
    bundle = Colours()
    with Slide(noisy) as slide:
        (window,) = stream(slide, bundle, region)
    # the grid begins at (10, 20), cores of 24: columns 0 and 1 of row 0; columns 7 to 9 (190/24 to 220/24) of row 5
    left = [(10 - 4, 20 - 4), (34 - 4, 20 - 4)]
    right = [(10 + 24 * column - 4, 20 + 24 * 5 - 4) for column in (7, 8, 9)]
    assert Counter(reads) == Counter((x, y, 32, 32) for x, y in left + right)
    assert bundle.predicted == 5
    assert window.probability.shape == (3, 140, 220)
    inside = shapely.contains_xy(region, *np.meshgrid(np.arange(220) + 10.5, np.arange(140) + 20.5))
    np.testing.assert_array_equal(window.wanted, inside)
    image = IMAGE[20:160, 10:230]
    np.testing.assert_allclose(window.probability[:, inside], image[inside].T / 255, atol=3e-7)
    np.testing.assert_array_equal(window.rgb[inside], image[inside])
    far = slice(30, 110)  # rows without a tile
    assert (window.probability[0, far] == 1).all()
    assert (window.probability[1:, far] == 0).all()
    assert (window.rgb[far] == 255).all()


def test_windows_without_region_do_not_come(noisy: Path) -> None:
    region = shapely.MultiPolygon([shapely.box(0, 0, 20, 20), shapely.box(300, 200, 333, 270)])
    with Slide(noisy) as slide:
        windows = list(stream(slide, Colours(), region, window=64))
    # columns begin at 0, 64, 128, 192, 256 (the last takes the 13 px that are left), rows at 0, 64, 128, 192
    assert [window.core for window in windows] == [(0, 0, 64, 64), (256, 192, 333, 270)]


def test_beyond_the_slide_its_pixels_are_mirrored(noisy: Path) -> None:
    bundle = Colours((64, 8))
    with Slide(noisy) as slide:
        (window,) = stream(slide, bundle, shapely.box(-20, -10, 30, 40), batch_size=1, tile_size=64)
    assert window.frame.left == window.frame.top == 0
    assert (window.frame.width, window.frame.height) == (30, 40)
    (seen,) = (batch[0] for batch in bundle.batches)
    np.testing.assert_array_equal(seen, np.pad(IMAGE, ((8, 0), (8, 0), (0, 0)), mode="symmetric")[:64, :64])


def test_the_right_and_bottom_edge(noisy: Path) -> None:
    bundle = Colours()
    with Slide(noisy) as slide:
        (window,) = stream(slide, bundle, shapely.box(320, 260, 400, 400), batch_size=1, tile_size=32)
    np.testing.assert_array_equal(window.rgb, IMAGE[260:, 320:])
    (seen,) = (batch[0] for batch in bundle.batches)
    np.testing.assert_array_equal(seen[:14, :17], IMAGE[256:, 316:])
    np.testing.assert_array_equal(seen[14:28, :17], IMAGE[:255:-1, 316:])


@pytest.mark.parametrize("size", [1.0, 2.0])
def test_pixels_lie_where_they_should(stretched_slide: Path, size: float) -> None:
    """0.5 µm/px across and 0.25 down: a model pixel of 1 µm is 2 slide pixels across and 4 down."""
    spec = replace(SPEC, mpp=1.0)
    with Slide(stretched_slide) as slide:
        region = shapely.box(8, 16, 120, 80)
        probability, rgb, _ = joined(stream(slide, Colours(spec=spec), region, window=64, lens=Lens(size)))
        (frame,) = {window.frame for window in stream(slide, Colours(spec=spec), region, lens=Lens(size))}
    assert frame.mpp == size
    assert frame.downsample == (2 * size, 4 * size)
    assert (frame.width, frame.height) == (round(56 / size), round(16 / size))
    assert frame.position(3, 2) == (8 + 6 * size, 16 + 8 * size)
    # red is 2 x - 1 and green 2 y - 1 at a point (x, y) of the slide
    red = 2 * (8 + (np.arange(frame.width) + 0.5) * 2 * size) - 1
    green = 2 * (16 + (np.arange(frame.height) + 0.5) * 4 * size) - 1
    assert np.abs(rgb[..., 0] - red[None, :]).max() <= 0.5
    assert np.abs(rgb[..., 1] - green[:, None]).max() <= 0.5
    np.testing.assert_allclose(probability, rgb.transpose(2, 0, 1) / 255, atol=3e-7)


def test_the_network_sees_other_colours_and_the_window_the_slides(noisy: Path) -> None:
    with Slide(noisy) as slide:
        probability, rgb, _ = joined(stream(slide, Colours(), lens=Lens(1.0, lambda tile: 255 - tile)))
    np.testing.assert_array_equal(rgb, IMAGE)
    np.testing.assert_allclose(probability, 1 - IMAGE.transpose(2, 0, 1) / 255, atol=3e-7)


def test_flips_come_with_their_variance(noisy: Path) -> None:
    with Slide(noisy) as slide:
        (window,) = stream(slide, Colours(), flips=True)
    assert window.variance is not None
    np.testing.assert_allclose(window.probability, IMAGE.transpose(2, 0, 1) / 510, atol=3e-7)
    np.testing.assert_allclose(window.variance, IMAGE[..., 0] / 1020, atol=3e-7)


def test_full_batches_whatever_the_windows(noisy: Path) -> None:
    bundle = Colours()
    with Slide(noisy) as slide:
        list(stream(slide, bundle, window=64, batch_size=7))
    assert {len(batch) for batch in bundle.batches[:-1]} == {7}
    assert bundle.predicted == 14 * 12  # cores of 24 over 333 x 270


def test_cropped_tiles_give_the_pixels_of_the_region(noisy: Path) -> None:
    region = shapely.LineString([(20, 20), (310, 250)]).buffer(15, cap_style="square")
    predicted = []
    with Slide(noisy) as slide:
        for trained in (64, 128):  # those of 128 px are whole
            bundle = Colours((128, 16), replace(SPEC, tile_size=trained))
            for window in stream(slide, bundle, region, window=70, margin=9, batch_size=1):
                inside = window.wanted
                y, x = (at + start for at, start in zip(np.nonzero(inside), window.read[1::-1], strict=True))
                pixels = IMAGE[y + int(window.frame.top), x + int(window.frame.left)]
                np.testing.assert_array_equal(window.rgb[inside], pixels)
                np.testing.assert_allclose(window.probability[:, inside], pixels.T / 255, atol=3e-7)
            predicted.append(sum(batch.size for batch in bundle.batches))
    assert predicted[0] < 0.75 * predicted[1]


def test_progress_follows_the_windows(noisy: Path) -> None:
    told: list[tuple[int, int]] = []
    with Slide(noisy) as slide:
        for number, _ in enumerate(stream(slide, Colours(), window=100, progress=lambda *done: told.append(done))):
            assert len(told) == number
    assert told == [(done, 12) for done in range(1, 13)]  # 100, 100, 100 and 33 px; 100, 100 and 70


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tile_size": 40}, "tile_size = 40; expected a multiple of 32"),
        ({"tile_size": 64, "overlap": 32}, "overlap of 32 px in tiles of 64 px"),
        ({"window": 8}, "window = 8; expected 64"),
        ({"readers": 0}, "readers = 0"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"overlap": -1}, "overlap = -1"),
    ],
)
def test_what_does_not_fit_is_refused_at_once(noisy: Path, settings: dict[str, int], message: str) -> None:
    bundle = Colours()
    bundle.stride = 32
    with Slide(noisy) as slide, pytest.raises(ConfigError, match=message):
        stream(slide, bundle, **settings)


@pytest.mark.parametrize("region", [shapely.Polygon(), shapely.box(400, 0, 500, 100), shapely.box(0, -50, 10, -5)])
def test_nothing_to_look_at(noisy: Path, reads: list[tuple[float, ...]], region: Any) -> None:
    with Slide(noisy) as slide:
        assert list(stream(slide, Colours(), region)) == []
    assert reads == []


def test_several_threads_read_at_the_same_time(noisy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(3, timeout=20)
    read = Slide.read_downsampled
    first: list[int] = []

    def waiting(self: Slide, *place: Any) -> Pixels:
        if len(first) < 3:
            first.append(1)
            together.wait()
        return read(self, *place)

    monkeypatch.setattr(Slide, "read_downsampled", waiting)
    with Slide(noisy) as slide:
        probability, _, _ = joined(stream(slide, Colours(), readers=3))
    np.testing.assert_allclose(probability, IMAGE.transpose(2, 0, 1) / 255, atol=3e-7)


def test_the_network_goes_on_while_a_window_is_worked_on(noisy: Path) -> None:
    bundle = Colours()
    with Slide(noisy) as slide:
        windows = stream(slide, bundle, window=64)
        next(windows)
        end = time.monotonic() + 20
        while bundle.predicted < 24 and time.monotonic() < end:  # 9 are enough for the first window
            time.sleep(0.01)
        assert bundle.predicted >= 24  # 6 more for the second one, and a batch and a tile ahead of that
        time.sleep(0.3)
        assert bundle.predicted < 80  # of 168: whoever does not come is waited for
        assert len(list(windows)) == 5 * 4 - 1


def test_the_end_of_a_stream_is_not_waited_for(noisy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyhisto.inference.stages.PATIENCE_S", 600.0)  # whoever waits for it never comes back
    found: list[int] = []

    def work() -> None:
        with Slide(noisy) as slide:
            found.append(len(list(stream(slide, Colours(), window=64))))

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    worker.join(timeout=30)
    assert not worker.is_alive()
    assert found == [20]  # 5 x 4


def test_a_consumer_may_stop_early(noisy: Path) -> None:
    bundle = Colours()
    before = threading.active_count()
    with Slide(noisy) as slide:
        windows = stream(slide, bundle, window=64)
        next(windows)
        assert threading.active_count() > before
        windows.close()
        assert threading.active_count() == before
    assert bundle.predicted < 168


def test_an_error_of_the_slide_arrives_as_it_is(noisy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Slide.read_downsampled

    def broken(self: Slide, x: float, y: float, *size: Any) -> Pixels:
        if x > 150 and y > 150:
            raise SlideError("slide noisy.tif: cannot be decoded")
        return read(self, x, y, *size)

    monkeypatch.setattr(Slide, "read_downsampled", broken)
    with Slide(noisy) as slide:
        windows = stream(slide, Colours(), window=64)
        next(windows)
        with pytest.raises(SlideError, match="cannot be decoded"):
            list(windows)


def test_an_error_of_the_network_arrives_as_it_is(noisy: Path) -> None:
    class Broken(Colours):
        def predict(self, tiles: Pixels) -> Pixels:
            raise MemoryError("no room")

    with Slide(noisy) as slide, pytest.raises(MemoryError, match="no room"):
        list(stream(slide, Broken()))


@pytest.mark.parametrize("shape", [(4096, 96), (96, 4096)])
def test_what_is_kept_does_not_grow_with_the_slide(
    tmp_path: Path, write_tiff: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]
) -> None:
    held: list[int] = []
    resident: list[int] = []
    put = TileStore.put

    def counted(self: TileStore, key: Any, tile: Any) -> None:
        put(self, key, tile)
        held.append(len(self))
        resident.append(self.resident)

    monkeypatch.setattr(TileStore, "put", counted)
    monkeypatch.setattr(TileStore.__init__, "__defaults__", (20 * 28 * 28 * 15, 1))  # 20 tiles of 28 x 28 px
    with Slide(write_tiff(tmp_path / "long.tif", [np.full((*shape, 3), 90, np.uint8)])) as slide:
        probability, _, _ = joined(stream(slide, Colours(), window=64, margin=10))
    np.testing.assert_allclose(probability, 90 / 255, atol=3e-7)
    assert max(resident) <= 20
    if shape[0] > shape[1]:
        assert max(held) <= 4 * 6  # the width of 4 tiles; 64 + 2 * 10 px and ramps touch 5 rows at most


def test_a_few_tiles_stay_in_memory_however_large_they_are() -> None:
    with TileStore(1, 64, resident_bytes=1, resident_tiles=3) as store:
        for number in range(5):
            store.put(number, (np.zeros((1, 8, 8), dtype=np.float32), np.zeros((8, 8, 3), dtype=np.uint8)))
        assert (len(store), store.resident) == (5, 3)


def test_tiles_come_back_from_the_file() -> None:
    rng = np.random.default_rng(3)
    tiles = {
        (row, 7): (rng.random((2, 8 - row, 8), dtype=np.float32), rng.integers(0, 256, (8 - row, 8, 3), dtype=np.uint8))
        for row in range(6)
    }
    with TileStore(2, 64, resident_bytes=2 * (2 * 8 * 8 * 4 + 8 * 8 * 3), resident_tiles=1) as store:
        for key, tile in tiles.items():
            store.put(key, tile)
        assert (len(store), store.resident) == (6, 2)
        store.drop((1, 7))
        assert (1, 7) not in store
        store.put((9, 9), tiles[1, 7])
        for key in ((5, 7), (0, 7), (3, 7), (9, 9), (0, 7)):
            planes, rgb = store.get(key)
            expected = tiles.get(key, tiles[1, 7])
            np.testing.assert_array_equal(planes, expected[0])
            np.testing.assert_array_equal(rgb, expected[1])
        assert (len(store), store.resident) == (6, 2)
        with pytest.raises(KeyError):
            store.get((1, 7))
