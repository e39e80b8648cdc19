"""Nuclei from probability maps: hand-made maps with known answers, and a fake network on a synthetic slide."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.ndimage as ndi
import shapely

from pyhisto.bundle.files import ModelClass, ModelSpec
from pyhisto.errors import ConfigError
from pyhisto.inference import InferenceSettings, Lens, PredictedWindow
from pyhisto.nuclei.network import CellFinder, _finders, label_nuclei, predict_cells
from pyhisto.slide import Slide
from pyhisto.stain import H_DAB, optical_density_sum
from pyhisto.synth import SynthSettings, make_slide

NUMBERS = {"threshold": 0.35, "sigma_um": 1.0, "min_distance_um": 3.0, "reach_um": 7.0, "core_um": 1.5}
MPP = 0.5
SHAPE = (96, 128)
Disc = tuple[float, float, float, bool]  # x, y and radius in px, positive


def disc(x: float, y: float, radius: float) -> Any:
    rows, columns = np.indices(SHAPE)
    return np.hypot(columns - x, rows - y) <= radius


def maps(discs: list[Disc]) -> tuple[Any, Any]:
    """Return probabilities as a network trained on points gives them (2.5 µm spots, rings around), and darkness."""
    probability = np.zeros((5, *SHAPE), dtype=np.float32)
    darkness = np.full(SHAPE, 0.1, dtype=np.float32)
    for x, y, radius, positive in discs:
        spot, ring = (1, 2) if positive else (3, 4)
        probability[ring][disc(x, y, 9)] = 0.9
        probability[:, disc(x, y, 5)] = 0
        probability[spot][disc(x, y, 5)] = 0.9
        darkness[disc(x, y, radius)] = 1.2
    probability[0] = 1 - probability[1:].sum(axis=0)
    return probability, darkness


def centres(labels: Any) -> Any:
    return np.array([np.argwhere(labels == i).mean(axis=0)[::-1] for i in range(1, labels.max() + 1)])


def test_positions_classes_and_outlines() -> None:
    discs = [(20, 20, 8, True), (70, 30, 6, False), (100, 70, 10, True), (30, 70, 7, False)]
    labels, votes = label_nuclei(*maps(discs), MPP, NUMBERS)
    positive = votes[:, 0] > votes[:, 1]
    np.testing.assert_allclose(votes.sum(axis=1), 1)
    assert labels.dtype == np.int32
    assert labels.max() == len(positive) == 4
    for x, y, radius, is_positive in discs:
        number = labels[y, x]
        assert number > 0
        np.testing.assert_allclose(centres(labels)[number - 1], (x, y), atol=0.5)
        assert positive[number - 1] == is_positive
        assert (labels == number).sum() == pytest.approx(np.pi * radius**2, rel=0.1)


@pytest.mark.parametrize("second", [True, False])
def test_touching_nuclei_stay_apart(second: bool) -> None:
    discs = [(50, 40, 7, True), (64, 40, 7, second)]
    labels, votes = label_nuclei(*maps(discs), MPP, NUMBERS)
    positive = votes[:, 0] > votes[:, 1]
    left, right = labels[40, 50], labels[40, 64]
    assert {left, right} == {1, 2}
    assert [positive[left - 1], positive[right - 1]] == [True, second]
    for number in (left, right):
        assert (labels == number).sum() == pytest.approx(np.pi * 7**2, rel=0.15)


def test_the_least_change_of_a_probability_does_not_move_outlines() -> None:
    # two nuclei of equal stain whose probabilities merge in a plateau, with a knoll in it that belongs to neither
    rows, columns = np.indices(SHAPE)
    probability = np.zeros((5, *SHAPE), dtype=np.float32)
    probability[1] = 0.2
    for y, height, width in ((36, 0.4, 3), (60, 0.4, 3), (48, 0.05, 2)):
        probability[1] += height * np.exp(-((columns - 40) ** 2 + (rows - y) ** 2) / (2 * width**2))
    darkness = np.where(np.hypot(columns - 40, (rows - 48) / 2.2) <= 9, 1.2, 0.1).astype(np.float32)
    rng = np.random.default_rng(0)
    expected, _ = label_nuclei(probability, darkness, MPP, NUMBERS)
    assert expected.max() == 2
    most = 0.0
    for _ in range(20):
        noise = ndi.gaussian_filter(rng.standard_normal(SHAPE), 2).astype(np.float32)
        probability[3] = 0.002 * (noise - noise.min()) / (noise.max() - noise.min())
        found, _ = label_nuclei(probability, darkness, MPP, NUMBERS)
        for label in (1, 2):
            one, other = found == label, expected == label
            apart = ndi.distance_transform_edt(~other)[one].max(), ndi.distance_transform_edt(~one)[other].max()
            most = max(most, *apart)
    assert most <= 1


def test_a_spot_without_stain_keeps_its_core_only() -> None:
    probability, darkness = maps([(40, 40, 7, False)])
    labels, _ = label_nuclei(probability, np.full_like(darkness, 0.1), MPP, NUMBERS)
    core = np.pi * (1.5 / MPP) ** 2
    assert labels[40, 40] == 1
    assert core * 0.7 < (labels > 0).sum() < core * 1.6


def test_dark_ground_does_not_make_a_nucleus_larger() -> None:
    probability, darkness = maps([(40, 40, 7, True)])
    labels, _ = label_nuclei(probability, darkness + 0.5, MPP, NUMBERS)
    assert (labels == 1).sum() == pytest.approx(np.pi * 7**2, rel=0.1)


def test_a_nucleus_is_one_piece_without_holes() -> None:
    probability, darkness = maps([(40, 40, 8, True)])
    darkness[43:46, 39:42] = 0.1  # a pale vesicle
    darkness[38:43, 50:53] = 1.2  # a speck beside it, within reach
    labels, _ = label_nuclei(probability, darkness, MPP, NUMBERS)
    assert labels[44, 40] == 1
    assert labels[40, 51] == 0


def test_the_mask_is_kept_to() -> None:
    discs = [(30, 40, 7, True), (90, 40, 7, False)]
    mask = np.zeros(SHAPE, dtype=bool)
    mask[:, :64] = True
    labels, votes = label_nuclei(*maps(discs), MPP, NUMBERS, mask)
    assert labels.max() == 1
    assert list(votes[:, 0] > votes[:, 1]) == [True]
    assert labels[40, 90] == 0


def test_membrane_alone_is_no_nucleus() -> None:
    probability, darkness = maps([(40, 40, 7, True)])
    probability[0] += probability[1]
    probability[1] = 0
    labels, votes = label_nuclei(probability, darkness, MPP, NUMBERS)
    assert labels.max() == 0
    assert votes.shape == (0, 2)


def test_three_classes_share_a_nucleus_by_their_probabilities() -> None:
    probability = np.zeros((7, *SHAPE), dtype=np.float32)
    darkness = np.full(SHAPE, 0.1, dtype=np.float32)
    inside = disc(40, 40, 6)
    darkness[inside] = 1.2
    # nucleus and membrane of a class count alike: 0.1 + 0.1, 0.4 + 0.1, 0.2 + 0.1 of 1
    for channel, value in zip(range(1, 7), (0.1, 0.1, 0.4, 0.1, 0.2, 0.1), strict=True):
        probability[channel][inside] = value
    labels, votes = label_nuclei(probability, darkness, MPP, NUMBERS)
    assert labels.max() == 1
    np.testing.assert_allclose(votes, [[0.2, 0.5, 0.3]], atol=1e-3)


class FakeNetwork:
    """Takes the place of a bundle: a spot on each dark blob, positive where it is brown."""

    path = Path("fake")

    def __init__(self, kind: str = "cell_detection") -> None:
        names = ("background", "positive", "ring", "negative", "ring 2")
        found = (None, "Tumor: Positive", None, "Tumor: Negative", None)
        classes = tuple(ModelClass(name, c) for name, c in zip(names, found, strict=True))
        self.spec = ModelSpec(kind, "fake", classes, mpp=0.5, tile_size=64, overlap=8, postprocessing=NUMBERS)
        self.stream_tile = (64, 8)
        self.stride = 1
        self.tiles_at_once = 8
        self.device = "cpu"

    def predict(self, tiles: Any) -> Any:
        out = np.zeros((len(tiles), 5, *tiles.shape[1:3]), dtype=np.float32)
        for tile, probability in zip(tiles, out, strict=True):
            nucleus = np.clip(optical_density_sum(tile, (240.0, 240.0, 240.0)) - 0.6, 0, 1)
            brown = tile[..., 0].astype(float) > tile[..., 2]
            probability[1], probability[3] = nucleus * brown, nucleus * ~brown
            probability[0] = 1 - nucleus
        return out


@pytest.fixture(scope="module")
def slide_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("network") / "slide.tif"
    make_slide(path, SynthSettings(width=640, height=640, seed=3))
    return path


def cells_of(slide_path: Path, bundle: FakeNetwork, **options: Any) -> Any:
    with Slide(slide_path) as slide:
        return predict_cells(slide, bundle, stains=H_DAB, **options)  # type: ignore[arg-type]


def sorted_cells(cells: Any) -> Any:
    """Return cells in an order that does not depend on how the slide was cut."""
    centre = shapely.get_coordinates(shapely.centroid(cells["nucleus"].to_numpy()))
    return cells.iloc[np.lexsort(centre.round(3).T)].reset_index(drop=True)


@pytest.mark.parametrize(
    "settings",
    [
        InferenceSettings(window=150),
        InferenceSettings(window=97, tile_size=96, overlap=16),
        InferenceSettings(window=256, tile_size=200, overlap=4),
    ],
)
def test_windows_and_tiles_change_no_cell(slide_path: Path, settings: InferenceSettings) -> None:
    # the fake network sees single pixels: every tile size and overlap gives the same probabilities but for rounding,
    # which may say which of two points that hardly matter stays in an outline
    whole = sorted_cells(cells_of(slide_path, FakeNetwork(), settings=InferenceSettings(window=1024)))
    cut = sorted_cells(cells_of(slide_path, FakeNetwork(), settings=settings))
    assert len(cut) == len(whole) > 60
    for name in ("nucleus", "geometry"):
        one, other = cut[name].to_numpy(), whole[name].to_numpy()
        same = shapely.equals_exact(one, other, 1e-6)
        assert (same if settings.tile_size is None else same | (shapely.hausdorff_distance(one, other) < 0.5)).all()
        assert same.mean() > 0.97
    numbers = [name for name in whole if ":" in name or "ratio" in name]
    assert len(numbers) == 41
    slack = 1e-9 if settings.tile_size is None else 0.01
    np.testing.assert_allclose(cut[numbers], whole[numbers], rtol=slack, atol=1e-9)
    np.testing.assert_allclose(cut["class_probability"], whole["class_probability"], rtol=1e-6)


@pytest.mark.parametrize("mpp", [2.0, 4.0])
def test_windows_change_no_cell_of_a_coarse_model(slide_path: Path, mpp: float) -> None:
    # nuclei reach fewer pixels than an opening looks at
    tables = []
    for window in (64, 1024):
        bundle = FakeNetwork()
        bundle.spec = replace(bundle.spec, mpp=mpp, postprocessing={**NUMBERS, "threshold": 0.1})
        tables.append(sorted_cells(cells_of(slide_path, bundle, settings=InferenceSettings(window=window))))
    cut, whole = tables
    assert len(cut) == len(whole) > 20
    for name in ("nucleus", "geometry"):
        assert shapely.equals_exact(cut[name].to_numpy(), whole[name].to_numpy(), 1e-6).all()


class BlurredNetwork(FakeNetwork):
    """Sees 10 px around each pixel, with zeros beyond its tile as convolutions have them."""

    def predict(self, tiles: Any) -> Any:
        return ndi.uniform_filter(super().predict(tiles), (1, 1, 21, 21), mode="constant") * np.float32(2)


def test_a_network_that_sees_beyond_its_overlap_moves_no_nucleus_by_more_than_a_pixel(slide_path: Path) -> None:
    # 10 px are seen and 8 px are thrown away on each side of a tile
    numbers = {**NUMBERS, "threshold": 0.1}
    tables = []
    for tile_size in (64, 128):
        bundle = BlurredNetwork()
        bundle.spec = replace(bundle.spec, postprocessing=numbers)
        tables.append(cells_of(slide_path, bundle, settings=InferenceSettings(tile_size=tile_size, overlap=16)))
    first, second = (shapely.centroid(table["nucleus"].to_numpy()) for table in tables)
    assert len(first) == len(second) > 40
    _, distance = shapely.STRtree(second).query_nearest(first, return_distance=True)
    assert distance.max() < 1


def test_several_windows_at_once_give_the_same_cells_in_the_same_order(
    slide_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find, together = CellFinder.find, threading.Barrier(3, timeout=20)
    begun: list[int] = []

    def waiting(self: CellFinder, window: PredictedWindow) -> Any:
        begun.append(window.number)
        if len(begun) <= 3:
            together.wait()
        return find(self, window)

    one = cells_of(slide_path, FakeNetwork(), settings=InferenceSettings(window=150, finders=1))
    monkeypatch.setattr(CellFinder, "find", waiting)
    several = cells_of(slide_path, FakeNetwork(), settings=InferenceSettings(window=150, finders=3))
    assert len(begun) == 25  # 5 x 5
    assert shapely.equals_exact(several["geometry"].to_numpy(), one["geometry"].to_numpy(), 0).all()
    plain = [name for name in one if name not in ("geometry", "nucleus")]
    pd.testing.assert_frame_equal(
        several[plain].reset_index(drop=True), one[plain].reset_index(drop=True), check_exact=True
    )


def test_a_fault_while_several_windows_are_worked_on_comes_out(
    slide_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: CellFinder, window: PredictedWindow) -> Any:
        raise OSError(f"window {window.number}")

    monkeypatch.setattr(CellFinder, "find", failing)
    with pytest.raises(OSError, match="window 0"):
        cells_of(slide_path, FakeNetwork(), settings=InferenceSettings(window=150, finders=3))


def test_windows_are_shared_among_processors_where_a_gpu_computes_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 12)
    assert [_finders(device) for device in ("cpu", "cuda:1", "mps")] == [1, 6, 6]
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    assert _finders("cuda") == 8


def test_observers_see_every_window_once_in_order(slide_path: Path) -> None:
    seen: list[PredictedWindow] = []
    steps: list[tuple[int, int]] = []
    cells = cells_of(
        slide_path,
        FakeNetwork(),
        settings=InferenceSettings(window=320),
        observers=[seen.append],
        progress=lambda done, total: steps.append((done, total)),
    )
    assert [window.number for window in seen] == [0, 1, 2, 3]
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert sum(window.core[2] - window.core[0] for window in seen) == 2 * 640
    assert len(cells) > 60


def test_pixels_far_from_the_region_are_never_read(slide_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Any] = []
    original = Slide.read_downsampled

    def recording(self: Slide, x: float, y: float, width: int, height: int, downsample: Any) -> Any:
        read.append(shapely.box(x, y, x + width * downsample[0], y + height * downsample[1]))
        return original(self, x, y, width, height, downsample)

    monkeypatch.setattr(Slide, "read_downsampled", recording)
    region = shapely.union_all([shapely.box(150, 400, 250, 500), shapely.box(400, 150, 500, 250)])
    cells = cells_of(slide_path, FakeNetwork(), region=region, settings=InferenceSettings(window=128))
    assert len(cells) > 5
    assert len(read) > 4
    # a tile touches the region with its own 48 px, and shows 8 px more on each side
    allowed = shapely.buffer(region, 48 + 8, join_style="mitre")
    assert shapely.covers(allowed, read).all()
    area = sum(shapely.area(tile) for tile in read)
    assert area < 0.35 * 640 * 640


def test_cells_lie_in_the_region_and_are_measured(slide_path: Path) -> None:
    region = shapely.box(200, 200, 440, 440)
    cells = cells_of(slide_path, FakeNetwork(), region=region)
    centre = shapely.centroid(cells["nucleus"].to_numpy())
    assert len(cells) > 10
    assert shapely.contains(shapely.buffer(region, 1), centre).all()
    assert set(cells["classification"].dropna()) == {"Tumor: Positive", "Tumor: Negative"}
    area = shapely.area(cells["nucleus"].to_numpy()) * 0.25
    np.testing.assert_allclose(cells["Nucleus: Area"], area, rtol=0.15)
    assert shapely.covers(shapely.buffer(cells.geometry.to_numpy(), 1.5), cells["nucleus"].to_numpy()).all()


def test_cells_carry_the_probability_of_their_class(slide_path: Path) -> None:
    cells = cells_of(slide_path, FakeNetwork(), region=shapely.box(200, 200, 440, 440))
    assert ((cells["class_probability"] >= 0.5) & (cells["class_probability"] <= 1)).all()
    assert cells["class_probability"].median() > 0.8


def test_a_slide_of_twice_the_declared_size_gives_the_same_cells_through_a_lens(slide_path: Path) -> None:
    # the same pixels, declared as 1 µm/px instead of 0.5: nuclei look twice as large as those the network knows
    region = shapely.box(100, 100, 500, 500)
    plain = cells_of(slide_path, FakeNetwork(), region=region, cell_expansion_um=0)
    with Slide(slide_path, mpp=1.0) as slide:
        seen = predict_cells(
            slide,
            FakeNetwork(),
            stains=H_DAB,
            region=region,
            lens=Lens(2.0),
            cell_expansion_um=0,  # type: ignore[arg-type]
        )
    assert len(seen) == len(plain) > 40
    # what is measured is in the declared µm: areas of four times as many µm²
    np.testing.assert_allclose(seen["Nucleus: Area"].sum(), 4 * plain["Nucleus: Area"].sum(), rtol=1e-6)


def test_a_model_of_another_kind_is_refused(slide_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected cell_detection"):
        cells_of(slide_path, FakeNetwork("tissue_segmentation"))
