"""Slide labels: tables, folds, figures, training, models on disk."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mil_cases import digit_bags, labelled, two_kinds, write_bags
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score

import pyhisto.mil.train
from pyhisto.bundle.files import read_spec
from pyhisto.errors import BundleError, ConfigError, TrainingError
from pyhisto.features.bags import list_bags, read_bag, write_bag
from pyhisto.mil.bundle import SlideSpec, load_slide_bundle, save_slide_bundle
from pyhisto.mil.crossval import FoldPlan, cross_validate
from pyhisto.mil.data import BagReader, LabelledBags, label_bags
from pyhisto.mil.folds import patient_folds, validation_part
from pyhisto.mil.labels import UNKNOWN, label_table, read_labels, row_finder
from pyhisto.mil.metrics import figures
from pyhisto.mil.model import build_slide_model
from pyhisto.mil.predictions import judge, prediction_table, read_predictions, with_labels, write_predictions
from pyhisto.mil.settings import FitSettings
from pyhisto.mil.train import Epoch, class_weights, fit, probabilities
from pyhisto.models.mil import HeadSettings

QUICK = FitSettings(head="mean", learning_rate=0.05, epochs=4, patience=0)


# ---------------------------------------------------------------------- labels
def test_labels_of_a_table(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("slide_id,case_id,age,sig\na.svs,P1,60,low\nb.svs,P1,60,high\nc.svs,P2,70,median\nd.svs,P3,50,\n")
    table = read_labels(path, ["sig=low+median,high", "age"])
    assert [(task.name, task.classes) for task in table.tasks] == [
        ("sig", ("low+median", "high")),
        ("age", ("50", "60", "70")),
    ]
    assert table.slides == ("a.svs", "b.svs", "c.svs", "d.svs")
    assert table.patients == ("P1", "P1", "P2", "P3")
    assert table.labels.tolist() == [[0, 1], [1, 1], [0, 2], [UNKNOWN, 0]]


def test_numbers_as_labels_are_in_the_order_of_numbers() -> None:
    values = [{"grade": value} for value in ("10", "2", "2", "3")]
    table = label_table(list("abcd"), [""] * 4, values, ["grade"])
    assert table.tasks[0].classes == ("2", "3", "10")


@pytest.mark.parametrize(
    ("text", "wanted", "words"),
    [
        ("case,label\nP,1\n", [], "columns case, label"),
        ("slide,a,b\ns,1,2\n", [], "2 columns that may be labels"),
        ("slide,label\ns,1\ns,0\n", [], "'s' in several rows"),
        ("slide,label\ns,1\nt,1\n", [], "only value '1'"),
        ("slide,label\ns,1\nt,2\nu,3\n", ["label=1,2"], "with the value '3'"),
        ("slide,label\ns,1\nt,2\n", ["grade"], "no slide has the label 'grade'"),
    ],
)
def test_labels_that_are_refused(tmp_path: Path, text: str, wanted: list[str], words: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_labels(path, wanted)


def test_bags_find_their_labels(tmp_path: Path) -> None:
    write_bags(tmp_path, two_kinds(3))
    table = label_table(["s001.svs", "s000", "zzz"], ["P", "", "Q"], [{"l": "a"}, {"l": "b"}, {"l": "a"}], ["l"])
    found, notes = label_bags(list_bags(tmp_path), table)
    assert [bag.name for bag in found.bags] == ["s001", "s000"]
    assert found.patients == ("P", "s000")
    assert found.labels.tolist() == [[0], [1]]
    assert "'s002'" in notes[0]
    assert "'zzz'" in notes[1]


def test_slides_that_differ_in_their_ending_only() -> None:
    find = row_finder(["a.svs", "a.tif", "b.svs", "c"])
    assert [find(name) for name in ("a.svs", "a.tif", "a", "b", "b.tif", "c.svs", "d")] == [0, 1, None, 2, 2, 3, None]


def test_bags_of_two_encoders_are_refused(tmp_path: Path) -> None:
    write_bags(tmp_path, two_kinds(1), encoder="one", encoder_sha256="aa")
    write_bag(tmp_path / "t.h5", np.zeros((2, 6), np.float32), attributes={"encoder": "two", "encoder_sha256": "aa"})
    table = label_table(["s000", "t"], ["", ""], [{"l": "a"}, {"l": "b"}], ["l"])
    with pytest.raises(ConfigError, match="of one encoder"):
        label_bags(list_bags(tmp_path), table)


# ---------------------------------------------------------------------- folds
def test_folds_keep_patients_together_and_classes_even() -> None:
    # 20 patients with two slides each; five of them positive
    patients = [f"P{i // 2}" for i in range(40)]
    labels = np.array([[int(i < 10)] for i in range(40)])
    folds = patient_folds(patients, labels, 5, seed=3)
    assert all(folds[i] == folds[i + 1] for i in range(0, 40, 2))
    assert np.bincount(folds).tolist() == [8] * 5
    assert np.bincount(folds, weights=labels[:, 0]).tolist() == [2] * 5
    assert not np.array_equal(folds, patient_folds(patients, labels, 5, seed=4))


def test_folds_do_not_depend_on_the_order() -> None:
    patients = list("ABCDEFGHIJ")
    labels = np.arange(10)[:, None] % 2
    folds = dict(zip(patients, patient_folds(patients, labels, 3, seed=0), strict=True))
    again = dict(zip(patients[::-1], patient_folds(patients[::-1], labels[::-1], 3, seed=0), strict=True))
    assert folds == again


def test_folds_of_several_labels() -> None:
    # 4 patients are positive for each of three labels, none for two; 4 folds get one of each
    labels = np.zeros((16, 3), dtype=np.int64)
    for task in range(3):
        labels[4 * task : 4 * task + 4, task] = 1
    labels[15, 0] = UNKNOWN
    folds = patient_folds([str(i) for i in range(16)], labels, 4, seed=1)
    for task in range(3):
        assert sorted(folds[4 * task : 4 * task + 4]) == [0, 1, 2, 3]


def test_more_folds_than_patients_are_refused() -> None:
    with pytest.raises(ConfigError, match="3 folds of 2 patients"):
        patient_folds(["A", "A", "B"], np.zeros((3, 1), np.int64), 3, seed=0)


def test_a_part_to_stop_by() -> None:
    patients = [str(i) for i in range(20)]
    labels = np.array([[int(i < 8)] for i in range(20)])
    part = validation_part(patients, labels, 0.25, seed=0)
    assert part.sum() == 5
    assert labels[part].sum() == 2
    assert validation_part(patients, labels, 0, seed=0).sum() == 0


def test_every_slide_is_predicted_once_by_others(tmp_path: Path) -> None:
    write_bags(tmp_path, two_kinds(12))
    bags = labelled(tmp_path, ["no", "yes"] * 6, [f"P{i // 2}" for i in range(12)])
    plan = FoldPlan(folds=3, repeats=2)
    met = np.zeros(12, dtype=int)
    for _, _, stop, held in plan.parts(bags):
        learnt = ~(stop | held)
        for patient in set(bags.patients):
            own = np.array([p == patient for p in bags.patients])
            assert sum(bool((part & own).any()) for part in (stop, held, learnt)) == 1
        assert stop.any()
        met += held
    assert met.tolist() == [2] * 12


# ---------------------------------------------------------------------- figures
def test_figures_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 2, 60)
    positive = np.round(rng.random(60) * 0.6 + truth * 0.3, 1)  # with ties
    patients = [str(i) for i in range(60)]
    found = figures(truth, np.stack([1 - positive, positive], axis=1), patients)
    assert found["AUROC"].value == pytest.approx(roc_auc_score(truth, positive))
    assert found["AUPRC"].value == pytest.approx(average_precision_score(truth, positive))
    guess = (positive > 0.5).astype(int)
    assert found["balanced accuracy"].value == pytest.approx(balanced_accuracy_score(truth, guess))
    assert found["AUROC"].low < found["AUROC"].value < found["AUROC"].high


def test_figures_of_three_classes_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 3, 90)
    scores = rng.dirichlet(np.ones(3), 90) + np.eye(3)[truth] * 0.3
    scores /= scores.sum(axis=1, keepdims=True)
    found = figures(truth, scores, [str(i) for i in range(90)], resamples=10)
    assert found["AUROC"].value == pytest.approx(roc_auc_score(truth, scores, multi_class="ovr", average="macro"))
    each = [average_precision_score(truth == k, scores[:, k]) for k in range(3)]
    assert found["AUPRC"].value == pytest.approx(np.mean(each))


def test_intervals_draw_patients_not_slides() -> None:
    # Ten slides of each of two patients are no more than the two patients: resampling slides would give 0.9 to 1
    truth = np.array([0, 1] * 10)
    positive = np.where(np.arange(20) < 10, truth, 1 - truth).astype(float)  # right for A, wrong for B
    found = figures(truth, np.stack([1 - positive, positive], axis=1), ["A"] * 10 + ["B"] * 10)
    assert found["AUROC"].value == 0.5
    assert (found["AUROC"].low, found["AUROC"].high) == (0.0, 1.0)


def test_draws_without_a_class_are_left_out() -> None:
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]])
    found = figures(np.array([0, 1, 1]), scores, list("ABC"), resamples=500)
    assert found["AUROC"].value == 1
    assert "draws undefined" in found["AUROC"].method
    assert np.isnan(figures(np.array([1, 1]), scores[1:], list("BC"))["AUROC"].value)


def test_repeats_are_judged_one_by_one() -> None:
    truth = np.array([0, 0, 1, 1])
    right, wrong = np.array([0.1, 0.2, 0.8, 0.9]), np.array([0.9, 0.8, 0.2, 0.1])
    models = np.stack([np.stack([1 - p, p], axis=1) for p in (right, wrong)])
    assert figures(truth, models, list("ABCD"))["AUROC"].value == 0.5  # the mean of 1 and 0; all scores tie on average


def test_unknown_labels_do_not_count() -> None:
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.0, 1.0]])
    assert figures(np.array([0, 1, UNKNOWN]), scores, list("ABC"), resamples=5)["AUROC"].value == 1


def test_a_table_of_predictions_and_back(tmp_path: Path) -> None:
    table = label_table(list("abcd"), list("PQRS"), [{"l": v} for v in ("no", "yes", "no", "")], ["l"])
    p = np.array([[0.8, 0.2], [0.3, 0.7], [0.4, 0.6], [0.5, 0.5]])
    rows = prediction_table(table.tasks, table.slides, table.patients, [p], labels=table.labels, kind="external")
    path = tmp_path / "p.csv"
    write_predictions(path, rows)
    (found,) = judge(read_predictions(path), resamples=10)
    assert (found["set"], found["slides"], found["patients"]) == ("external", 3, 3)
    assert found["AUROC"]["value"] == 1
    assert found["balanced accuracy"]["value"] == 0.75  # c is taken for a yes: (1/2 + 1) / 2
    other = label_table(list("ab"), ["", ""], [{"l": "yes"}, {"l": "no"}], ["l=no,yes"])
    (turned,) = judge(with_labels(read_predictions(path), other), resamples=10)
    assert (turned["slides"], turned["AUROC"]["value"]) == (2, 0)
    named = label_table(["a.svs", "b.svs"], ["", ""], [{"l": "yes"}, {"l": "no"}], ["l=no,yes"])
    assert with_labels(rows, named)["label l"].tolist() == ["yes", "no", "", ""]
    with pytest.raises(ConfigError, match="cannot be written"):
        write_predictions(tmp_path / "none" / "p.csv", rows)
    with pytest.raises(ConfigError, match="label 'l' with the classes"):
        with_labels(rows, label_table(list("ab"), ["", ""], [{"l": "1"}, {"l": "0"}], ["l"]))
    path.write_text("slide,p\n1,2\n")
    with pytest.raises(ConfigError, match="no column 'set'"):
        read_predictions(path)


# ---------------------------------------------------------------------- reading and training
def test_a_reader_lays_bags_end_to_end(tmp_path: Path) -> None:
    bags = two_kinds(4)
    write_bags(tmp_path, bags)
    reader = BagReader(list_bags(tmp_path), memory=0, threads=2)
    first, second = list(reader.batches([[2, 0], [3]]))
    np.testing.assert_array_equal(first.instances, np.concatenate([bags[2], bags[0]]))
    assert first.offsets is not None
    assert first.offsets.tolist() == [0, len(bags[2]), len(bags[2]) + len(bags[0])]
    assert second.offsets is None
    np.testing.assert_array_equal(second.instances, bags[3])


def test_a_reader_keeps_no_more_than_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bags(tmp_path, [np.ones((10, 8), np.float32)] * 4)  # 320 bytes each
    files = list_bags(tmp_path)
    reader = BagReader(files, memory=700, threads=1)
    list(reader.batches([[0], [1], [2], [3]]))
    for path in tmp_path.iterdir():
        path.unlink()
    assert len(list(reader.batches([[0], [1]]))) == 2  # from memory
    with pytest.raises(ConfigError):
        list(reader.batches([[2]]))


def test_features_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    write_bags(tmp_path, [np.array([[1.0, np.nan]], np.float32)])
    with pytest.raises(ConfigError, match="no finite number"):
        list(BagReader(list_bags(tmp_path), memory=0, threads=1).batches([[0]]))


def test_class_weights_have_a_mean_of_one(tmp_path: Path) -> None:
    write_bags(tmp_path, two_kinds(4))
    (weights,) = class_weights(labelled(tmp_path, ["a", "b", "b", "b"]), "balanced")
    assert weights is not None
    assert weights.tolist() == pytest.approx([2.0, 2 / 3])  # 4 / (2 * 1), 4 / (2 * 3)


def test_a_bag_alone_in_its_batch_is_weighted(tmp_path: Path) -> None:
    model = build_slide_model("mean", 3, [2], scaled=False)
    bag, truth = torch.ones(2, 3), torch.tensor([[1]])
    plain = model.loss(bag, None, truth, [None])
    weighted = model.loss(bag, None, truth, [torch.tensor([0.5, 3.0])])
    assert plain is not None
    assert weighted is not None
    assert weighted.item() == pytest.approx(3 * plain.item(), rel=1e-5)


def test_unknown_labels_of_a_batch_are_left_out() -> None:
    torch.manual_seed(0)
    model = build_slide_model("abmil", 3, [2, 3], scaled=False)
    a, b = torch.randn(4, 3), torch.randn(2, 3)
    both = model.loss(torch.cat([a, b]), torch.tensor([0, 4, 6]), torch.tensor([[1, UNKNOWN], [0, 2]]), [None, None])
    first = [model.loss(x, None, torch.tensor([[y, UNKNOWN]]), [None, None]) for x, y in ((a, 1), (b, 0))]
    second = model.loss(b, None, torch.tensor([[UNKNOWN, 2]]), [None, None])
    assert both is not None
    assert second is not None
    expected = sum(one.item() for one in first if one is not None) / 2 + second.item()
    assert both.item() == pytest.approx(expected, rel=1e-5)
    assert model.loss(a, None, torch.tensor([[UNKNOWN, UNKNOWN]]), [None, None]) is None


def test_features_are_scaled_over_all_instances(tmp_path: Path) -> None:
    bags = [np.array([[1e4, 5.0], [1e4 + 2, 5.0]], np.float32), np.array([[1e4 + 4, 5.0]], np.float32)]
    write_bags(tmp_path, bags)
    fitted = fit(labelled(tmp_path, ["a", "b"]), None, dataclasses.replace(QUICK, epochs=1))
    seen = fitted.model._seen(torch.from_numpy(np.concatenate(bags)))
    # mean 10002, deviation sqrt(8 / 3); the second feature never varies
    np.testing.assert_allclose(seen[:, 0], np.array([-2, 0, 2]) / np.sqrt(8 / 3), atol=2e-3)
    np.testing.assert_allclose(seen[:, 1], 0, atol=1e-6)


def test_it_learns_and_stops(tmp_path: Path) -> None:
    write_bags(tmp_path, two_kinds(40))
    bags = labelled(tmp_path, ["no", "yes"] * 20)
    settings = FitSettings(head="max", learning_rate=0.05, epochs=30, patience=3)
    fitted = fit(bags.take(np.arange(30)), bags.take(np.arange(30, 40)), settings)
    assert fitted.epochs[-1].loss < fitted.epochs[0].loss / 2
    losses = [row.validation for row in fitted.epochs]
    assert fitted.best == 1 + int(np.argmin(np.array(losses, dtype=float)))
    assert len(losses) in (30, fitted.best + 3)
    (p,) = probabilities(fitted.model, bags, settings)
    assert p.shape == (40, 2)
    assert roc_auc_score([0, 1] * 20, p[:, 1]) > 0.95


def test_killed_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyhisto.mil.train, "CHECKPOINT_S", 0.0)
    write_bags(tmp_path / "bags", two_kinds(12))
    bags = labelled(tmp_path / "bags", ["no", "yes"] * 6)
    settings = FitSettings(head="abmil", options=HeadSettings(dropout=0.3, hidden=8), learning_rate=0.01, epochs=6)
    parts = bags.take(np.arange(8)), bags.take(np.arange(8, 12))

    class Killed(Exception):
        pass

    def kill(row: Epoch) -> None:
        if row.number == 4:
            raise Killed

    with pytest.raises(Killed):
        fit(*parts, settings, folder=tmp_path / "fold", report=kill)
    seen: list[int] = []
    resumed = fit(*parts, settings, folder=tmp_path / "fold", report=lambda row: seen.append(row.number))
    assert seen == [4, 5, 6]
    whole = fit(*parts, settings)
    assert resumed.epochs == whole.epochs
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], value, rtol=0, atol=0)
    again: list[int] = []
    fit(
        *parts, dataclasses.replace(settings, seed=1), folder=tmp_path / "fold", report=lambda r: again.append(r.number)
    )
    assert again[0] == 1  # a checkpoint of another training is not used


def test_one_class_in_the_training_is_refused(tmp_path: Path) -> None:
    write_bags(tmp_path, two_kinds(4))
    bags = labelled(tmp_path, ["a", "a", "b", "b"])
    with pytest.raises(TrainingError, match="have a; expected two classes"):
        fit(bags.take(np.array([0, 1])), None, QUICK)


def test_a_loss_that_is_no_number_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bags(tmp_path, two_kinds(4))
    monkeypatch.setattr(pyhisto.mil.train, "class_weights", lambda *_: [torch.full((2,), torch.nan)])
    with pytest.raises(TrainingError, match="the loss became nan"):
        fit(labelled(tmp_path, ["a", "b"] * 2), None, QUICK)


def test_external_slides_of_the_same_patients_are_refused(tmp_path: Path) -> None:
    write_bags(tmp_path, two_kinds(8))
    bags = labelled(tmp_path, ["no", "yes"] * 4)
    with pytest.raises(ConfigError, match="8 patients are in both"):
        cross_validate(bags, FoldPlan(folds=2), QUICK, folder=tmp_path / "out", external=bags)


# ---------------------------------------------------------------------- on disk
def saved_model(folder: Path, bags: LabelledBags, settings: FitSettings = QUICK) -> Path:
    first = bags.bags[0]
    spec = SlideSpec(bags.tasks, settings.head, settings.options, first.width, first.encoder, first.encoder_sha256)
    fitted = fit(bags, None, settings)
    save_slide_bundle(folder, [fitted.model], spec, golden=first.features, description="A test.")
    return folder


def test_a_model_on_disk_and_back(tmp_path: Path) -> None:
    write_bags(tmp_path / "bags", two_kinds(8), encoder="e", encoder_sha256="aa")
    bags = labelled(tmp_path / "bags", ["no", "yes"] * 4)
    settings = FitSettings(head="abmil", options=HeadSettings(attention=16), epochs=2, learning_rate=0.01)
    fitted = fit(bags, None, settings)
    spec = SlideSpec(bags.tasks, "abmil", settings.options, 6, "e", "aa", members=2)
    members = [fitted.model, fitted.model]
    golden = bags.bags[0].features
    save_slide_bundle(tmp_path / "model", members, spec, golden=golden, description="A test.")
    bundle = load_slide_bundle(tmp_path / "model")
    assert bundle.spec == spec
    (said,) = bundle.predict(bags.bags[3].features)
    (expected,) = probabilities(fitted.model, bags, settings)
    np.testing.assert_allclose(said.probabilities, expected[3], atol=1e-6)
    assert said.attention.sum() == pytest.approx(1, abs=1e-5)
    assert said.attention.shape == (bags.bags[3].instances,)
    bundle.check(bags.bags[0])
    stranger = tmp_path / "other.h5"
    write_bag(stranger, golden, attributes={"encoder": "e", "encoder_sha256": "bb"})
    with pytest.raises(BundleError, match=r"6 features of e \(bb\); expected 6 of e \(aa\)"):
        bundle.check(read_bag(stranger))
    with pytest.raises(BundleError, match="judges whole slides"):
        read_spec(tmp_path / "model")


def test_damaged_models_are_refused(tmp_path: Path) -> None:
    write_bags(tmp_path / "bags", two_kinds(4))
    folder = saved_model(tmp_path / "model", labelled(tmp_path / "bags", ["a", "b"] * 2))
    metadata = folder / "configs" / "metadata.json"
    content = json.loads(metadata.read_text("utf-8"))
    golden = dict(np.load(folder / "models" / "golden.npz"))
    golden["probabilities"] = golden["probabilities"][::-1]
    np.savez_compressed(folder / "models" / "golden.npz", **golden)
    with pytest.raises(BundleError, match="golden bag"):
        load_slide_bundle(folder)
    with (folder / "models" / "model.pt").open("ab") as file:
        file.write(b"x")
    with pytest.raises(BundleError, match="damaged or exchanged"):
        load_slide_bundle(folder)
    content["pyhisto"]["model"]["head"] = "none such"
    content["pyhisto"]["model"]["kind"] = "tissue_segmentation"
    metadata.write_text(json.dumps(content), "utf-8")
    with pytest.raises(BundleError, match="a model for tissue_segmentation"):
        load_slide_bundle(folder)
    with pytest.raises(BundleError, match="no model for slide labels"):
        load_slide_bundle(tmp_path)


# ---------------------------------------------------------------------- digits
def digits(folder: Path, count: int, size: int, **options: object) -> tuple[float, float]:
    """Return the AUROC of bags of other digits, and the mean attention on the nines of the positive ones."""
    bags, _ = digit_bags(count, size, digits=slice(0, 1200), seed=1)
    others, nines = digit_bags(100, size, digits=slice(1200, None), seed=2)
    training = labelled(write_bags(folder / "training", bags), ["no", "yes"] * (count // 2))
    test = labelled(write_bags(folder / "test", others), ["no", "yes"] * 50)
    settings = FitSettings(**options)  # type: ignore[arg-type]
    model = fit(training, None, settings).model
    (p,) = probabilities(model, test, settings)
    mass = []
    with torch.inference_mode():
        for number in range(1, 100, 2):
            attention = model(torch.from_numpy(others[number]))[0].attention
            attention = attention if attention.ndim == 1 else attention[:, 1]
            mass.append(float(attention[torch.from_numpy(nines[number])].sum()))
    return float(roc_auc_score([0, 1] * 50, p[:, 1])), float(np.mean(mass))


def test_attention_finds_the_nines(tmp_path: Path) -> None:
    small = HeadSettings(hidden=64, attention=32)
    auroc, mass = digits(tmp_path, 200, 10, head="abmil", options=small, learning_rate=5e-3, epochs=10, batch_size=4)
    assert auroc >= 0.9
    assert mass >= 0.7


@pytest.mark.slow
@pytest.mark.parametrize("size", [10, 50, 200])
@pytest.mark.parametrize("head", ["abmil", "attention", "clam-sb"])
def test_attention_heads_on_digit_bags(tmp_path: Path, head: str, size: int) -> None:
    auroc, mass = digits(tmp_path, 500, size, head=head, learning_rate=1e-3, epochs=15, batch_size=4)
    assert auroc >= 0.95
    assert mass >= 0.8
