"""Splits by patient: the same lot for everybody, frozen in a file, and no slide on both sides."""

from __future__ import annotations

import itertools
import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_cases import image_of

from pyhisto.dataset import Split, check_leakage, extend_split, make_split, read_split, write_split
from pyhisto.errors import ConfigError, TrainingError

PATIENTS = [f"P{number:03}" for number in range(100)]
FIFTHS: dict[Any, float] = {"validation": 0.2, "test": 0.2}


def sizes(split: Split) -> list[int]:
    return [len(split.of_part(part)) for part in ("train", "validation", "test")]


def test_fractions_are_kept() -> None:
    assert sizes(make_split(PATIENTS, fractions=FIFTHS, seed=0)) == [60, 20, 20]
    assert sizes(make_split(PATIENTS[:7], fractions={"validation": 0.25}, seed=0)) == [5, 2, 0]
    assert make_split(PATIENTS, fractions=FIFTHS, seed=0).fractions == {"train": 0.6, "validation": 0.2, "test": 0.2}


@pytest.mark.parametrize(
    ("patients", "expected"), [(1, [1, 0, 0]), (2, [1, 1, 0]), (3, [1, 1, 1]), (4, [2, 1, 1]), (5, [3, 1, 1])]
)
@pytest.mark.parametrize("fraction", [0.2, 0.01])
def test_few_patients_leave_no_part_empty(patients: int, expected: list[int], fraction: float) -> None:
    for seed in range(10):
        split = make_split(PATIENTS[:patients], fractions={"validation": fraction, "test": fraction}, seed=seed)
        assert sizes(split) == expected
        assert sizes(make_split(PATIENTS[:patients], fractions={"validation": fraction}, seed=seed))[1] == (
            patients > 1
        )


def test_the_lot_depends_on_seed_and_names_alone() -> None:
    split = make_split(PATIENTS, fractions=FIFTHS, seed=3)
    shuffled = PATIENTS * 2
    random.Random(1).shuffle(shuffled)
    assert make_split(shuffled, fractions=FIFTHS, seed=3) == split
    assert make_split(PATIENTS, fractions=FIFTHS, seed=4).patients != split.patients
    # sha256sum of "0 patient D", then B, A, E, C come in this order; dealt by hand
    lot = {"D": "train", "B": "validation", "A": "train", "E": "test", "C": "train"}
    assert make_split("ABCDE", fractions=FIFTHS, seed=0).patients == lot


def test_every_patient_is_drawn_alike() -> None:
    counts: Counter[str] = Counter()
    for seed in range(300):
        counts.update(make_split(PATIENTS[:10], fractions=FIFTHS, seed=seed).of_part("test"))
    assert sum(counts.values()) == 600
    assert min(counts.values()) > 35
    assert max(counts.values()) < 90


def test_strata_are_divided_alike() -> None:
    strata = {patient: "rare" if number < 10 else "common" for number, patient in enumerate(PATIENTS)}
    for seed in range(10):
        split = make_split(PATIENTS, fractions=FIFTHS, seed=seed, strata=strata)
        assert sizes(split) == [60, 20, 20]
        rare = Counter(part for patient, part in split.patients.items() if strata[patient] == "rare")
        assert rare == {"train": 6, "validation": 2, "test": 2}


def test_single_patients_of_many_strata_are_divided_too() -> None:
    for seed in range(10):
        split = make_split(PATIENTS, fractions=FIFTHS, seed=seed, strata={patient: patient for patient in PATIENTS})
        assert sizes(split) == [60, 20, 20]


def test_a_patient_without_stratum_is_an_error() -> None:
    with pytest.raises(ConfigError, match="patient 'P001' has no stratum"):
        make_split(PATIENTS[:2], fractions=FIFTHS, seed=0, strata={"P000": "a"})


def test_extending_moves_nobody() -> None:
    first = make_split(PATIENTS[:40], fractions=FIFTHS, seed=1)
    longer = extend_split(first, PATIENTS)
    assert {patient: longer.patients[patient] for patient in PATIENTS[:40]} == first.patients
    assert sizes(longer) == [60, 20, 20]
    assert (longer.seed, longer.fractions) == (first.seed, first.fractions)
    assert extend_split(longer, PATIENTS[:3]) == longer


def test_extending_fills_what_is_behind() -> None:
    """Of 8 in training and 2 in validation, five more and a fifth for testing: 2 new ones test."""
    first = Split({**dict.fromkeys(PATIENTS[:8], "train"), "A": "validation", "B": "validation"}, 0, FIFTHS)
    assert sizes(extend_split(first, PATIENTS[:13])) == [9, 3, 3]


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ({"validation": 1.0}, "leaving some for training"),
        ({"validation": 0.5, "test": 0.6}, "leaving some for training"),
        ({"validation": -0.1}, "0 or more each"),
        ({"validation": float("nan")}, "0 or more each"),
        ({"dev": 0.1}, "fraction of 'dev'; expected one of train, validation, test"),
        ({"train": 0.5, "validation": 0.2}, "expected a sum of 1"),
    ],
)
def test_fractions_that_are_none_are_refused(fractions: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_split(PATIENTS, fractions=fractions, seed=0)


@pytest.mark.parametrize(("patients", "message"), [([], "no patient to divide"), (["A", " "], "patient ' ' in part")])
def test_patients_need_names(patients: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_split(patients, fractions=FIFTHS, seed=0)


def test_a_split_is_frozen_in_a_file(tmp_path: Path) -> None:
    split = make_split(["Müller", "B", "C", "D", "E"], fractions=FIFTHS, seed=7)
    path = tmp_path / "split.json"
    write_split(path, split)
    assert read_split(path) == split
    content = json.loads(path.read_text("utf-8"))
    assert (content["version"], content["seed"]) == (1, 7)
    assert sorted(itertools.chain(*content["patients"].values())) == ["B", "C", "D", "E", "Müller"]
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"split\.json exists already"):
        write_split(path, make_split("XYZ", fractions=FIFTHS, seed=1))
    assert path.read_bytes() == before
    write_split(path, extend_split(split, ["F"]), overwrite=True)
    assert set(read_split(path).patients) == {"Müller", "B", "C", "D", "E", "F"}
    assert [file.name for file in tmp_path.iterdir()] == ["split.json"]
    with pytest.raises(ConfigError, match="cannot be written"):
        write_split(tmp_path / "none" / "split.json", split)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "of version 2; expected version 1"),
        ({"patients": {"train": ["A"], "validation": ["A"], "test": []}}, "patient 'A' occurs twice"),
        ({"patients": {"train": ["A"], "dev": []}}, "parts .'dev', 'train'.; expected train, validation, test"),
        ({"patients": {"train": "AB", "validation": [], "test": [1]}}, "is damaged"),
        ({"patients": None}, "is damaged"),
        ({"fractions": {"validation": "many"}}, "is damaged"),
        ({"seed": None}, "is damaged"),
    ],
)
def test_a_damaged_split_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "split.json"
    write_split(path, make_split("ABC", fractions=FIFTHS, seed=0))
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ConfigError, match=message):
        read_split(path)


@pytest.mark.parametrize(
    ("content", "message"), [(b"{", "is no JSON"), (b"\xff", "is no JSON"), (b"[]", "of version None")]
)
def test_a_file_that_is_no_split_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "split.json").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_split(tmp_path / "split.json")
    with pytest.raises(ConfigError, match=r"other\.json cannot be read .* make it first"):
        read_split(tmp_path / "other.json")


def test_the_part_of_a_patient() -> None:
    split = Split({"A": "test"}, 0, FIFTHS)
    assert split.part_of("A") == "test"
    with pytest.raises(TrainingError, match=r"patient 'B' is in no part of the split; .* extend the split"):
        split.part_of("B")


@pytest.fixture
def slides(tmp_path: Path, write_tiff: Callable[..., Path]) -> list[Path]:
    """Three slides of the same size in bytes; the first two differ in one pixel in the middle, the third has a copy."""
    pixels = np.random.default_rng(0).integers(0, 255, (512, 512, 3), dtype=np.uint8)
    path = write_tiff(tmp_path / "a.tif", [pixels])
    content = bytearray(path.read_bytes())
    content[len(content) // 4] ^= 1
    (tmp_path / "b.tif").write_bytes(content)
    (tmp_path / "other").mkdir()
    shutil.copy(path, tmp_path / "other" / "renamed.tif")
    return [path, tmp_path / "b.tif", tmp_path / "other" / "renamed.tif"]


def test_no_leak(slides: list[Path]) -> None:
    check_leakage([])
    check_leakage([
        image_of(path=slides[0], patient="1", part="train"),
        image_of(path=slides[2], patient="1", part="train"),
        image_of(path=slides[1], patient="2", part="test"),
        image_of(path=Path("gone.tif"), part="validation"),
    ])  # fmt: skip


def test_a_patient_in_two_parts_is_a_leak(slides: list[Path]) -> None:
    images = [
        image_of(path=slides[0], name="one", patient="Ann  Lee", part="train"),
        image_of(path=slides[1], name="two", patient="Ann Lee ", part="test"),
    ]
    with pytest.raises(TrainingError, match=r"patient 'Ann Lee' is in the parts train \(one\) and test \(two\)"):
        check_leakage(images)


def test_a_slide_in_two_parts_is_a_leak(slides: list[Path], tmp_path: Path) -> None:
    link = tmp_path / "link.tif"
    link.symlink_to(slides[1])
    images = [image_of(path=slides[1], patient="1"), image_of(path=link, patient="2", part="validation", series=1)]
    with pytest.raises(TrainingError, match=r"slide link.tif is in the parts train \(b.tif\) and validation"):
        check_leakage(images)


def test_a_copy_of_a_slide_in_another_part_is_a_leak(slides: list[Path]) -> None:
    images = [image_of(path=path, patient=str(n), part="test" if n else "train") for n, path in enumerate(slides)]
    check_leakage(images[:2])
    with pytest.raises(TrainingError, match=r"the slide of renamed.tif is in the parts train \(a.tif\) and test"):
        check_leakage(images)
