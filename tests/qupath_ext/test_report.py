from __future__ import annotations

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from pyhisto.errors import ConfigError
from pyhisto.metrics import DetectionScore, Index
from pyhisto.overlay import encode_png
from qupath_ext.errors import ProjectError
from qupath_ext.report import Ki67Report, SlideReport, TruthReport, write_report
from qupath_ext.report.charts import axis_limit, curve_svg, interval_svg

NAN = float("nan")
VOID = {"meta", "img", "br", "line", "rect", "circle", "path", "polygon", "polyline"}


class Page(HTMLParser):
    """A page taken apart; refuses tags that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if "style" not in self._open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).replace("\u202f", "_").split())

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def flat_png(colour=(230, 220, 225), size=(40, 30)):
    return encode_png(np.full((size[1], size[0], 3), colour, dtype=np.uint8))


def noise_png():
    return encode_png(np.random.default_rng(0).integers(90, 250, (64, 64, 3)).astype(np.uint8))


TRUTH = TruthReport(31.0, 0.9412, DetectionScore(90, 10, 30), DetectionScore(1200, 0, 300))
SLIDE = SlideReport(
    name="case 1.svs",
    index=Index(4000, 12500, 32.0, 29.5, 34.25, "bootstrap over 25 fields"),
    tumour_area_mm2=2.5,
    cells_per_mm2=5000.0,
    overview_png=flat_png(),
    detail_png=flat_png((100, 60, 50)),
    stains={"DAB": "0.269 0.568 0.778"},
    settings={"Pixel size": "0.5 µm/px"},
    notes=("Stains were estimated.",),
    truth=TRUTH,
)
EMPTY = SlideReport("empty.svs", Index(0, 0, NAN, NAN, NAN, "no cells"), 0.0, NAN, flat_png())
REPORT = Ki67Report(
    title="Ki-67 demo",
    created="2026-01-02 03:04",
    software={"qupath-ext": "0.1.0"},
    models={"tumour": "ab" * 32, "nuclei": "classical detector, no weights"},
    project="demo/project.qpproj",
    slides=(SLIDE,),
    curves={"Training loss": [1.0, 0.5, 0.25]},
)


def page_of(tmp_path, report):
    path = tmp_path / "report.html"
    write_report(path, report)
    return Page(path.read_text(encoding="utf-8"))


def test_page_says_what_was_measured(tmp_path):
    text = page_of(tmp_path, REPORT).text
    for words in (
        "Ki-67 demo",
        "2026-01-02 03:04",
        "demo/project.qpproj",
        "case 1.svs",
        "Ki-67 index 32.0 %",
        "95 % interval 29.5 to 34.2 %",
        "bootstrap over 25 fields",
        "2.50 mm²",
        "Stains were estimated.",
        "0.269 0.568 0.778",
        "0.5 µm/px",
        "ab" * 32,
        "classical detector, no weights",
        "Research use only",
    ):
        assert words in text, words
    assert "Positive tumour cells 4_000" in text
    assert "Negative tumour cells 8_500" in text
    assert "Tumour cells counted 12_500" in text
    assert "Cell density 5_000 per mm²" in text


def test_page_compares_with_the_truth(tmp_path):
    text = page_of(tmp_path, REPORT).text
    assert "The truth is 31.0 %: the result is +1.0 percentage points from it, and it lies inside the interval" in text
    assert "Tumor: Positive 0.900 0.750 0.818 90 10 30" in text
    assert "Tumor: Negative 1.000 0.800 0.889 1_200 0 300" in text
    assert "Dice 0.941" in text


def test_page_says_when_the_truth_is_missed(tmp_path):
    truth = dataclasses.replace(TRUTH, index_percent=40.0)
    report = dataclasses.replace(REPORT, slides=(dataclasses.replace(SLIDE, truth=truth),))
    text = page_of(tmp_path, report).text
    assert "−8.0 percentage points from it, and it lies outside the interval" in text


def test_page_without_truth_does_not_speak_of_it(tmp_path):
    report = dataclasses.replace(REPORT, slides=(dataclasses.replace(SLIDE, truth=None),))
    page = page_of(tmp_path, report)
    assert "truth" not in page.text.lower()
    assert not any(attributes.get("class") == "truth" for attributes in page.all("path"))


def test_no_cells_is_said_and_no_number_made_up(tmp_path):
    page = page_of(tmp_path, dataclasses.replace(REPORT, slides=(EMPTY,)))
    assert "No cells found" in page.text
    assert "nan" not in page.text.lower()
    assert not any(attributes.get("class") == "interval" for attributes in page.all("svg"))
    assert "Cell density –" in page.text


def test_no_slide_is_said(tmp_path):
    assert "No slide was analysed" in page_of(tmp_path, dataclasses.replace(REPORT, slides=())).text


def test_page_needs_nothing_from_outside(tmp_path):
    page = page_of(tmp_path, dataclasses.replace(REPORT, slides=(SLIDE, EMPTY)))
    names = {attributes.get("id") for _, attributes in page.tags} - {None}
    for _, attributes in page.tags:
        for key in ("src", "href"):
            value = attributes.get(key, "data:")
            assert value.startswith("data:") or value[1:] in names
    assert not page.all("script") + page.all("link")
    assert "url(" not in (tmp_path / "report.html").read_text(encoding="utf-8")
    (policy,) = [tag for tag in page.all("meta") if tag.get("http-equiv") == "Content-Security-Policy"]
    assert policy["content"].startswith("default-src 'none'")


def test_pictures_tables_and_drawings_are_accessible(tmp_path):
    page = page_of(tmp_path, dataclasses.replace(REPORT, slides=(SLIDE, EMPTY)))
    assert len(page.all("img")) == 3
    assert all(len(attributes["alt"]) > 20 for attributes in page.all("img"))
    assert page.all("html")[0]["lang"] == "en"
    assert all(attributes.get("scope") in ("col", "row") for attributes in page.all("th"))
    assert all(tag["role"] == "img" and tag["aria-label"] for tag in page.all("svg"))
    assert "red: positive nucleus" in page.text
    assert "blue: negative nucleus" in page.text


def test_text_from_outside_is_escaped(tmp_path):
    evil = '<script>alert("x")</script> & \'"><img src=http://x.example/>'
    slide = dataclasses.replace(
        SLIDE,
        name=evil,
        index=dataclasses.replace(SLIDE.index, method=evil),
        stains={evil: evil},
        settings={evil: evil},
        notes=(evil,),
        warnings=(evil,),
    )
    page = page_of(
        tmp_path,
        Ki67Report(evil, evil, {evil: evil}, {evil: evil}, evil, (slide, slide), {evil: [1.0, 2.0]}),
    )
    assert not page.all("script")
    assert len(page.all("img")) == 4
    assert evil in "".join(page.words)
    assert any(evil in (attributes["alt"] or "") for attributes in page.all("img"))


def test_several_slides_have_a_summary_with_links(tmp_path):
    page = page_of(tmp_path, dataclasses.replace(REPORT, slides=(SLIDE, EMPTY)))
    assert [attributes["href"] for attributes in page.all("a")] == ["#slide-1", "#slide-2"]
    assert [tag["id"] for tag in page.all("section") if "id" in tag] == ["slide-1", "slide-2"]
    assert "empty.svs no cells – 0 0 0.00 –" in page.text
    assert not page_of(tmp_path, REPORT).all("a")


def test_warnings_stand_before_the_number(tmp_path):
    slide = dataclasses.replace(SLIDE, warnings=("The stains are unusual.",))
    text = page_of(tmp_path, dataclasses.replace(REPORT, slides=(slide,))).text
    assert text.index("Warning: The stains are unusual.") < text.index("32.0 %")


def test_pictures_are_stored_small(tmp_path):
    slide = dataclasses.replace(SLIDE, overview_png=noise_png())
    page = page_of(tmp_path, dataclasses.replace(REPORT, slides=(slide,)))
    photo, drawing = (attributes["src"] for attributes in page.all("img"))
    assert photo.startswith("data:image/jpeg;base64,")
    assert drawing == "data:image/png;base64," + base64.b64encode(SLIDE.detail_png).decode()
    decoded = Image.open(io.BytesIO(base64.b64decode(photo.partition(",")[2])))
    original = Image.open(io.BytesIO(slide.overview_png))
    assert decoded.size == original.size
    assert np.abs(np.asarray(decoded, dtype=int) - np.asarray(original, dtype=int)).mean() < 8
    assert (page.all("img")[1]["width"], page.all("img")[1]["height"]) == ("40", "30")


def test_a_broken_picture_is_an_error_and_writes_nothing(tmp_path):
    slide = dataclasses.replace(SLIDE, overview_png=b"no picture")
    with pytest.raises(ConfigError, match="10 bytes"):
        write_report(tmp_path / "report.html", dataclasses.replace(REPORT, slides=(slide,)))
    assert list(tmp_path.iterdir()) == []


def test_report_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    write_report(path, REPORT)
    assert path.read_text(encoding="utf-8").endswith("</html>\n")
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(ProjectError, match="missing"):
        write_report(tmp_path / "missing" / "report.html", REPORT)
    folder = tmp_path / "folder.html"
    folder.mkdir()
    with pytest.raises(ProjectError, match=re.escape("folder.html")):
        write_report(folder, REPORT)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder.html", "report.html"]


def test_interval_is_drawn_to_scale():
    svg = interval_svg(Index(1, 4, 25.0, 10.0, 40.0, ""), truth_percent=45.0, limit=50.0)
    # The axis runs from x = 20 (0 %) to x = 620 (50 %): 12 px for 1 %.
    assert '<circle class="found" cx="320.0"' in svg
    assert '<rect class="range" x="140.0" y="38" width="360.0"' in svg
    assert '<path class="truth" d="M560.0 10' in svg
    assert "truth 45.0 %" in svg
    assert 'aria-label="Ki-67 index 25.0 %, 95 % interval 10.0 to 40.0 %, truth 45.0 %"' in svg
    assert [float(text) for text in re.findall(r'class="tick"[^>]*>([\d.]+)', svg)] == [0, 10, 20, 30, 40, 50]


@pytest.mark.parametrize("truth", [None, NAN])
def test_unknown_truth_is_not_drawn(truth):
    assert "truth" not in interval_svg(Index(1, 4, 25.0, 10.0, 40.0, ""), truth_percent=truth, limit=50.0)


@pytest.mark.parametrize(
    ("values", "limit"), [([1.0], 10.0), ([9.5], 20.0), ([18.0], 20.0), ([46.0, 3.0], 100.0), ([100.0], 100.0)]
)
def test_axes_end_at_round_numbers(values, limit):
    assert axis_limit(values) == limit


def curve_points(svg, kind="polyline"):
    (points,) = re.findall(rf'<{kind}[^>]* points="([^"]*)"', svg)
    return [tuple(map(float, point.split(","))) for point in points.split()]


def test_curve_is_drawn_to_scale():
    svg = curve_svg("loss", [1.0, 0.5, 0.0])
    # x: 58 to 500 for the first to the last step; y: 190 for 0, 16 for 1.
    assert curve_points(svg) == [(58.0, 16.0), (279.0, 103.0), (500.0, 190.0)]
    assert "from 1 to 0 in 3 steps" in svg


def test_long_curves_show_means_and_their_range():
    svg = curve_svg("loss", [0.0, 1.0] * 120)
    assert {y for _, y in curve_points(svg)} == {103.0}
    assert {y for _, y in curve_points(svg, "polygon")} == {16.0, 190.0}
    assert len(curve_points(svg)) == 120


def test_curves_leave_out_what_is_not_finite(tmp_path):
    assert curve_svg("loss", [NAN, NAN]) == curve_svg("loss", []) == ""
    assert len(curve_points(curve_svg("loss", [1.0, NAN, float("inf"), 0.5]))) == 2
    assert "<circle" in curve_svg("loss", [3.0])
    assert "Training" not in page_of(tmp_path, dataclasses.replace(REPORT, curves={})).text
