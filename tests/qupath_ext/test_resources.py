from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from pyhisto.errors import ConfigError
from qupath_ext import resources
from qupath_ext.resources import scripts_folder, study_file

ROOT = Path(__file__).resolve().parents[2]


def test_a_study_that_comes_with_the_program_is_found() -> None:
    path = study_file("ki67")
    assert path.parts[-2:] == ("ki67", "study.toml")
    assert "tumour" in tomllib.loads(path.read_text("utf-8"))


def test_the_scripts_are_found() -> None:
    assert (scripts_folder() / "README.md").is_file()


def test_an_unknown_study_is_named_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="unknown study 'her2'; expected one of cascade, deepliif, ki67, nucls"):
        study_file("her2")


def test_the_folders_of_a_wheel_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "qupath_ext"
    for folder in (package / "studies/mine", tmp_path / "projects/other"):
        folder.mkdir(parents=True)
        (folder / "study.toml").touch()
    monkeypatch.setattr(resources, "_PACKAGE", package)
    assert study_file("mine") == package / "studies/mine/study.toml"
    with pytest.raises(ConfigError, match="unknown study 'other'"):
        study_file("other")


def test_without_the_folders_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "_PACKAGE", tmp_path / "qupath_ext")
    with pytest.raises(ConfigError, match="install qupath-ext again"):
        scripts_folder()


def test_the_wheel_puts_the_folders_where_they_are_looked_for() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    included = settings["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included == {"scripts": "qupath_ext/scripts", "projects": "qupath_ext/studies"}
