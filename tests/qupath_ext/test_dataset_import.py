"""Public data sets become projects: every outline gives its mask back, every point stands where it stood."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import tifffile
from click.testing import CliRunner, Result
from PIL import Image
from scipy.io import savemat

from qupath_ext.cli import main
from qupath_ext.exchange.layouts.arrays import read_labels
from qupath_ext.exchange.layouts.classmap import ClassMap, read_class_map
from qupath_ext.exchange.layouts.coco import decode_runs
from qupath_ext.exchange.layouts.outlines import connected_parts, label_outlines
from qupath_ext.project import ImageEntry, open_project
from qupath_ext.runs.record import list_runs

Pixels = np.ndarray[Any, Any]
WIDTH, HEIGHT = 40, 24
MPP = ["--mpp", "0.5"]


@pytest.fixture(autouse=True)
def native(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QUPATH_EXT_BACKEND", "native")
    monkeypatch.chdir(tmp_path)


def run(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


def done(*words: str) -> Result:
    result = run(*words)
    assert result.exit_code == 0, result.output
    return result


def write_images(*names: str, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    Path("images").mkdir(exist_ok=True)
    rng = np.random.default_rng(len(names))
    for name in names:
        pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(Path("images") / name)


def blobs() -> Pixels:
    """Return five instances: one with a hole, one in two parts, two that touch, one at the corner."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint16)
    mask[2:9, 3:11] = 1
    mask[4:6, 5:7] = 0  # a hole
    mask[7, 4] = 0
    mask[12:15, 2:5] = 700
    mask[16:18, 5:9] = 700  # in two parts, which meet at a corner
    mask[15, 4] = 700
    mask[4:10, 20:26] = 3
    mask[4:10, 26:31] = 4  # touches
    mask[22:24, 38:40] = 65535
    return mask


def write_mask(pixels: Pixels, name: str = "a.png") -> None:
    Path("masks").mkdir(exist_ok=True)
    path = Path("masks") / name
    match path.suffix:
        case ".npy":
            np.save(path, pixels)
        case ".npz":
            np.savez(path, inst_map=pixels, other=np.zeros(3))
        case ".mat":
            savemat(path, {"inst_map": pixels.astype(np.float64), "type_map": (pixels > 3) + 1})
        case ".tif":
            tifffile.imwrite(path, pixels)
        case _:
            Image.fromarray(pixels).save(path)


def only(project: str = "p") -> ImageEntry:
    (entry,) = open_project(project).entries
    return entry


def labels_of(entry: ImageEntry, region: str = "Training") -> Any:
    objects = entry.read_objects()
    return objects[objects["classification"] != region]


def exported(*options: str) -> Pixels:
    """Return the mask of the only image of a project."""
    done("project", "export", "p", "out", "--format", "png", "--overwrite", *options)
    return np.asarray(Image.open("out/1.png"))


# ---------------------------------------------------------------------- instances
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.npy", "a.npz", "a.mat"])
def test_instances_give_the_mask_back_pixel_by_pixel(name: str) -> None:
    write_images("a.png")
    write_mask(blobs(), name)
    classes = ["1=Other", "2=Tumor"] if name == "a.mat" else ["*=Nucleus"]
    options = [word for pair in classes for word in ("--class", pair)]
    done("dataset", "import", "instances", "p", "--images", "images/*", "--labels", "masks/*", *options, *MPP)
    labels = labels_of(only())
    back = exported("--instances", *[word for pair in classes for word in ("--class", pair.split("=")[1])])
    # the n-th value that occurs has become the n-th object
    np.testing.assert_array_equal(back, np.searchsorted([0, 1, 3, 4, 700, 65535], blobs()))
    assert labels.geometry.area.tolist() == [(blobs() == value).sum() for value in (1, 3, 4, 700, 65535)]
    assert labels.geometry.is_valid.all()
    expected = ["Other", "Other", "Tumor", "Tumor", "Tumor"] if name == "a.mat" else ["Nucleus"] * 5
    assert labels["classification"].astype(str).tolist() == expected


def test_any_labels_give_their_pixels_back() -> None:
    labels = np.random.default_rng(7).integers(0, 4, (30, 41))  # holes, corners and parts of every kind
    values, shapes = label_outlines(labels)
    assert values.tolist() == [1, 2, 3]
    columns, rows = np.meshgrid(np.arange(41) + 0.5, np.arange(30) + 0.5)
    for value, shape in zip(values, shapes, strict=True):
        np.testing.assert_array_equal(shapely.contains_xy(shape, columns, rows), labels == value)
        assert shape.area == (labels == value).sum()


def test_outlines_have_points_at_corners_only() -> None:
    mask = np.zeros((50, 60), dtype=np.int32)
    mask[10:40, 5:55] = 9
    _, shapes = label_outlines(mask)
    assert shapes[0].equals(shapely.box(5, 10, 55, 40))
    assert len(shapes[0].exterior.coords) <= 6  # 160 px around; the outline may begin in the middle of a side


def test_no_labels_are_no_outlines() -> None:
    values, shapes = label_outlines(np.zeros((5, 5), dtype=np.int32))
    assert (len(values), len(shapes)) == (0, 0)


def test_types_from_csv_and_from_masks() -> None:
    write_images("a.png")
    write_mask(blobs())
    Path("types").mkdir()
    Path("types/a.csv").write_text("id,type\n1,1\n3,2\n4,2\n700,7\n65535,1\n")
    types = np.where(blobs() == 700, 7, np.where(np.isin(blobs(), [3, 4]), 2, 1)).astype(np.uint8)
    types[4, 20] = 1  # one pixel of another type does not count
    Image.fromarray(types).save("types/a.png")
    for project, ending in (("p", "csv"), ("q", "png")):
        done(
            *("dataset", "import", "instances", project, "--images", "images/*", "--labels", "masks/*", *MPP),
            *("--types", f"types/*.{ending}", "--class", "1=Tumor", "--class", "2=Stroma", "--class", "7="),
        )
        labels = labels_of(only(project))
        assert labels["classification"].astype(str).tolist() == ["Tumor", "Stroma", "Stroma", "Tumor"]


def test_instances_as_points_lie_inside_and_are_one_annotation_a_class() -> None:
    write_images("a.png")
    write_mask(blobs())
    done(
        *("dataset", "import", "instances", "p", "--images", "images/*", "--labels", "masks/*", *MPP),
        *("--class", "*=Nucleus", "--as", "points"),
    )
    labels = labels_of(only())
    assert labels.geometry.geom_type.tolist() == ["MultiPoint"]
    points = np.array([[point.x, point.y] for point in labels.geometry.iloc[0].geoms])
    column, row = np.floor(points).astype(int).T
    assert blobs()[row, column].tolist() == [1, 3, 4, 700, 65535]
    assert points[1].tolist() == [23.0, 7.0]  # the middle of [20, 26) x [4, 10)


# ---------------------------------------------------------------------- masks of classes
def test_class_masks_give_the_mask_back_and_zero_may_be_a_class() -> None:
    write_images("a.png")
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[3:12, 4:20] = 1
    mask[5:8, 6:9] = 0
    mask[5:8, 9:12] = 2
    mask[15:20, 4:9] = 2
    mask[15:20, 12:30] = 5
    write_mask(mask)
    common = ("--images", "images/*", "--labels", "masks/*", *MPP)
    named = ["--class", "1=Tumor", "--class", "2=Stroma", "--class", "5=Necrosis"]
    done("dataset", "import", "masks", "p", *common, *named)
    assert labels_of(only())["classification"].astype(str).tolist() == ["Tumor", "Stroma", "Stroma", "Necrosis"]
    back = exported("--class", "Tumor", "--class", "Stroma", "--class", "Necrosis")
    np.testing.assert_array_equal(back, np.array([0, 1, 2, 0, 0, 3])[mask])
    done("dataset", "import", "masks", "q", *common, *named, "--class", "0=Other")
    areas = labels_of(only("q")).dissolve("classification").geometry.area
    assert areas["Other"] == (mask == 0).sum()


def deepliif_mask() -> tuple[Pixels, Pixels]:
    """Return a mask of two negative nuclei that share a border and a positive one, and the numbers of the insides."""
    inside = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    inside[5:11, 4:10], inside[5:11, 12:18], inside[14:20, 24:32] = 1, 2, 3
    rgb = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    rgb[4:12, 3:19] = rgb[13:21, 23:33] = (0, 255, 0)
    rgb[(inside == 1) | (inside == 2)] = (0, 0, 255)
    rgb[inside == 3] = (255, 0, 0)
    rgb[15, 25] = (210, 0, 0)
    return rgb, inside


def test_deepliif_masks_part_at_the_border_and_reach_into_it() -> None:
    panels = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH * 3, 3), dtype=np.uint8)
    Path("images").mkdir()
    Image.fromarray(panels).save("images/12_a.png")
    rgb, inside = deepliif_mask()
    write_mask(rgb, "12_a.png")
    common = ("--images", "images/*", "--labels", "masks/*", *MPP, "--crop", f"0,0,{WIDTH},{HEIGHT}")
    done(
        *("dataset", "import", "deepliif", "p", *common, "--reach", "0", "--patient-pattern", r"(\d+)_"),
        *("--part", "test", "--image-type", "BRIGHTFIELD_H_DAB", "--class", "red=Tumor: Positive"),
        *("--class", "#0000ff=Tumor: Negative"),
    )
    entry = only()
    np.testing.assert_array_equal(np.asarray(Image.open("p/images/12_a.png")), panels[:, :WIDTH])
    assert entry.slide_path == Path("p/images/12_a.png").absolute()
    assert (entry.metadata, entry.image_type) == (
        {"Patient": "12", "Part": "test", "Dataset": "p"},
        "BRIGHTFIELD_H_DAB",
    )
    assert sorted(labels_of(entry)["classification"]) == ["Tumor: Negative", "Tumor: Negative", "Tumor: Positive"]
    back = exported("--class", "Tumor: Positive", "--class", "Tumor: Negative")
    np.testing.assert_array_equal(back, np.array([0, 2, 2, 1])[inside])
    done("dataset", "import", "deepliif", "q", *common, "--class", "red=A", "--class", "blue=B")
    areas = labels_of(only("q")).geometry.area.tolist()
    # a border of 1 px round 6 x 6 and 8 x 6 px, and 2 px between the first two, of which each takes one
    assert sorted(areas) == [64, 64, 80]


def test_parts_are_4_connected_and_borders_go_to_the_nearest() -> None:
    codes = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 2]])
    labels, of_part = connected_parts(codes)
    assert labels.tolist() == [[1, 0, 0], [0, 2, 0], [0, 0, 3]]
    assert of_part.tolist() == [1, 1, 2]
    row = np.array([[1, 0, 0, 0, 0, 1]])
    wider, _ = connected_parts(row, border=np.array([[False, True, True, True, False, False]]), reach=1.0)
    assert wider.tolist() == [[1, 1, 0, 0, 0, 2]]  # no border, no reach; too far, no reach


def test_a_colour_without_a_class_is_said() -> None:
    write_images("a.png")
    rgb, _ = deepliif_mask()
    write_mask(rgb)
    result = run(
        *("dataset", "import", "masks", "p", "--images", "images/*", "--labels", "masks/*", *MPP),
        *("--class", "#ff0000=A", "--class", "#0000ff=B", "--border", "#00ff00"),
    )
    assert result.exit_code == 1
    assert "a.png has 1 px of other colours, such as #d20000" in result.output
    assert open_project("p").entries == []


# ---------------------------------------------------------------------- points
POINTS = {"a": [(3.25, 4.5, "Tumor"), (39.0, 23.75, "Stroma"), (0.0, 0.0, "Tumor")], "b": [(7.0, 8.0, "Stroma")]}


def write_points(form: str) -> list[str]:
    """Write the points in a form and return the options that read it."""
    Path("points").mkdir()
    rows = [(image, *point) for image, points in POINTS.items() for point in points]
    if form == "one table":
        lines = [f"{image}.png;{x};{y};{name}" for image, x, y, name in rows]
        Path("points/all.csv").write_text("file;px;py;label\n" + "\n".join(lines))
        return ["--columns", "px,py,label", "--image-column", "file"]
    if form == "one json":
        records = [{"file": image, "px": x, "py": y, "label": name} for image, x, y, name in rows]
        Path("points/all.json").write_text(json.dumps(records))
        return ["--columns", "px,py,label", "--image-column", "file"]
    numbers = {"Tumor": 1, "Stroma": 2}
    for image, points in POINTS.items():
        path = Path("points") / image
        match form:
            case "header":
                text = "label,note,y,x\n" + "".join(f"{name},-,{y},{x}\n" for x, y, name in points)
                path.with_suffix(".csv").write_text(text, encoding="utf-8-sig")
            case "no header":
                text = "".join(f"{x},{y},{numbers[name]}\n" for x, y, name in points)
                path.with_suffix(".csv").write_text(text)
            case "lists":
                path.with_suffix(".json").write_text(json.dumps([list(point) for point in points]))
            case "by class":
                by_class = {name: [p[:2] for p in points if p[2] == name] for name in numbers}
                path.with_suffix(".json").write_text(json.dumps(by_class))
    if form == "no header":
        return ["--class", "1=Tumor", "--class", "2=Stroma"]
    return ["--columns", "x,y,label"] if form == "header" else []


@pytest.mark.parametrize("form", ["header", "no header", "lists", "by class", "one table", "one json"])
def test_points_are_exact_and_one_annotation_a_class(form: str) -> None:
    write_images("a.png", "b.png")
    options = write_points(form)
    done("dataset", "import", "points", "p", "--images", "images/*", "--labels", "points/*", *MPP, *options)
    for entry in open_project("p").entries:
        labels = labels_of(entry)
        found = {
            (*xy, name)
            for name, shape in zip(labels["classification"], labels.geometry, strict=True)
            for xy in shapely.get_coordinates(shape).tolist()
        }
        points = POINTS[Path(entry.name).stem]
        assert found == set(points)
        assert len(labels) == len({name for _, _, name in points})


def test_a_point_outside_its_image_is_a_bad_file_and_the_others_are_imported() -> None:
    write_images("a.png", "b.png")
    Path("points").mkdir()
    Path("points/a.csv").write_text("x,y,class\n41,3,Tumor\n")
    Path("points/b.csv").write_text("x,y,class\n4,3,Tumor\n")
    result = run("dataset", "import", "points", "p", "--images", "images/*", "--labels", "points/*", *MPP)
    assert result.exit_code == 1
    assert "a.png: failed: a.csv: point (41, 3); expected points inside the image, 40 x 24 px" in result.output
    assert "1 images imported, 1 failed; 1 Tumor" in result.output
    assert only().name == "b.png"


# ---------------------------------------------------------------------- COCO
def test_coco_polygons_runs_and_boxes() -> None:
    write_images("a.png")
    runs = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * 30 + 5, 3, HEIGHT - 3, 3, HEIGHT * 8 + HEIGHT - 8]}
    annotations: list[dict[str, Any]] = [
        {"image_id": 9, "category_id": 1, "segmentation": [[2, 2, 8, 2, 8, 6, 2, 6]]},
        {"image_id": 9, "category_id": 2, "segmentation": runs},
        {"image_id": 9, "category_id": 2, "segmentation": [[35, 10, 44, 10, 44, 14, 35, 14]]},
        {"image_id": 9, "category_id": 1, "segmentation": [[1, 1, 3, 3, 5, 5]]},
    ]
    content = {
        "images": [{"id": 9, "file_name": "x/a.png"}, {"id": 10, "file_name": "absent.png"}],
        "categories": [{"id": 1, "name": "Tumor"}, {"id": 2, "name": "lymphocyte"}],
        "annotations": annotations,
    }
    Path("coco.json").write_text(json.dumps(content))
    common = ("dataset", "import", "coco", "p", "--images", "images/*", "--labels", "coco.json", *MPP)
    result = done(*common, "--class", "Tumor=Tumor", "--class", "lymphocyte=Immune cells")
    assert "1 images of coco.json are not among --images" in result.output
    assert "a.png: 1 Tumor, 2 Immune cells, 1 left out" in result.output  # a line has no area
    labels = labels_of(only())
    assert [shape.bounds for shape in labels.geometry] == [(2, 2, 8, 6), (30, 5, 32, 8), (35, 10, 40, 14)]
    annotations.append({"id": 77, "image_id": 9, "category_id": 1, "bbox": [10, 12, 4, 2]})
    Path("coco.json").write_text(json.dumps(content))
    boxes = ("dataset", "import", "coco", "q", *common[4:])
    refused = run(*boxes)
    assert "annotation 77 has no outline" in refused.output
    assert refused.exit_code == 1
    done(*boxes, "--as", "points")
    tumour = labels_of(only("q")).set_index("classification").geometry["Tumor"]
    assert shapely.get_coordinates(tumour).tolist() == [[5, 4], [12, 13]]


def test_run_lengths_as_text() -> None:
    # counts 4 2 1 2 3, of which the last two are differences to the ones two before: 2 - 2 and 3 - 1
    block = np.array([[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0]])
    assert decode_runs({"size": [3, 4], "counts": "42102"}).tolist() == block.tolist()
    assert decode_runs({"size": [3, 4], "counts": [4, 2, 1, 2, 3]}).tolist() == block.tolist()
    with pytest.raises(ValueError, match="run lengths of 11 px in a mask of 12"):
        decode_runs({"size": [3, 4], "counts": [4, 2, 1, 2, 2]})


# ---------------------------------------------------------------------- what an import is
def import_points(*options: str) -> Result:
    return run("dataset", "import", "points", "p", "--images", "images/*", "--labels", "points/*", *MPP, *options)


def test_the_region_says_that_all_is_labelled() -> None:
    write_images("a.png", "b.png")
    write_points("header")
    assert import_points("--columns", "x,y,label", "--region-class", "Validation").exit_code == 0
    for entry in open_project("p").entries:
        objects = entry.read_objects()
        region = objects[objects["classification"] == "Validation"]
        assert region.geometry.iloc[0].equals(shapely.box(0, 0, WIDTH, HEIGHT))
        assert region["locked"].tolist() == [True]
        assert entry.mpp == (0.5, 0.5)
    assert set(open_project("p").classes) == {"Validation", "Tumor", "Stroma"}


def test_regions_from_masks() -> None:
    write_images("a.png", "b.png")
    write_points("header")
    Path("regions").mkdir()
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[2:20, 0:10] = 255
    mask[:, 30:] = 255
    for name in "ab":
        Image.fromarray(mask).save(f"regions/{name}.png")
    assert import_points("--columns", "x,y,label", "--regions", "regions/*").exit_code == 0
    objects = open_project("p").entry("a.png").read_objects()
    regions = objects[objects["classification"] == "Training"].geometry
    assert sorted(shape.bounds for shape in regions) == [(0, 2, 10, 20), (30, 0, 40, 24)]
    Path("regions/b.png").unlink()
    assert (
        "1 images have no regions, the first is 'b'"
        in import_points("--columns", "x,y,label", "--regions", "regions/*").output
    )


def test_an_import_goes_on_and_is_undone() -> None:
    write_images("a.png", "b.png")
    write_points("header")
    good = Path("points/b.csv").read_text()
    Path("points/b.csv").write_text("label,y\nTumor,3\n")
    options = ("--columns", "x,y,label")
    first = import_points(*options)
    assert first.exit_code == 1
    assert "no column 'x' among label, y" in first.output
    Path("points/b.csv").write_text(good)
    second = import_points(*options)
    assert second.exit_code == 0
    assert "a.png: there already" in second.output
    assert "1 images imported, 1 there already; 1 Stroma" in second.output
    assert [entry.name for entry in open_project("p").entries] == ["a.png", "b.png"]
    third = import_points(*options)
    assert "0 images imported, 2 there already" in third.output
    project = open_project("p")
    assert [record.analysis for record in list_runs(project)] == ["import", "import"]
    done("runs", "undo", "p", "latest")
    assert len(open_project("p").entry("b.png").read_objects()) == 0
    assert len(open_project("p").entry("a.png").read_objects()) == 3
    assert "1 images imported, 1 there already" in import_points(*options).output
    assert len(open_project("p").entry("b.png").read_objects()) == 2


def test_an_import_that_was_killed_leaves_no_second_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    from qupath_ext.runs.record import Run

    write_images("a.png")
    Path("points").mkdir()
    Path("points/a.csv").write_text("4,3,1\n")
    finish = Run.finish_image

    def killed(self: Run, entry_id: str, result: Mapping[str, Any]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "finish_image", killed)
    assert import_points("--class", "1=Tumor").exit_code == 130
    assert len(only().read_objects()) == 2  # written, and not noted
    monkeypatch.setattr(Run, "finish_image", finish)
    assert import_points("--class", "1=Tumor").exit_code == 0
    assert len(only().read_objects()) == 2


def test_a_dry_run_reads_all_and_writes_nothing() -> None:
    write_images("a.png", "b.png")
    write_points("header")
    result = import_points("--columns", "x,y,label", "--dry-run")
    assert result.exit_code == 0
    assert "2 images would be imported; 2 Stroma, 2 Tumor" in result.output
    assert not Path("p").exists()


# ---------------------------------------------------------------------- bad input changes nothing
def bad_cases() -> dict[str, tuple[list[str], str]]:
    return {
        "no labels of an image": (["--images", "images/*"], "1 images have no labels, the first is 'b'"),
        "labels without image": (["--images", "images/b.png"], "the first without a partner is 'a'"),
        "no images": (["--images", "nowhere/*"], "no images found"),
        "no pixel size": (["--images", "images/a.png"], "a.png has no pixel size"),
        "no group": (["--images", "images/a.png", "--match", "a"], "has no group"),
        "pattern": (["--images", "images/a.png", "--patient-pattern", r"(\d+)", *MPP], "does not fit 'a'"),
        "another layout's option": (["--images", "images/a.png", "--border", "3"], "--border with layout points"),
        "outlines of points": (["--images", "images/a.png", "--as", "polygons"], "--as polygons with layout points"),
        "class": (["--images", "images/a.png", "--class", "Tumor"], "class 'Tumor'; expected VALUE=NAME"),
        "crop": (["--images", "images/a.png", "--crop", "1,2,3"], "'1,2,3' is not x,y,width,height"),
    }


@pytest.mark.parametrize("case", bad_cases())
def test_bad_input_is_one_line_and_nothing_is_written(case: str) -> None:
    write_images("a.png", "b.png")
    Path("points").mkdir()
    Path("points/a.csv").write_text("x,y,class\n4,3,Tumor\n")
    options, message = bad_cases()[case]
    result = run("dataset", "import", "points", "p", "--labels", "points/*.csv", *options)
    assert result.exit_code == 2
    assert message in result.output
    assert not Path("p").exists()


def test_two_images_of_one_name_are_refused() -> None:
    write_images("a.png")
    Path("points").mkdir()
    Path("points/a.csv").write_text("4,3,1\n")
    assert import_points("--class", "1=Tumor").exit_code == 0
    Path("images").rename("elsewhere")
    before = Path("p/project.qpproj").read_bytes()
    result = run(
        *("dataset", "import", "points", "p", "--images", "elsewhere/*", "--labels", "points/*", *MPP),
        *("--class", "1=Tumor"),
    )
    assert result.exit_code == 2
    assert "are both called a.png" in result.output
    assert Path("p/project.qpproj").read_bytes() == before


def test_a_mask_of_another_size_is_a_bad_file() -> None:
    write_images("a.png")
    write_mask(np.ones((10, 12), dtype=np.uint8))
    result = run(
        *("dataset", "import", "instances", "p", "--images", "images/*", "--labels", "masks/*", *MPP),
        *("--class", "*=Nucleus"),
    )
    assert result.exit_code == 1
    assert "a.png has 12 x 10 px; expected those of its image, 40 x 24" in result.output


def test_a_pickle_that_is_no_array_is_not_loaded(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return Path.touch, (tmp_path / "harm",)  # type: ignore[return-value]

    np.save(tmp_path / "bad.npy", np.array({"inst_map": Harm()}, dtype=object), allow_pickle=True)
    with pytest.raises(Exception, match="in a file of arrays"):
        read_labels(tmp_path / "bad.npy")
    assert not (tmp_path / "harm").exists()


def test_class_maps(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"1": "Tumor", "2.0": "Stroma"}')
    (tmp_path / "a.csv").write_text("1,Tumor\n2,Stroma\n")
    for path in (tmp_path / "a.json", tmp_path / "a.csv"):
        names = ClassMap.parse(["2=", "*=Other"], read_class_map(path))
        assert names.classes_of(["1", "2", "9"]) == ["Tumor", None, "Other"]
    (tmp_path / "bad.json").write_text("[1, 2]")
    with pytest.raises(Exception, match="cannot be read"):
        read_class_map(tmp_path / "bad.json")


# ---------------------------------------------------------------------- how QuPath opens the images
@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_projects_open_png_and_jpeg_as_qupath_does(name: str) -> None:
    write_images(name)
    done("project", "create", "p", f"images/{name}", *MPP)
    builder = only().server_builder
    metadata = builder["metadata"]
    # Bio-Formats comes first for them, as BioFormatsServerBuilder.checkImageSupport says
    assert builder["providerClassName"] == "qupath.lib.images.servers.bioformats.BioFormatsServerBuilder"
    assert builder["args"] == ["--series", "0"]
    assert metadata["levels"] == [{"downsample": 1.0, "width": WIDTH, "height": HEIGHT}]
    assert metadata["isRGB"] is True
    assert metadata["pixelCalibration"]["pixelWidth"] == {"value": 0.5, "unit": "µm"}
    done("project", "check", "p")


@pytest.mark.qupath
@pytest.mark.skipif("PAQUO_QUPATH_DIR" not in os.environ, reason="PAQUO_QUPATH_DIR is not set")
def test_qupath_imports_and_reads_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUPATH_EXT_BACKEND", "paquo")
    write_images("a.png")
    write_mask(blobs())
    done(
        *("dataset", "import", "instances", "p", "--images", "images/*", "--labels", "masks/*", *MPP),
        *("--class", "*=Nucleus"),
    )
    entry = only()
    assert (entry.size(), entry.mpp) == ((WIDTH, HEIGHT), (0.5, 0.5))
    areas = labels_of(entry).geometry.area.tolist()
    assert areas == [(blobs() == value).sum() for value in (1, 3, 4, 700, 65535)]


# ---------------------------------------------------------------------- real data
def test_nucls_outlines_and_points(shared_dir: Path) -> None:
    data = shared_dir / "data/nucls"
    if not data.exists():
        pytest.skip("the NuCLS tiles (../shared/data) are not here")
    for form, ending, project in (("Segmentation", "npy", "p"), ("Detection", "csv", "q")):
        part = data / f"Example-{form}/test"
        done(
            *("dataset", "import", "nucls", project, "--images", f"{part}/images/test_1.png", "--mpp", "0.25"),
            *("--labels", f"{part}/labels/test_1.{ending}"),
        )
    truth = np.load(data / "Example-Segmentation/test/labels/test_1.npy", allow_pickle=True).item()
    back = exported("--class", "Non-Tumor", "--class", "Tumor")
    np.testing.assert_array_equal(back, truth["type_map"])
    rows = np.loadtxt(data / "Example-Detection/test/labels/test_1.csv", delimiter=",")
    labels = labels_of(only("q")).set_index("classification").geometry
    assert shapely.get_coordinates(labels["Immune cells"]).tolist() == rows[rows[:, 2] == 2, :2].tolist()


def test_deepliif_tile(shared_dir: Path) -> None:
    data = shared_dir / "data/deepliif_ki67"
    if not data.exists():
        pytest.skip("the DeepLIIF tiles (../shared/data) are not here")
    done(
        *("dataset", "import", "deepliif", "p", "--images", f"{data}/test/799_2.png", "--crop", "0,0,512,512", *MPP),
        *("--labels", f"{data}/test_groundtruth/799_2.png", "--reach", "0"),
    )
    truth = np.asarray(Image.open(data / "test_groundtruth/799_2.png")).astype(int)
    codes = np.select([truth[..., 0] > 128, truth[..., 2] > 128], [1, 2])
    np.testing.assert_array_equal(exported("--class", "Positive", "--class", "Negative"), codes)
