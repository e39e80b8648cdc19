"""The pictures of the README: what is there, and what draws them."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["before.png", "after.png"]


def read(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def outlined(rgb, color, tolerance):
    """Return how many pixels are of a colour, give or take what casing and palette do to thin lines."""
    return int((np.abs(rgb - color).max(axis=-1) <= tolerance).sum())


def check(folder):
    before, after = (read(folder / name) for name in NAMES)
    assert before.shape == after.shape == (360, 480, 3)
    assert all((folder / name).stat().st_size < 150_000 for name in NAMES)
    # the outline is some 900 px around and two wide: yellow while it is selected, then of QuPath's colour of Tumor
    yellow, red = (255, 255, 0), (200, 0, 0)
    assert outlined(before, yellow, 90) > 900 > 50 > outlined(after, yellow, 90)
    assert outlined(after, red, 40) > 900 > 50 > outlined(before, red, 40)
    # nothing is drawn above and to the right of it; the palettes differ a little
    assert all(np.abs(before[part] - after[part]).mean() < 3 for part in (np.s_[:40], np.s_[:, 410:]))


def test_the_pictures_of_the_readme_are_there():
    shown = re.findall(r"\]\((docs/pictures/[^)]+)\)", (ROOT / "README.md").read_text("utf-8"))
    assert shown == [f"docs/pictures/{name}" for name in NAMES]
    assert sorted(path.name for path in (ROOT / "docs/pictures").iterdir()) == sorted(NAMES)
    check(ROOT / "docs/pictures")


@pytest.mark.slow
def test_the_script_draws_them(tmp_path):
    spec = importlib.util.spec_from_file_location("pictures", ROOT / "scripts/pictures.py")
    pictures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pictures)
    assert pictures.main(tmp_path / "new") == [tmp_path / "new" / name for name in NAMES]
    check(tmp_path / "new")
