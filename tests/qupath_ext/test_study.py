"""The study file: every setting is read, nothing is guessed."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyhisto.errors import ConfigError
from qupath_ext.resources import study_file
from qupath_ext.study import Study, load_study

SHIPPED = Path(__file__).parents[2] / "projects" / "ki67" / "study.toml"


def changed(tmp_path: Path, old: str, new: str) -> Path:
    text = SHIPPED.read_text("utf-8")
    assert text.count(old) >= 1
    path = tmp_path / "study.toml"
    path.write_text(text.replace(old, new, 1), "utf-8")
    return path


def test_the_shipped_study_loads() -> None:
    study = load_study(study_file("ki67"))
    assert study == load_study(SHIPPED)
    assert isinstance(study, Study)
    assert (study.tumour.mpp, study.tumour.tile_size, study.cells.tile_size) == (0.5, 256, 256)
    assert {"threshold", "reach_um", "core_um"} <= set(study.cells.postprocessing)
    assert study.tumour_task.tumour == "Tumor"


def test_a_changed_value_arrives(tmp_path: Path) -> None:
    path = changed(tmp_path, "training = 3", "training = 5")
    assert load_study(path).slides.training == 5


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seed = 0", "sead = 0", "unknown key 'sead'"),
        ("learning_rate", "learning_rat", "unknown key 'learning_rat'"),
        ("seed = 0", 'seed = "zero"', r"seed is 'zero'; expected a value of the type int"),
        ("batch_size = 8", "batch_size = 1.5", r"batch_size is 1\.5"),
        ("[tumour]\n", "[tumour]\ndecoder_channels = 16\n", "decoder_channels is 16; expected a list"),
        ('architecture = "unet-densenet121"\n', "", "architecture"),
        ("seed = 0", "seed = ", "is no TOML"),
    ],
)
def test_a_wrong_file_is_one_clear_error(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_study(changed(tmp_path, old, new))
    assert "\n" not in str(caught.value)
    assert "study.toml" in str(caught.value)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_bytes(b"seed = 0 # \xff\xfe")
    with pytest.raises(ConfigError, match="is no TOML"):
        load_study(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_study(tmp_path / "none.toml")
