"""Weak segmentation: the rule by hand, what is learnt with it, and what lies on disk."""

from __future__ import annotations

import itertools
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import torch
from mil_cases import labelled, write_bags
from monai.bundle import ConfigParser
from sklearn.metrics import roc_auc_score

import pyhisto.mil.weak.train as training_module
from pyhisto.bundle.files import read_spec
from pyhisto.errors import BundleError, ConfigError, TrainingError
from pyhisto.features.bags import read_bag, write_bag
from pyhisto.mil.data import LabelledBags
from pyhisto.mil.labels import Task
from pyhisto.mil.weak.bundle import WeakBundle, load_weak_bundle, save_weak_bundle, weak_spec
from pyhisto.mil.weak.network import build_instance_network, tile_width
from pyhisto.mil.weak.rule import FIFTEEN_PAIRS, ProxyRule, weighted_auroc
from pyhisto.mil.weak.settings import NetworkSettings, WeakSettings
from pyhisto.mil.weak.tiles import SlideTiles, TileSettings, slide_tiles
from pyhisto.mil.weak.train import WeakEpoch, fit_weak, instance_probabilities, proxy_loss
from pyhisto.mil.weak.tumourmap import area_polygons, judge_tiles, score_tiles, tile_boxes
from pyhisto.slide import Slide

WIDTH = 6


@pytest.mark.parametrize(
    ("alpha", "beta", "scores", "wanted"),
    [
        (0.2, 0.4, [0.1, 0.9, 0.3, 0.5, 0.7], [0, 1, 0, -1, -1]),
        (0.4, 0.6, [0.1, 0.9, 0.3, 0.5, 0.7], [0, 1, 0, 0, 1]),
        (0.5, 0.0, [0.1, 0.9, 0.3, 0.5, 0.7], [-1, 1, -1, -1, 1]),  # floor(2.5) = 2
        (1.0, 0.0, [0.1, 0.9], [1, 1]),
        (0.1, 0.1, [0.1, 0.9, 0.3], [-1, 1, -1]),  # floor(0.3) = 0, but one is positive
        (0.1, 0.9, [0.1, 0.9], [0, 1]),
        (0.2, 0.2, [0.4], [1]),
        (0.1, 0.9, [0.4], [1]),
        (0.4, 0.4, [0.5, 0.5, 0.5, 0.5, 0.5], [1, 1, -1, 0, 0]),  # of equal ones the first is the higher
        (0.25, 0.5, [0.2, 0.7, 0.7, 0.2], [0, 1, -1, 0]),
        (0.34, 0.34, [0.5, 0.5, 0.9], [-1, 0, 1]),
    ],
)
def test_the_rule_by_hand(alpha: float, beta: float, scores: list[float], wanted: list[int]) -> None:
    rule = ProxyRule(alpha, beta)
    assert rule.labels(np.array(scores), positive=True).tolist() == wanted
    assert rule.labels(np.array(scores), positive=False).tolist() == [0] * len(scores)


def test_shares_are_exact_and_never_overlap() -> None:
    assert ProxyRule(0.29, 0.57).counts(100) == (29, 57)  # in binary, 0.29 * 100 and 0.57 * 100 are a little less
    shares = [k / 20 for k in range(21)]
    for alpha, beta in itertools.product(shares[1:], shares[:-1]):
        if alpha + beta > 1 + 1e-12:
            continue
        for n in range(1, 60):
            top, bottom = ProxyRule(alpha, beta).counts(n)
            twentieths = round(alpha * 20), round(beta * 20)
            assert (top, bottom) == (max(1, twentieths[0] * n // 20), twentieths[1] * n // 20)
            assert top + bottom <= n


@pytest.mark.parametrize(("alpha", "beta"), [(0, 0.2), (-0.1, 0), (1.1, 0), (0.5, 0.6), (0.2, -0.1), (math.nan, 0.1)])
def test_shares_that_are_refused(alpha: float, beta: float) -> None:
    with pytest.raises(ConfigError, match="together at most 1"):
        ProxyRule(alpha, beta)


def test_the_fifteen_pairs() -> None:
    assert len(set(FIFTEEN_PAIRS)) == 15
    assert ProxyRule(0.2, 0.2) in FIFTEEN_PAIRS
    assert {(one.alpha, one.beta) for one in FIFTEEN_PAIRS if one.alpha > 0.5} == {
        (0.6, 0.0), (0.6, 0.2), (0.6, 0.4), (0.8, 0.0), (0.8, 0.2), (1.0, 0.0),
    }  # fmt: skip


def test_the_probability_of_a_slide_is_the_mean_of_its_highest_tiles() -> None:
    said = np.array([0.1, 0.9, 0.3, 0.5, 0.7])
    assert ProxyRule(0.4, 0).slide_probability(said) == pytest.approx(0.8)
    assert ProxyRule(0.1, 0).slide_probability(said) == pytest.approx(0.9)
    assert ProxyRule(1.0, 0).slide_probability(said) == pytest.approx(0.5)


def test_the_loss_by_hand() -> None:
    positive, negative = torch.tensor([2.0, 0.0, -1.0], requires_grad=True), torch.tensor([0.0, 1.0])
    loss = proxy_loss([positive, negative], [True, False], ProxyRule(0.4, 0.4), [1.5, 0.5])
    # positive: 2 is 1 and -1 is 0, each softplus(-|x|); negative: both are 0
    mine = 1.5 * (math.log1p(math.exp(-2)) + math.log1p(math.exp(-1))) / 2
    other = 0.5 * (math.log(2) + math.log1p(math.e)) / 2
    assert loss.item() == pytest.approx((mine + other) / 2, abs=1e-6)
    loss.backward()  # type: ignore[no-untyped-call]
    assert positive.grad is not None
    assert positive.grad[1] == 0  # left out
    assert positive.grad[0] < 0 < positive.grad[2]


def test_the_area_under_the_curve_of_weighted_things_agrees_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    scores, inside = rng.integers(0, 9, 60) / 8, rng.random(60)
    outside = rng.random(60)
    truth = np.r_[np.ones(60), np.zeros(60)]
    wanted = roc_auc_score(truth, np.r_[scores, scores], sample_weight=np.r_[inside, outside])
    assert weighted_auroc(scores, inside, outside) == pytest.approx(wanted)
    assert math.isnan(weighted_auroc(scores, inside, np.zeros(60)))


def instances(count: int, seed: int, size: int = 30) -> tuple[list[np.ndarray[Any, Any]], list[np.ndarray[Any, Any]]]:
    """Return bags of which every second one has a third of instances that are far off, and which these are."""
    rng = np.random.default_rng(seed)
    bags, marks = [], []
    for number in range(count):
        bag = rng.normal(size=(size, WIDTH)).astype(np.float32)
        mark = (np.arange(size) % 3 == 0) & bool(number % 2)
        bag[mark, :2] += 3.0
        bags.append(bag * 7 + 100)
        marks.append(mark)
    return bags, marks


def slides(folder: Path, count: int, seed: int = 0) -> tuple[LabelledBags, np.ndarray[Any, Any]]:
    bags, marks = instances(count, seed)
    write_bags(folder, bags, encoder="colours", encoder_sha256="ab" * 32)
    return labelled(folder, ["yes" if n % 2 else "no" for n in range(count)]), np.concatenate(marks)


QUICK = WeakSettings(network=NetworkSettings(hidden=8), epochs=25, learning_rate=0.01, patience=0, weight_decay=0)


def test_instances_are_learnt_from_labels_of_bags(tmp_path: Path) -> None:
    bags, _ = slides(tmp_path / "a", 12)
    others, _ = slides(tmp_path / "b", 6, seed=1)
    unseen, marks = slides(tmp_path / "c", 10, seed=2)
    fit = fit_weak(bags, others, ProxyRule(0.2, 0.4), QUICK)
    said = np.concatenate([instance_probabilities(fit.network, bag) for bag in unseen.bags])
    assert roc_auc_score(marks, said) > 0.97
    assert fit.epochs[fit.best - 1].auroc == 1.0
    # with alpha above the true share, instances that are not positive are called so
    greedy = fit_weak(bags, others, ProxyRule(0.8, 0.0), QUICK)
    more = np.concatenate([instance_probabilities(greedy.network, bag) for bag in unseen.bags])
    assert (more[marks] > 0.5).mean() >= (said[marks] > 0.5).mean()
    assert (more[~marks] > 0.5).mean() > 2 * (said[~marks] > 0.5).mean()


def test_a_training_that_was_killed_gives_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bags, _ = slides(tmp_path / "a", 8)
    others, _ = slides(tmp_path / "b", 4, seed=1)
    rule = ProxyRule(0.2, 0.2)
    whole = fit_weak(bags, others, rule, QUICK)
    monkeypatch.setattr(training_module, "CHECKPOINT_S", 0.0)

    def stop(row: WeakEpoch) -> None:
        if row.number == 10:
            raise KeyboardInterrupt

    seen: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        fit_weak(bags, others, rule, QUICK, folder=tmp_path / "out", report=stop)
    again = fit_weak(bags, others, rule, QUICK, folder=tmp_path / "out", report=lambda row: seen.append(row.number))
    assert seen == list(range(10, 26))  # the tenth was not in a checkpoint yet
    assert again.epochs == whole.epochs
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[name]), name
    other = fit_weak(bags, others, ProxyRule(0.4, 0.2), QUICK, folder=tmp_path / "out")  # another training begins anew
    assert other.epochs[0] != whole.epochs[0]


def test_training_stops_by_the_slides_and_then_by_the_loss() -> None:
    first = WeakEpoch(1, 0.5, 0.6, 0.8)
    assert WeakEpoch(2, 0.5, 0.7, 0.9).beats(first)
    assert WeakEpoch(2, 0.5, 0.5, 0.8).beats(first)
    assert not WeakEpoch(2, 0.1, 0.1, 0.7).beats(first)
    assert not WeakEpoch(2, 0.1, 0.6, 0.8).beats(first)
    assert WeakEpoch(2, 0.9, None, None).beats(WeakEpoch(1, 0.1, None, None))


def test_slides_of_one_class_are_refused(tmp_path: Path) -> None:
    bags, _ = slides(tmp_path / "a", 6)
    with pytest.raises(TrainingError, match=r"the 3 validation slides are all 'no'"):
        fit_weak(bags, bags.take(np.array([0, 2, 4])), ProxyRule(0.2, 0.2), QUICK)


def test_bags_of_one_and_features_kept_on_disk(tmp_path: Path) -> None:
    bags, _ = slides(tmp_path / "a", 6)
    write_bag(tmp_path / "a" / "s001.h5", bags.bags[1].features[:1], attributes=dict(bags.bags[1].attributes))
    again = labelled(tmp_path / "a", ["yes" if n % 2 else "no" for n in range(6)])
    assert again.bags[1].instances == 1
    short = WeakSettings(network=NetworkSettings(hidden=0), epochs=3, batch_size=1, instances=10)
    kept = fit_weak(again, None, ProxyRule(0.2, 0.2), short)
    read = fit_weak(
        again, None, ProxyRule(0.2, 0.2), WeakSettings(short.network, 3, batch_size=1, instances=10, memory_mb=0)
    )
    assert kept.epochs == read.epochs
    assert kept.best == 3  # without validation the last


def test_rows_of_a_feature_file(tmp_path: Path) -> None:
    features = np.arange(12, dtype=np.float16).reshape(4, 3)
    write_bag(tmp_path / "a.h5", features)
    rows = read_bag(tmp_path / "a.h5").rows(np.array([1, 3]))
    assert rows.dtype == np.float32
    assert rows.tolist() == [[3, 4, 5], [9, 10, 11]]


def test_tiles_of_files_that_count_from_another_corner(tmp_path: Path) -> None:
    write_bag(tmp_path / "clam.h5", np.zeros((1, 3)), np.array([[130, 70]]), {"patch_size": 10})
    write_bag(tmp_path / "ours.h5", np.zeros((1, 3)), np.array([[30, 20]]), {"patch_size": 10, "origin": (100, 50)})
    for name in ("clam", "ours"):  # a slide whose frame begins at (100, 50) of its file
        (box,) = tile_boxes(read_bag(tmp_path / f"{name}.h5"), (100, 50))
        assert box.bounds == (30, 20, 40, 30)
    write_bag(tmp_path / "plain.h5", np.zeros((1, 3)))
    with pytest.raises(ConfigError, match="does not say where its tiles lie"):
        tile_boxes(read_bag(tmp_path / "plain.h5"), (0, 0))


@pytest.fixture
def tiles(gradient_slide: Path) -> SlideTiles:
    return slide_tiles(
        partial(Slide, gradient_slide, mpp=1.0),
        shapely.box(0, 0, 96, 64),
        TileSettings(tile_size=16, mpp=2.0),
        name="slide",
    )


def test_tiles_are_read_from_the_slide(tiles: SlideTiles, gradient_slide: Path) -> None:
    assert tiles.coords.tolist() == [[0, 0], [32, 0], [64, 0], [0, 32], [32, 32], [64, 32]]
    assert (tiles.patch_size, tiles.width, tiles.instances) == (32, 768, 6)
    rows = tiles.rows(np.array([1, 5]))
    with Slide(gradient_slide) as slide:
        wanted = slide.read_downsampled(64, 32, 16, 16, (2.0, 2.0)).transpose(2, 0, 1).ravel()
    assert rows.dtype == np.uint8
    np.testing.assert_array_equal(rows[1], wanted)
    assert tiles.features.shape == (6, 768)
    assert [box.bounds for box in tile_boxes(tiles, (0, 0))[:2]] == [(0, 0, 32, 32), (32, 0, 64, 32)]


def test_a_network_on_tiles_of_slides(tiles: SlideTiles, tmp_path: Path) -> None:
    bags = LabelledBags(
        (Task("tumour", ("no", "yes")),), (tiles, tiles), ("a", "b"), np.array([[0], [1]], dtype=np.int64)
    )
    network = NetworkSettings("cnn", channels=(4, 4))
    fit = fit_weak(bags, None, ProxyRule(0.4, 0.2), WeakSettings(network, epochs=2, instances=4))
    said = instance_probabilities(fit.network, tiles)
    spec = weak_spec(tiles, bags.tasks[0], network, ProxyRule(0.4, 0.2))
    save_weak_bundle(tmp_path / "model", fit.network, spec, golden=tiles.rows(np.arange(3)))
    bundle = load_weak_bundle(tmp_path / "model")
    assert bundle.spec == spec
    assert bundle.spec.tiles == TileSettings(16, 2.0)
    assert bundle.spec.target == "yes"
    np.testing.assert_allclose(bundle.predict(tiles), said, atol=1e-6)
    other = slide_tiles(tiles.opened, shapely.box(0, 0, 64, 64), TileSettings(16, 1.0), name="slide")
    with pytest.raises(BundleError, match=r"tiles at 1.0 µm/px; expected 2 µm/px"):
        bundle.check(other)


@pytest.fixture
def bundle(tmp_path: Path) -> WeakBundle:
    bags, _ = slides(tmp_path / "a", 4)
    network = build_instance_network(NetworkSettings(hidden=4), WIDTH, "colours").eval()
    spec = weak_spec(
        bags.bags[0], bags.tasks[0], NetworkSettings(hidden=4, encoder_weights="x.pt"), ProxyRule(0.2, 0.2)
    )
    golden = bags.bags[0].features
    return save_weak_bundle(tmp_path / "model", network, spec, golden=golden, training={"slides": 4})


def test_a_model_on_disk(bundle: WeakBundle) -> None:
    again = load_weak_bundle(bundle.path)
    assert again.spec == bundle.spec
    assert again.spec.network.encoder_weights == "random"  # its weights lie in the bundle
    assert again.sha256 == bundle.sha256
    assert "- slides: 4" in (bundle.path / "docs" / "README.md").read_text("utf-8")
    with pytest.raises(BundleError, match="judges tiles; use it with 'qupath-ext mil weak predict'"):
        read_spec(bundle.path)


def test_damaged_models_are_refused(bundle: WeakBundle) -> None:
    metadata = bundle.path / "configs" / "metadata.json"
    told = json.loads(metadata.read_text("utf-8"))
    metadata.write_text(json.dumps({**told, "pyhisto": {**told["pyhisto"], "model": {"kind": "other"}}}), "utf-8")
    with pytest.raises(BundleError, match="a model for other"):
        load_weak_bundle(bundle.path)
    metadata.write_text(json.dumps(told), "utf-8")
    golden = bundle.path / "models" / "golden.npz"
    with np.load(golden) as file:
        arrays = dict(file)
    np.savez_compressed(golden, instances=arrays["instances"], probabilities=1 - arrays["probabilities"])
    with pytest.raises(BundleError, match="something else of its golden tiles"):
        load_weak_bundle(bundle.path)
    golden.write_bytes(b"no")
    with pytest.raises(BundleError, match="missing or damaged"):
        load_weak_bundle(bundle.path)
    weights = bundle.path / "models" / "model.pt"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(BundleError, match="exchanged; expected sha256"):
        load_weak_bundle(bundle.path)
    with pytest.raises(BundleError, match="no classifier of tiles"):
        load_weak_bundle(bundle.path / "models")


@pytest.mark.parametrize("name", ["resnet34-imagenet", "densenet121"])
def test_encoders_judge_tiles(name: str) -> None:
    network = build_instance_network(NetworkSettings(name), tile_width(32), "pixels").eval()
    tiles = torch.arange(2 * tile_width(32), dtype=torch.uint8).view(2, -1)
    with torch.inference_mode():
        assert network(tiles).shape == (2,)
        torch.testing.assert_close(network(tiles[:1]), network(tiles)[:1], rtol=0, atol=1e-5)


def test_monai_builds_the_network(bundle: WeakBundle) -> None:
    parser = ConfigParser()
    parser.read_config(str(bundle.path / "configs" / "inference.json"))
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(bundle.path / "models" / "model.pt", weights_only=True))
    rows = np.ones((2, WIDTH), dtype=np.float32)
    with torch.inference_mode():
        np.testing.assert_allclose(network(torch.from_numpy(rows)).sigmoid().numpy(), bundle.judge(rows), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "encoder", "found"),
    [
        ("cnn", "colours", "the network cnn for features of colours; expected mlp"),
        ("mlp", "pixels", "the network mlp for tiles; expected cnn or the name of an encoder"),
        ("nothing", "pixels", "unknown detector 'nothing'"),
    ],
)
def test_networks_that_are_refused(name: str, encoder: str, found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        build_instance_network(NetworkSettings(name), 3 * 32 * 32, encoder)


def test_areas_of_tiles() -> None:
    boxes = np.array([shapely.box(x, y, x + 10, y + 10) for y in (0, 10) for x in (0, 10, 20)])
    said = np.array([0.9, 0.5, 0.1, 0.2, 0.3, 0.8])  # two in a row above, one below at a corner of its own
    areas, means = area_polygons(boxes, said, 0.5)
    assert [area.bounds for area in areas] == [(0, 0, 20, 10), (20, 10, 30, 20)]
    assert [area.area for area in areas] == [200, 100]
    assert means.tolist() == pytest.approx([0.7, 0.8])
    assert area_polygons(boxes, said, 0.95)[0] == []
    ring = np.array([shapely.box(x, y, x + 1, y + 1) for x in range(3) for y in range(3) if (x, y) != (1, 1)])
    (area,), _ = area_polygons(ring, np.ones(8), 0.5)
    assert area.area == 8
    assert len(area.interiors) == 1


def test_tiles_against_a_true_area() -> None:
    boxes = np.array([shapely.box(0, 0, 10, 10), shapely.box(10, 0, 20, 10), shapely.box(20, 0, 30, 10)])
    judged = judge_tiles(boxes, np.array([0.9, 0.6, 0.2]), shapely.box(5, 0, 15, 10))
    assert judged.inside.tolist() == [50, 50, 0]
    assert judged.outside.tolist() == [50, 50, 100]
    score = score_tiles([judged], 0.5)
    # positive pixels: 50 at 0.9, 50 at 0.6; negative: 50 at 0.9, 50 at 0.6, 100 at 0.2
    assert score.auc == pytest.approx((0.5 * (100 + 50 + 25) + 0.5 * (100 + 25)) / 200)
    assert (score.area.recall, score.area.precision) == (1.0, 0.5)
    nothing = judge_tiles(boxes, np.array([0.9, 0.6, 0.2]), shapely.union_all(np.array([], dtype=object)))
    both = score_tiles([judged, nothing], 0.7)
    assert (both.area.true_positive, both.area.false_positive, both.area.false_negative) == (50, 150, 50)
