"""``qupath-ext split``: patients to parts, once."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from training_projects import make_project

from qupath_ext.cli import main


def split(*words: Any) -> Result:
    return CliRunner().invoke(main, ["split", *map(str, words)])


def patients(path: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = json.loads(path.read_text("utf-8"))["patients"]
    return found


def counts(path: Path) -> dict[str, int]:
    return {part: len(names) for part, names in patients(path).items()}


@pytest.fixture(scope="module")
def two_projects(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Five patients in all: A with three slides in both projects, one slide without a patient."""
    folder = tmp_path_factory.mktemp("split")
    one = make_project(folder / "one", ("A", "A", "B", "C"), Set=("train", "train", "held-out", "val"))
    two = make_project(folder / "two", ("A", "D", ""))
    return one.path.parent, two.path.parent


def test_patients_of_several_projects_are_divided(tmp_path: Path, two_projects: tuple[Path, Path]) -> None:
    path = tmp_path / "new" / "split.json"
    result = split(*two_projects, "-o", path, "--patient-key", "Patient")
    assert result.exit_code == 0, result.output
    assert counts(path) == {"train": 3, "validation": 1, "test": 1}
    assert sorted(chain(*patients(path).values())) == ["A", "B", "C", "D", "two-2.tif"]
    assert "3 patients" in result.stdout
    assert "split      " in result.stdout


def test_without_a_key_each_slide_is_a_patient(tmp_path: Path, two_projects: tuple[Path, Path]) -> None:
    path = tmp_path / "split.json"
    assert split(two_projects[0], "-o", path, "--test", "0", "--validation", "0.25").exit_code == 0
    assert counts(path) == {"train": 3, "validation": 1, "test": 0}
    assert sorted(chain(*patients(path).values())) == [f"one-{n}.tif" for n in range(4)]


def test_a_part_named_in_the_metadata_is_taken(tmp_path: Path, two_projects: tuple[Path, Path]) -> None:
    path = tmp_path / "split.json"
    result = split(two_projects[0], "-o", path, "--patient-key", "Patient", "--part-key", "Set")
    assert result.exit_code == 0, result.output
    assert patients(path) == {"train": ["A"], "validation": ["C"], "test": ["B"]}


def test_a_split_is_frozen_but_can_be_extended(tmp_path: Path, two_projects: tuple[Path, Path]) -> None:
    path = tmp_path / "split.json"
    assert split(two_projects[0], "-o", path, "--patient-key", "Patient").exit_code == 0
    before = patients(path)
    again = split(*two_projects, "-o", path, "--patient-key", "Patient")
    assert again.exit_code == 2
    assert again.stderr.splitlines()[-1].endswith("exists already; expected a new file; add to it with --extend")
    assert patients(path) == before
    assert split(*two_projects, "-o", path, "--patient-key", "Patient", "--extend").exit_code == 0
    after = patients(path)
    assert sum(len(names) for names in after.values()) == 5
    assert all(set(names) <= set(after[part]) for part, names in before.items())


def test_values_are_divided_alike(tmp_path: Path) -> None:
    """Four patients of each of two kinds, half of them for testing: two of each kind."""
    kinds = ("x", "y") * 4
    project = make_project(tmp_path / "p", [f"{kind}{n}" for n, kind in enumerate(kinds)], Kind=kinds)
    path = tmp_path / "split.json"
    words = ("--patient-key", "Patient", "--stratify", "Kind", "--validation", "0", "--test", "0.5")
    assert split(project.path, "-o", path, *words).exit_code == 0
    assert sorted(name[0] for name in patients(path)["test"]) == ["x", "x", "y", "y"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--patient-key", "Patiant"], "no image has the metadata 'Patiant'"),
        (["--part-key", "Nothing"], "has no metadata 'Nothing'"),
        (["--part-key", "Patient"], "has Patient = 'A'"),
        (["--patient-key", "Patient", "--stratify", "Set", "--part-key", "Set"], "either --stratify or --part-key"),
        (["--validation", "0.6", "--test", "0.5"], "fractions"),
        (["--extend"], "cannot be read"),
    ],
)
def test_what_cannot_be_done_writes_nothing(
    tmp_path: Path, two_projects: tuple[Path, Path], words: list[str], message: str
) -> None:
    result = split(two_projects[0], "-o", tmp_path / "new" / "split.json", *words)
    assert result.exit_code == 2
    assert message in result.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_patient_in_two_parts_is_refused(tmp_path: Path) -> None:
    project = make_project(tmp_path / "p", ("A", "A"), Set=("train", "test"))
    result = split(project.path, "-o", tmp_path / "split.json", "--patient-key", "Patient", "--part-key", "Set")
    assert result.exit_code == 2
    assert "images of the patient 'A' have Set = 'train' and 'test'" in result.stderr
