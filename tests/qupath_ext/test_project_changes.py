"""What the project file says about images is changed, and all else in it stays."""

import json
import shutil

import numpy as np
import pytest
from native_files import GOLDEN, golden
from test_project import image_json, slide, write_project

from pyhisto.objects import make_objects
from qupath_ext.errors import ChangedOnDiskError, EntryNotFoundError, ProjectError
from qupath_ext.project import H_DAB, H_E, create_project, open_project

__all__ = ["slide"]

METADATA = {
    "name": "a.svs",
    "width": 400,
    "height": 300,
    "levels": [{"downsample": 1.0, "width": 400, "height": 300}],
    "channels": [{"name": "Red", "color": -65536}],
    "pixelCalibration": {
        "pixelWidth": {"value": 1.0, "unit": "px"},
        "pixelHeight": {"value": 1.0, "unit": "px"},
        "zSpacing": {"value": 2.5, "unit": "µm"},
        "timeUnit": "SECONDS",
        "timepoints": [0.5],
    },
}


def content_of(path):
    content = json.loads(path.read_text())
    content.pop("modifyTimestamp")
    return content


def opened(path):
    return open_project(path, backend="native")


def with_metadata(n, **more):
    image = image_json(n, **more)
    image["serverBuilder"]["metadata"] = json.loads(json.dumps(METADATA))
    return image


# ---------------------------------------------------------------------- what the project says about an image
def test_texts_and_tags(tmp_path):
    images = [image_json(1, later={"x": 1e-7}, description="old"), image_json(2, metadata={"a": "1", "b": "2"})]
    path = write_project(tmp_path / "p", images, extra=[1, {"y": None}], uri="file:/old/project.qpproj")
    before = content_of(path)
    project = opened(path)
    first, second = project.entries
    first.update(name="Fäll 7", description=None, tags=["b", "a", "b"])
    second.update(metadata={"a": None, "c": "ü"}, description="zwei\nZeilen")
    assert (first.name, first.description, first.tags) == ("Fäll 7", None, ["b", "a"])
    assert second.metadata == {"b": "2", "c": "ü"}
    again = opened(path).entries
    assert [e.name for e in again] == ["Fäll 7", "image 2"]
    assert [e.tags for e in again] == [["b", "a"], []]
    assert again[1].description == "zwei\nZeilen"
    after = content_of(path)
    assert list(after) == list(before)
    assert list(after["images"][0]) == ["serverBuilder", "entryID", "imageName", "metadata", "later", "tags"]
    expected = before["images"][0] | {"imageName": "Fäll 7", "tags": ["b", "a"]}
    expected.pop("description")
    assert after["images"][0] == expected
    assert after["images"][1] == before["images"][1] | {"description": "zwei\nZeilen", "metadata": {"b": "2", "c": "ü"}}
    assert not (tmp_path / "p/data").exists()


def test_tags_are_replaced_and_taken_away(tmp_path):
    path = write_project(tmp_path / "p", [image_json(1, tags=["x"])])
    opened(path).entries[0].update(tags=[])
    assert content_of(path)["images"][0]["tags"] == []
    path = write_project(tmp_path / "q", [image_json(1)])
    opened(path).entries[0].update(tags=[], name="n")
    assert "tags" not in content_of(path)["images"][0]  # QuPath 0.5 knows none


def test_the_same_values_write_nothing(tmp_path):
    path = write_project(tmp_path / "p", [image_json(1)])
    before = path.read_bytes()
    opened(path).entries[0].update(name="image 1", description=None, metadata={"none": None}, tags=[])
    assert path.read_bytes() == before


def test_the_pixel_size_is_where_quPath_puts_it(tmp_path):
    path = write_project(tmp_path / "p", [with_metadata(1)])
    entry = opened(path).entries[0]
    assert entry.mpp is None
    entry.update(mpp=(0.25, 0.5))
    assert opened(path).entries[0].mpp == entry.mpp == (0.25, 0.5)
    builder = content_of(path)["images"][0]["serverBuilder"]
    assert builder["metadata"]["pixelCalibration"] == {
        "pixelWidth": {"value": 0.25, "unit": "µm"},
        "pixelHeight": {"value": 0.5, "unit": "µm"},
        "zSpacing": {"value": 2.5, "unit": "µm"},
        "timeUnit": "SECONDS",
        "timepoints": [0.5],
    }
    builder["metadata"].pop("pixelCalibration")
    assert builder == image_json(1)["serverBuilder"] | {
        "metadata": {k: v for k, v in METADATA.items() if k != "pixelCalibration"}
    }
    entry.update(mpp=0.3)
    assert entry.mpp == (0.3, 0.3)


def test_a_builder_without_metadata_gets_those_of_the_slide(tmp_path, slide):
    project = create_project(tmp_path / "p", backend="native")
    project.add_image(slide)
    content = json.loads(project.path.read_text())
    metadata = content["images"][0]["serverBuilder"].pop("metadata")
    project.path.write_text(json.dumps(content))
    entry = opened(project.path).entries[0]
    entry.update(mpp=0.5)
    metadata["pixelCalibration"]["pixelWidth"] = metadata["pixelCalibration"]["pixelHeight"] = {
        "value": 0.5,
        "unit": "µm",
    }
    assert entry.server_builder["metadata"] == metadata


def test_the_pixel_size_of_a_rotated_image_is_that_of_the_rotated_image(tmp_path):
    image = with_metadata(1)
    inner = image["serverBuilder"]
    turned = json.loads(json.dumps(METADATA)) | {"width": 300, "height": 400}
    image["serverBuilder"] = {"builderType": "rotated", "builder": inner, "rotation": "ROTATE_90", "metadata": turned}
    path = write_project(tmp_path / "p", [image])
    entry = opened(path).entries[0]
    entry.update(mpp=(0.25, 0.5))
    assert entry.mpp == (0.25, 0.5)
    assert entry.server_builder["builder"] == inner
    del image["serverBuilder"]["metadata"]
    entry = opened(write_project(tmp_path / "q", [image])).entries[0]
    with pytest.raises(ProjectError, match="builder type 'rotated' without metadata of its own"):
        entry.update(mpp=0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": " "}, "image name ' '"),
        ({"name": 5}, "image name 5"),
        ({"description": 5}, "description 5"),
        ({"metadata": {"a": 1}}, "metadata 'a': 1"),
        ({"metadata": {1: "a"}}, "metadata 1: 'a'"),
        ({"tags": "abc"}, "tags 'abc'"),
        ({"tags": ["a", 1]}, "tags"),
        ({"mpp": 0}, "pixel size 0"),
        ({"mpp": (0.5, float("nan"))}, "pixel size"),
        ({"mpp": (0.5, 0.5, 0.5)}, "pixel size"),
        ({"mpp": "fine"}, "pixel size 'fine'"),
    ],
)
def test_values_that_cannot_be_stored(tmp_path, change, message):
    path = write_project(tmp_path / "p", [with_metadata(1)])
    before = path.read_bytes()
    entry = opened(path).entries[0]
    with pytest.raises(ProjectError, match=message):
        entry.update(**{"name": "new", **change})
    assert path.read_bytes() == before
    assert entry.name == "image 1"


def test_entries_without_metadata_get_some(tmp_path):
    # QuPath 0.5 and older fail without
    images = [{k: v for k, v in image_json(n).items() if k != "metadata"} for n in (1, 2)]
    path = write_project(tmp_path / "p", images)
    opened(path).entries[1].update(name="new")
    content = content_of(path)
    assert content["images"][1]["metadata"] == {}
    assert content["images"][0] == images[0]


# ---------------------------------------------------------------------- images taken out
def test_an_image_is_taken_out(tmp_path):
    path = write_project(tmp_path / "p", [image_json(n) for n in (1, 2, 3)], extra="kept")
    for n in (2, 3):
        (tmp_path / f"p/data/{n}").mkdir(parents=True)
        (tmp_path / f"p/data/{n}/data.qpdata").write_bytes(b"x")
    (tmp_path / "p/data/metadata.json").write_text('{"of": "0.6"}')
    project = opened(path)
    first, second, third = project.entries
    project.remove_image(second)
    assert [e.id for e in project.entries] == [e.id for e in opened(path).entries] == ["1", "3"]
    assert project.entries[0] is first
    assert (tmp_path / "p/data/2/data.qpdata").read_bytes() == b"x"
    project.remove_image(third, delete_data=True)
    assert not (tmp_path / "p/data/3").exists()
    assert (tmp_path / "p/data/metadata.json").read_text() == '{"of": "0.6"}'
    assert content_of(path)["extra"] == "kept"
    assert content_of(path)["lastID"] == 3
    for gone in (second, third, opened(path).entries[0]):
        with pytest.raises(EntryNotFoundError, match="is not in"):
            project.remove_image(gone)
    with pytest.raises(EntryNotFoundError):
        second.update(name="x")


def test_the_id_of_an_image_that_is_gone_is_not_given_again(tmp_path, slide):
    path = write_project(tmp_path / "p", [image_json(1), image_json(7)])
    content = json.loads(path.read_text())
    del content["lastID"], content["version"]  # as in old projects
    path.write_text(json.dumps(content))
    project = opened(path)
    project.remove_image(project.entry(7))
    assert content_of(path)["lastID"] == 7
    assert project.add_image(slide).id == "8"


@pytest.mark.parametrize("images", ["missing", None])
def test_a_project_file_without_images(tmp_path, slide, images):
    path = write_project(tmp_path / "p", [])
    content = json.loads(path.read_text())
    del content["images"], content["lastID"]
    path.write_text(json.dumps(content if images == "missing" else content | {"images": None}))
    project = opened(path)
    assert project.entries == []
    assert project.add_image(slide).id == "1"
    assert [e.name for e in opened(path).entries] == [slide.name]


def test_a_project_file_that_changed_is_not_overwritten(tmp_path):
    path = write_project(tmp_path / "p", [image_json(1), image_json(2)])
    project, other = opened(path), opened(path)
    project.entries[0].update(name="ours")
    entry = other.entries[0]
    with pytest.raises(ChangedOnDiskError):
        entry.update(name="theirs")
    assert entry.name == "image 1"
    with pytest.raises(ChangedOnDiskError):
        other.remove_image(entry)
    assert len(other.entries) == 2
    assert [e.name for e in opened(path).entries] == ["ours", "image 2"]


@golden
@pytest.mark.parametrize("version", ["v0.3.2", "v0.5.1", "v0.6.0"])
def test_only_the_project_file_of_qupath_changes(version, tmp_path):
    folder = tmp_path / "p"
    shutil.copytree(GOLDEN / version / "plain", folder)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    project = opened(folder)
    content = content_of(project.path)
    entry = project.entries[0]
    entry.update(name="new", tags=["t"], mpp=0.75, metadata={"k": "v"})
    changed = [path for path in before if path.read_bytes() != before[path]]
    assert changed == [project.path]
    after = content_of(project.path)
    image = after["images"][0]
    assert image.pop("tags") == ["t"]
    was = content["images"][0]
    was.pop("tags", None)  # QuPath 0.6 writes an empty list
    calibration = was["serverBuilder"]["metadata"]["pixelCalibration"]
    calibration |= {side: {"value": 0.75, "unit": "µm"} for side in ("pixelWidth", "pixelHeight")}
    assert after == content | {
        "images": [was | {"imageName": "new", "metadata": {**was["metadata"], "k": "v"}}, *content["images"][1:]]
    }


# ---------------------------------------------------------------------- the whole way for objects
def test_image_type_updates_and_objects_in_one_change(tmp_path, slide):
    project = create_project(tmp_path / "p", backend="native")
    entry = project.add_image(slide, image_type="OTHER")
    tiles = make_objects(_boxes(40), object_type="tile", measurements={"a": np.arange(40.0)}, classification="A")
    entry.write_objects(tiles)
    with entry.edit() as change:
        change.set_image_type("BRIGHTFIELD_H_E")
        change.update(tiles[["classification"]].assign(classification="B", b=0.5))
        change.remove(list(tiles.index[:2]))
    assert (change.counts.updated, change.counts.removed) == (40, 2)
    again = opened(project.path).entries[0]
    assert (again.image_type, again.stains) == ("BRIGHTFIELD_H_E", H_E)
    table = again.read_objects()
    assert set(table["classification"]) == {"B"}
    assert (table["b"] == 0.5).all()
    assert table["a"].tolist() == list(range(2, 40))
    summary = json.loads((entry.folder / "summary.json").read_text())
    assert summary["imageType"] == "BRIGHTFIELD_H_E"
    assert summary["hierarchy"]["detectionClassificationCounts"] == {"B": 38}


def _boxes(n):
    import shapely

    return [shapely.box(i, 0, i + 1, 1) for i in range(n)]


def test_the_image_type_of_an_image_without_data_file(tmp_path):
    path = write_project(tmp_path / "p", [image_json(1), image_json(2)])
    first, second = opened(path).entries
    with first.edit() as change:
        change.set_image_type("BRIGHTFIELD_H_DAB")
    assert (first.image_type, first.stains) == ("BRIGHTFIELD_H_DAB", H_DAB)
    second.write_objects(make_objects(_boxes(1), object_type="annotation"))
    assert (second.image_type, second.stains) == ("UNSET", None)  # QuPath asks


def test_brightfield_is_refused_where_qupath_would_not_open_the_image(tmp_path):
    image = with_metadata(1)  # one channel
    entry = opened(write_project(tmp_path / "p", [image])).entries[0]
    with pytest.raises(ProjectError, match="image type BRIGHTFIELD_H_E for an image of 1 channels"), entry.edit() as c:
        c.set_image_type("BRIGHTFIELD_H_E")
    assert not entry.data_file.exists()
