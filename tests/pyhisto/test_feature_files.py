"""Feature files: what is written is what is read, by us, by CLAM and by TRIDENT; bags from elsewhere."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy.io import savemat
from scipy.sparse import csc_matrix

from pyhisto.errors import ConfigError
from pyhisto.features.bags import list_bags, new_bag, read_bag, write_bag
from pyhisto.features.plainbags import PlainBag, PlainColumns, import_bags, read_plain_bags

FEATURES = np.array([[1.5, -2, 3], [4, 5, 6.25]], dtype=np.float32)
CORNERS = np.array([[0, 512], [512, 512]])
SAID = {"name": "A 1", "patient": "P", "patch_size": 512, "encoder": "e", "encoder_sha256": "ab", "entry_id": "7"}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_bag(tmp_path / "a.h5", FEATURES, CORNERS, {**SAID, "origin": (10, 20)})
    (bag,) = list_bags(tmp_path)
    assert (bag.name, bag.patient, bag.instances, bag.width, bag.patch_size) == ("A 1", "P", 2, 3, 512)
    assert (bag.encoder, bag.encoder_sha256, bag.entry_id) == ("e", "ab", "7")
    np.testing.assert_array_equal(bag.features, FEATURES)
    assert bag.features.dtype == np.float32
    assert bag.features.flags.writeable
    assert bag.coords is not None
    np.testing.assert_array_equal(bag.coords, CORNERS)


def test_as_clam_reads_it(tmp_path: Path) -> None:
    """CLAM takes level-0 px of the file, not of the part that the slide is cropped to."""
    write_bag(tmp_path / "a.h5", FEATURES, CORNERS, {**SAID, "origin": (10, 20), "patch_level": 0})
    with h5py.File(tmp_path / "a.h5", "r") as file:
        np.testing.assert_array_equal(file["features"][:], FEATURES)
        np.testing.assert_array_equal(file["coords"][:], [[10, 532], [522, 532]])
        assert (file["coords"].attrs["patch_size"], file["coords"].attrs["patch_level"]) == (512, 0)


@pytest.mark.parametrize(
    ("said", "side"),
    [
        ({"patch_size": 256, "patch_size_level0": 512, "target_magnification": 20}, 512),  # TRIDENT
        ({"patch_size": 256, "patch_level": 1, "downsample": (4.0, 4.0)}, 1024),  # CLAM
        ({"patch_size": 256, "patch_level": 0, "downsample": (1.0, 1.0)}, 256),
        ({}, None),  # CLAM's feature files
    ],
)
def test_files_of_clam_and_trident_are_read(tmp_path: Path, said: dict[str, Any], side: int | None) -> None:
    with h5py.File(tmp_path / "slide 3.h5", "w") as file:
        file.create_dataset("features", data=FEATURES[np.newaxis], chunks=(1, 1, 3), compression="gzip")
        file.create_dataset("coords", data=CORNERS)
        file["coords"].attrs.update(said)
    bag = read_bag(tmp_path / "slide 3.h5")
    assert (bag.name, bag.instances, bag.width, bag.patch_size) == ("slide 3", 2, 3, side)
    np.testing.assert_array_equal(bag.features, FEATURES)
    assert bag.coords is not None
    np.testing.assert_array_equal(bag.coords, CORNERS)


def test_half_precision_is_read_as_float32(tmp_path: Path) -> None:
    write_bag(tmp_path / "a.h5", FEATURES.astype(np.float16))
    bag = read_bag(tmp_path / "a.h5")
    assert bag.coords is None
    assert bag.features.dtype == np.float32
    np.testing.assert_array_equal(bag.features, FEATURES)  # all of them are float16 numbers
    with h5py.File(tmp_path / "a.h5", "r") as file:
        assert file["features"].dtype == np.float16


def test_an_interrupted_file_is_no_file(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    (tmp_path / ".a.h5.part").write_bytes(b"left by a process that was killed")

    def interrupted() -> None:
        with new_bag(path, (2, 3), CORNERS) as data:
            data[0:1] = FEATURES[:1]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []
    with new_bag(path, (2, 3), CORNERS) as data:
        data[...] = FEATURES
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5"]
    np.testing.assert_array_equal(read_bag(path).features, FEATURES)


@pytest.mark.parametrize(
    ("datasets", "found"),
    [
        ({"coords": CORNERS}, "no dataset 'features'"),
        ({"features": FEATURES[0]}, "features float32 of shape"),
        ({"features": FEATURES[:0]}, "features float32 of shape"),
        ({"features": FEATURES, "coords": CORNERS[:1]}, "corners of shape"),
    ],
)
def test_what_is_no_feature_file(tmp_path: Path, datasets: dict[str, Any], found: str) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, data in datasets.items():
            file.create_dataset(name, data=data)
    with pytest.raises(ConfigError, match=found):
        read_bag(tmp_path / "a.h5")


def test_damaged_files_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no feature files"):
        list_bags(tmp_path)
    write_bag(tmp_path / "a.h5", np.ones((400, 8), dtype=np.float32))
    (tmp_path / "a.h5").write_bytes((tmp_path / "a.h5").read_bytes()[:5000])
    with pytest.raises(ConfigError, match="cannot be read as HDF5"):
        list_bags(tmp_path)
    for features, corners in ((FEATURES[0], None), (FEATURES[:0], None), (FEATURES, CORNERS[:1])):
        with pytest.raises(ConfigError):
            write_bag(tmp_path / "b.h5", features, corners)
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5"]


def as_table(bags: list[PlainBag]) -> list[tuple[str, str, str, list[list[float]]]]:
    return [(bag.name, bag.label, bag.patient, bag.features.tolist()) for bag in bags]


TWO = [("1", "1", "", [[0.5, 2.0], [0.75, 4.0]]), ("2", "0", "", [[0.25, 3.0]])]


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("bag,label,f1,f2\n1,1,0.5,2\n2,0,0.25,3\n1,1,0.75,4\n", PlainColumns()),
        ("1,1,0.5,2\n2,0,0.25,3\n1,1,0.75,4\n", PlainColumns()),
        ("1.0 1.0e+00 0.5 2\n2.0 0.0e+00 0.25 3\n1.0 1.0e+00 0.75 4\n", PlainColumns()),
        ("label;instance;bag_id;0;1\n1;9;1;0.5;2\n0;9;2;0.25;3\n1;8;1;0.75;4\n", PlainColumns()),
        ("1,1,0.5,2\n0,2,0.25,3\n1,1,0.75,4\n", PlainColumns(bag="2", label="1")),
        ("1,1_1,0.5,2,1.\n2,2_1,0.25,3,0.\n1,1_2,0.75,4,1.\n", PlainColumns(label="-1", ignored=("2",))),  # musk
    ],
)
def test_tables(tmp_path: Path, text: str, columns: PlainColumns) -> None:
    (tmp_path / "a.csv").write_text(text, "utf-8")
    assert as_table(read_plain_bags(tmp_path / "a.csv", columns)) == TWO


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("bag,label,f1\na,1,0.5\na,0,2\n", "bag 'a' has the labels 0, 1"),
        ("bag,label,f1\na,,0.5\n", "bag 'a' has the labels"),
        ("bag,label,f1,f2\na,1,0.5,x\n", "'x' as feature 2 of instance 1"),
        ("bag,label,f1\na,1,nan\n", "no finite number"),
        ("bag,label\na,1\n", "no features"),
        ("", "cannot be read as a table"),
    ],
)
def test_tables_that_make_no_sense(tmp_path: Path, text: str, found: str) -> None:
    (tmp_path / "a.csv").write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=found):
        read_plain_bags(tmp_path / "a.csv")


STACKED = np.array([[0.5, 2], [0.75, 4], [0.25, 3]], dtype=np.float32)


@pytest.mark.parametrize(
    "arrays",
    [
        {"bags": [1, 1, 2], "labels": [1, 0]},
        {"bags": [1, 1, 2], "labels": [1, 1, 0]},
        {"offsets": [0, 2, 3], "labels": [1.0, 0.0], "names": ["1", "2"]},
    ],
)
def test_arrays_in_npz_and_hdf5(tmp_path: Path, arrays: dict[str, Any]) -> None:
    np.savez(tmp_path / "a.npz", features=STACKED, **arrays)
    assert as_table(read_plain_bags(tmp_path / "a.npz")) == TWO
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["features"] = STACKED
        for name, values in arrays.items():
            file[name] = values
    assert as_table(read_plain_bags(tmp_path / "a.h5")) == TWO


def test_a_group_for_each_bag(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["1/features"], file["1/label"] = STACKED[:2], 1
        file["2/features"] = STACKED[2:]
        file["2"].attrs["label"] = "0"
    assert as_table(read_plain_bags(tmp_path / "a.h5")) == TWO


@pytest.mark.parametrize(
    ("arrays", "found"),
    [
        ({"bags": [2, 2, 1], "labels": [1, 0]}, "not sorted"),  # is the first label that of bag 2 or of bag 1?
        ({"bags": [1, 1, 2], "labels": [1, 0, 0, 0]}, "4 labels"),
        ({"offsets": [0, 2, 2, 3], "labels": [1, 0, 1]}, "offsets"),
        ({"labels": [1, 0]}, "holds features, labels"),
        ({"bags": [1, 1, 2], "labels": [1, 0], "patients": ["a"]}, "1 patients"),
    ],
)
def test_arrays_that_make_no_sense(tmp_path: Path, arrays: dict[str, Any], found: str) -> None:
    np.savez(tmp_path / "a.npz", features=STACKED, **arrays)
    with pytest.raises(ConfigError, match=found):
        read_plain_bags(tmp_path / "a.npz")


SVM = """# instances of two pictures
0:1:1 1:0.5 2:2 # the first
1:1:1 1:0.75 2:4
2:2:0 2:3 1:0.25
"""


def test_sparse_text_of_the_benchmarks(tmp_path: Path) -> None:
    path = tmp_path / "a.svm"
    path.write_text(SVM, "utf-8")
    assert as_table(read_plain_bags(path)) == TWO
    path.write_text(SVM.replace(" 1:0.25", "").replace("1:1:1 1", "1:1:1 0"), "utf-8")  # numbered from 0 in one line
    assert [bag.features.tolist() for bag in read_plain_bags(path)] == [[[0, 0.5, 2], [0.75, 0, 4]], [[0, 0, 3]]]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("0:1 1:0.5\n", "line 1: '0:1 1:0.5'"),
        ("# c\n0:1:1 1:a\n", "line 2: .*'a'"),
        ("0:1:1 -1:2\n", "a negative number"),
        ("0:1:1\n", "no features"),
        ("0:1:1 1:2\n1:1:0 1:2\n", "bag '1' has the labels 0, 1"),
    ],
)
def test_sparse_text_that_makes_no_sense(tmp_path: Path, text: str, found: str) -> None:
    (tmp_path / "a.svm").write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=found):
        read_plain_bags(tmp_path / "a.svm")


def test_benchmarks_of_matlab(tmp_path: Path) -> None:
    path, labels = tmp_path / "a.mat", np.array([[1, 1, -1]])
    sparse = {"features": csc_matrix(STACKED.astype(float)), "labels": csc_matrix(labels.astype(float))}
    savemat(path, {**sparse, "bag_ids": np.array([[1, 1, 2]], np.uint8), "class_name": "Tiger"})
    wanted = [(name, {"0": "-1"}.get(label, label), *rest) for name, label, *rest in TWO]
    assert as_table(read_plain_bags(path)) == wanted
    names = np.array(["1", "1", "2"])  # as lines of characters, as cells, as numbers
    for bags in (names, names.astype(object)[:, None], np.array([[1], [1], [2]])):
        savemat(path, {"x": {"data": STACKED, "nlab": labels.T, "ident": {"milbag": bags}}})
        assert as_table(read_plain_bags(path)) == wanted


def test_files_of_matlab_that_make_no_sense(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    savemat(path, {"features": STACKED, "labels": [1, 0]})
    with pytest.raises(ConfigError, match=r"holds features, labels; expected features, bag_ids and labels"):
        read_plain_bags(path)
    savemat(path, {"features": STACKED, "labels": [1, 0], "bag_ids": [1, 1, 2]})
    with pytest.raises(ConfigError, match="3 bags, 2 labels"):
        read_plain_bags(path)
    path.write_bytes(b"no such file")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_plain_bags(path)


def test_bags_become_feature_files_and_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", features=STACKED, bags=["x/1", "x/1", "x_1"], labels=[1, 0], patients=["P", "Q"])
    bags = read_plain_bags(tmp_path / "a.npz")
    paths = import_bags(bags, tmp_path / "out", encoder="mean colour")
    made = [read_bag(path) for path in paths]
    assert [(bag.name, bag.patient, bag.encoder) for bag in made] == [
        ("x/1", "P", "mean colour"),
        ("x_1", "Q", "mean colour"),
    ]
    np.testing.assert_array_equal(made[0].features, STACKED[:2])
    np.testing.assert_array_equal(made[1].features, STACKED[2:])
    with (tmp_path / "out" / "labels.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["bag", "patient", "label"], ["x/1", "P", "1"], ["x_1", "Q", "0"]]
    with pytest.raises(ConfigError, match="exists already"):
        import_bags(bags, tmp_path / "out")
    with pytest.raises(ConfigError, match="two bags with the name 'x/1'"):
        import_bags([bags[0], bags[0]], tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "out"]
