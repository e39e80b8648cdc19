import pytest

from pyhisto.classes import CLASS_COLORS
from qupath_ext.native.classcolors import class_color
from qupath_ext.project import pack_rgb
from qupath_ext.workflows.ki67 import CLASSES


@pytest.mark.parametrize(
    ("name", "rgb"),
    [
        # QuPath's own
        ("Tumor", (200, 0, 0)),
        ("Stroma", (150, 200, 150)),
        ("Immune cells", (160, 90, 160)),
        ("Necrosis", (50, 50, 50)),
        ("Other", (255, 200, 0)),
        ("Region*", (0, 0, 180)),
        ("Ignore*", (180, 180, 180)),
        ("Tumor: Positive", (200, 50, 50)),
        ("Stroma: Negative", (90, 90, 180)),
    ],
)
def test_the_colours_of_qupath(name, rgb):
    assert class_color(name) == pack_rgb(*rgb)


def test_there_is_one_table():
    assert {name: class_color(name) for name in CLASSES} == CLASSES
    assert {name: pack_rgb(*CLASS_COLORS[name]) for name in CLASSES} == CLASSES


def test_other_names_have_a_colour_of_their_own_that_stays():
    assert class_color("Lymphozyten") == class_color("Lymphozyten") != class_color("Drüse")
    assert -(1 << 24) <= class_color("Drüse") < 0  # opaque
