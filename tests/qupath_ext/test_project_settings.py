"""The settings of a project: defaults, what a person wrote, and what commands change in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyhisto.errors import ConfigError
from qupath_ext.projectsettings import ProjectSettings, change_settings, model_folder, read_settings, settings_file


def write(project: Path, text: str) -> Path:
    path = settings_file(project)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_a_project_without_settings_has_the_defaults(tmp_path: Path) -> None:
    assert read_settings(tmp_path / "project.qpproj") == ProjectSettings()
    assert ProjectSettings().cell_expansion_um == 5.0


def test_settings_are_found_by_folder_and_by_file(tmp_path: Path) -> None:
    write(tmp_path, 'tumour = "models/ä"\ncell_expansion_um = 3\n')
    for project in (tmp_path, tmp_path / "project.qpproj"):
        settings = read_settings(project)
        assert (settings.tumour, settings.cell_expansion_um) == ("models/ä", 3.0)
        assert model_folder(project, "models/ä") == tmp_path / "models" / "ä"
        assert model_folder(project, "/data/model") == Path("/data/model")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('tumor = "x"', "unknown key 'tumor'; expected one of tumour, cells"),
        ("tumour = 3", "tumour is 3"),
        ("cell_expansion_um = -1", "expected 0 to 50 µm"),
        ("tumour =", "expected TOML in UTF-8"),
    ],
)
def test_a_mistake_in_the_settings_is_an_error_that_names_the_file(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as error:
        read_settings(tmp_path)
    assert str(path) in str(error.value)
    with pytest.raises(ConfigError):
        change_settings(tmp_path, device="cuda")
    assert path.read_text("utf-8") == text


def test_a_change_leaves_the_rest_and_its_comments(tmp_path: Path) -> None:
    path = write(tmp_path, '# of the ward\ndevice = "cuda"  # the big one\ncells = "old"\n')
    change_settings(tmp_path, tumour="C:\\models\\Ä", cells=None)
    assert path.read_text("utf-8") == '# of the ward\ndevice = "cuda"  # the big one\ntumour = "C:\\\\models\\\\Ä"\n'
    assert read_settings(tmp_path) == ProjectSettings(tumour="C:\\models\\Ä", device="cuda")


def test_a_wrong_change_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown key 'speed'"):
        change_settings(tmp_path, speed=3)
    with pytest.raises(ConfigError, match="0 to 50"):
        change_settings(tmp_path, cell_expansion_um=51.0)
    assert not settings_file(tmp_path).exists()
