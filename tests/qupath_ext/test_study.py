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
    assert (study.tumour.model.mpp, study.tumour.model.tile_size, study.cells.model.mpp) == (1.0, 128, 0.5)
    assert {"threshold", "reach_um", "core_um"} <= set(study.cells.postprocessing)
    assert study.tumour.classes == ("Tumor",)


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
        ("[tumour.model]\n", "[tumour.model]\ndecoder_channels = 16\n", "decoder_channels is 16; expected a list"),
        ('architecture = "unet-densenet121"\n', 'architecture = "unet"\n', "unknown model 'unet'; expected one of att"),
        ("tile_size = 128", "tile_size = 100", "100 px"),
        ("overlap = 16", "overlap = 64", "overlap = 64 px; expected from 0 to less than half of tile_size"),
        ('kind = "tissue"\n', "", "kind"),
        ('classes = ["Tumor"]', "classes = []", r"tumour: classes = \[\]"),
        ("reach_um = 7.0", "reech_um = 7.0", "unknown key 'reech_um'"),
        ("reach_um = 7.0", "reach_um = true", "reach_um is True"),
        ("[cells.training]", "[cells.training]\npatience = -1", "patience = -1"),
        ("[cells.training]", "[cells.training.loss]\nname = 'dice-ce2'\n[cells.training]", "name is 'dice-ce2'"),
        (
            "[cells.training]",
            "[cells.training.loss]\nname = 'boundary-cross-entropy'\n[cells.training]",
            "boundary weights",
        ),
        ("[cells.training]", "[cells.boundary]\n[cells.training]", "the loss boundary-cross-entropy"),
        ("[cells.training]", "[cells.augmentation]\nhues = 1.0\n[cells.training]", "unknown key 'hues'"),
        ("[cells.training]", "[cells.sampling]\nbalance = 'slide'\n[cells.training]", "balance is 'slide'"),
        ("membrane_um = 2.0", "membrane_um = 0.0", "membrane_um 0"),
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
