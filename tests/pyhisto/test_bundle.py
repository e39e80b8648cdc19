"""Models on disk: the same output after loading, or an error that says what is wrong."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pyhisto.bundle.files
from pyhisto.bundle.engine import TorchEngine
from pyhisto.bundle.files import (
    Bundle,
    ModelClass,
    ModelSpec,
    load_bundle,
    normalise,
    read_spec,
    resave_bundle,
    save_bundle,
)
from pyhisto.bundle.spec import region_classes
from pyhisto.errors import BundleError, ConfigError
from pyhisto.models import build_model
from pyhisto.stain import H_DAB, StainReference

SPEC = ModelSpec(
    kind="tissue_segmentation",
    architecture="unet-densenet121",
    classes=(ModelClass("background"), ModelClass("tumour", "Tumor", (200, 0, 0))),
    mpp=1.5,
    tile_size=64,
    overlap=8,
    decoder_channels=(16, 16, 8, 8, 8),
    postprocessing={"threshold": 0.5},
)


def tile(seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def small_model(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = build_model(SPEC.architecture, out_channels=2, decoder_channels=SPEC.decoder_channels)
    with torch.no_grad():
        model.segmentation_head[0].weight *= 20  # type: ignore[index,union-attr,operator]
    return model


@pytest.fixture(autouse=True)
def plain_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave bfloat16 out but where a test asks for it; it is slow to start."""
    monkeypatch.setattr("pyhisto.bundle.files.fast_bfloat16", lambda device: False)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tumour"
    training = {"slides": 3, "seed": 7}
    save_bundle(folder, small_model(), SPEC, golden_tile=tile(), description="Finds tumour.", training=training)
    return folder


@pytest.fixture
def bundle(original: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    shutil.copytree(original, tmp_path / "tumour")
    return tmp_path / "tumour"


def test_same_probabilities_after_loading(original: Path) -> None:
    loaded = load_bundle(original, kind="tissue_segmentation")
    assert loaded.spec == SPEC
    tiles = np.stack([tile(1), tile(2)])
    found = loaded.predict(tiles)
    with torch.inference_mode():
        expected = torch.softmax(small_model().eval()(normalise(tiles, SPEC)), dim=1).numpy()
    assert found.dtype == np.float32
    assert found.shape == (2, 2, 64, 64)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-5)
    assert found.std() > 0.02  # not constant


def test_reduced_precision_agrees(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = load_bundle(original, precision="float32", engine="torch").predict(tile(1)[np.newaxis])
    for asked in ("auto", "bfloat16"):
        monkeypatch.setattr("pyhisto.bundle.files.fast_bfloat16", lambda device: True)
        loaded = load_bundle(original, precision=asked)
        assert (loaded.precision, loaded.engine, loaded.notes) == ("bfloat16", "torch", ())
        difference = np.abs(loaded.predict(tile(1)[np.newaxis]) - plain)
        assert 0 < difference.mean() < 0.02


def test_reduced_precision_that_disagrees_is_not_used(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyhisto.bundle.files.fast_bfloat16", lambda device: True)
    monkeypatch.setattr("pyhisto.bundle.files.REDUCED_TOLERANCE", 1e-9)
    loaded = load_bundle(original)
    assert loaded.precision == "float32"
    (note,) = loaded.notes
    assert "tumour is not computed in bfloat16 by torch: probabilities on the golden tile differ by" in note
    plain = load_bundle(original, precision="float32")
    assert plain.notes == ()
    np.testing.assert_array_equal(loaded.predict(tile(1)[np.newaxis]), plain.predict(tile(1)[np.newaxis]))
    with pytest.raises(BundleError, match=r"not computed in bfloat16 by torch.*leave the choice to auto"):
        load_bundle(original, precision="bfloat16")


@pytest.mark.parametrize(
    ("bfloat16", "float16", "expected"),
    [
        (True, True, ["bfloat16", "float32"]),
        (False, True, ["float16", "float32"]),
        (False, False, ["float32"]),
    ],
)
def test_what_a_gpu_is_tried_with(
    monkeypatch: pytest.MonkeyPatch, bfloat16: bool, float16: bool, expected: list[str]
) -> None:
    monkeypatch.setattr("pyhisto.bundle.files.fast_bfloat16", lambda device: bfloat16)
    monkeypatch.setattr("pyhisto.bundle.files.fast_float16", lambda device: float16)
    monkeypatch.setattr("pyhisto.bundle.files.has_openvino", lambda: True)
    ways = pyhisto.bundle.files._ways("cuda:1", "auto", "auto", one_network=True, cells=False)
    assert ways == [("torch", name) for name in expected]


def test_a_cpu_is_tried_with_openvino_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyhisto.bundle.files.has_openvino", lambda: True)
    ways = functools.partial(pyhisto.bundle.files._ways, cells=False)
    assert ways("cpu", "auto", "auto", one_network=True) == [("openvino", "float32"), ("torch", "float32")]
    assert ways("cpu", "auto", "auto", one_network=False) == [("torch", "float32")]
    assert ways("cpu", "openvino", "bfloat16", one_network=True) == [("openvino", "bfloat16")]


def test_cells_are_found_by_torch_where_bfloat16_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyhisto.bundle.files.has_openvino", lambda: True)
    monkeypatch.setattr("pyhisto.bundle.files.fast_bfloat16", lambda device: True)
    ways = functools.partial(pyhisto.bundle.files._ways, "cpu", one_network=True, cells=True)
    others = [("openvino", "bfloat16"), ("openvino", "float32"), ("torch", "float32")]
    assert ways("auto", "auto") == [("torch", "bfloat16"), *others]
    assert ways("openvino", "auto") == others[:2]
    assert ways("auto", "float32") == others[1:]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "openvino"}, "engine openvino on the device cpu without the package.*pip install"),
        ({"engine": "tensorrt"}, "'tensorrt' as engine or precision; expected one of auto, torch, openvino"),
        ({"precision": "float16"}, "precision float16 on the CPU.*use a GPU"),
        ({"precision": "int8"}, "'int8' as engine or precision"),
        ({"device": "cuda:7"}, "device 'cuda:7' is not available"),
    ],
)
def test_ways_to_compute_that_are_not_there(original: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_bundle(original, **options)  # type: ignore[arg-type]


def test_openvino_gives_what_torch_gives(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino", reason="needs the package openvino")
    monkeypatch.setattr("pyhisto.bundle.files.has_openvino", lambda: True)
    loaded = load_bundle(original)
    assert (loaded.engine, loaded.precision, loaded.notes) == ("openvino", "float32", ())
    plain = load_bundle(original, engine="torch")
    tiles = np.random.default_rng(5).integers(0, 256, (3, 96, 64, 3), dtype=np.uint8)
    np.testing.assert_allclose(loaded.predict(tiles), plain.predict(tiles), atol=1e-5)


@pytest.mark.parametrize(
    ("fast", "share", "expected"), [(True, 0.6, "torch"), (True, 0.4, "openvino"), (False, 0.6, "openvino")]
)
def test_winograd_goes_before_openvino_where_it_saves_most(
    original: Path, monkeypatch: pytest.MonkeyPatch, fast: bool, share: float, expected: str
) -> None:
    def compiled(network: torch.nn.Module, *_: Any) -> TorchEngine:
        engine = TorchEngine(network, "cpu")
        engine.name = "openvino"
        return engine

    monkeypatch.setattr("pyhisto.bundle.engine.OpenVinoEngine", compiled)
    monkeypatch.setattr("pyhisto.bundle.files.has_openvino", lambda: True)
    monkeypatch.setattr("pyhisto.bundle.files.fast_bfloat16", lambda device: False)
    monkeypatch.setattr("pyhisto.bundle.rewrite.has_winograd", lambda: fast)
    monkeypatch.setattr("pyhisto.bundle.rewrite.winograd_share", lambda network, example: share)
    assert load_bundle(original).engine == expected
    assert load_bundle(original, engine="openvino").engine == "openvino"


def test_an_engine_that_fails_or_gives_something_else(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong:
        name, precision = "openvino", "float32"

        def __init__(self, network: torch.nn.Module, *_: Any) -> None:
            self.network = network

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            with torch.inference_mode():
                return self.network(x) * 1.5  # type: ignore[no-any-return]

    def broken(*_: Any) -> None:
        raise ImportError("libopenvino.so: cannot open shared object file\nand more")

    monkeypatch.setattr("pyhisto.bundle.files.has_openvino", lambda: True)
    for engine, reason in ((Wrong, "differ by"), (broken, r"it fails \(libopenvino.so: cannot open")):
        monkeypatch.setattr("pyhisto.bundle.engine.OpenVinoEngine", engine)
        loaded = load_bundle(original)
        assert loaded.engine == "torch"
        (note,) = loaded.notes
        assert re.search(reason, note)
        with pytest.raises(BundleError, match=reason):
            load_bundle(original, engine="openvino")


def test_what_is_computed_is_not_what_is_saved(original: Path, tmp_path: Path) -> None:
    loaded = load_bundle(original)
    left = sum(isinstance(module, torch.nn.BatchNorm2d) for module in loaded.compute.network.modules())
    assert 0 < left < sum(isinstance(module, torch.nn.BatchNorm2d) for module in small_model().modules())
    resave_bundle(loaded, tmp_path / "again", SPEC, {})
    digest = hashlib.sha256((tmp_path / "again" / "models" / "model.pt").read_bytes()).hexdigest()
    assert digest == loaded.sha256 == read_spec(original)[1]


class Ramp(torch.nn.Module):
    """The logit of class 1 is that of 0.1 in the first column, 0.3 in the second, 0.8 in all others."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(len(x), 2, *x.shape[2:])
        out[:, 1] = logit(0.8)
        out[:, 1, :, 0], out[:, 1, :, 1] = logit(0.1), logit(0.3)
        return out


def test_flips_by_hand() -> None:
    bundle = Bundle(Path("none"), SPEC, "", Ramp(), "cpu")
    mean, variance = bundle.predict_flips(np.zeros((2, 2, 4, 3), dtype=np.uint8))
    # columns 0.1 0.3 0.8 0.8, mirrored 0.8 0.8 0.3 0.1; up and down change nothing
    np.testing.assert_allclose(mean[1, 1, 1], [0.45, 0.55, 0.55, 0.45], atol=1e-6)
    np.testing.assert_allclose(mean[:, 0], 1 - mean[:, 1], atol=1e-6)
    np.testing.assert_allclose(variance[0, 0], [0.35**2, 0.25**2, 0.25**2, 0.35**2], atol=1e-6)
    assert mean.shape == (2, 2, 2, 4)
    assert variance.shape == (2, 2, 4)
    assert mean.dtype == variance.dtype == np.float32


class Cramped(torch.nn.Module):
    """Has memory for a few pixels at once."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.seen: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(x))
        if x[:, 0].numel() > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.50 GiB")
        return torch.cat([x[:, :1], -x[:, :1]], dim=1)


def test_a_batch_that_is_too_large_is_halved() -> None:
    model = Cramped(3 * 64 * 64)
    bundle = Bundle(Path("none"), dataclasses.replace(SPEC, tile_size=32), "", model, "cpu")
    bundle._tiles_at_once = 8
    tiles = np.stack([tile(seed) for seed in range(8)])
    found = bundle.predict(tiles)
    assert model.seen == [8, 4, 2, 2, 4, 2, 2]
    assert bundle.tiles_at_once == 2
    np.testing.assert_array_equal(found[5], bundle.predict(tiles[5:6])[0])
    with pytest.raises(BundleError, match="memory of cpu is too small for one tile of 192 x 128 px"):
        bundle.predict(np.zeros((1, 128, 192, 3), dtype=np.uint8))


def test_the_batch_of_a_gpu_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle(Path("none"), SPEC, "", Cramped(10**9), "cpu")
    bundle.device = "mps"
    clock, counts, free = [0.0], list[int](), [1000, 940]

    def predict(tiles: Any) -> None:
        counts.append(len(tiles))
        clock[0] += 1 + 0.1 * len(tiles)

    monkeypatch.setattr(bundle, "_predict", predict)
    monkeypatch.setattr(bundle, "_make_room", lambda: None)
    monkeypatch.setattr("pyhisto.bundle.loaded.time.perf_counter", lambda: clock[0])
    monkeypatch.setattr("pyhisto.bundle.loaded.free_memory", lambda device: free.pop(0))
    assert bundle.tiles_at_once == 8  # a tile takes 60, and 10 are 60 % of what is free
    assert counts == [1, 1, 1, 2, 2, 4, 4, 8, 8]
    assert bundle.tiles_at_once == 8
    assert len(counts) == 9


@pytest.mark.parametrize(
    ("architecture", "tile_size", "overlap", "memory_gib", "expected"),
    [
        ("unet-resnet34", 256, 32, 64, (2368, 224)),
        ("unet-resnet34", 64, 8, 64, (2368, 224)),  # how far it sees does not depend on the tiles of the training
        ("unet-densenet121", 512, 256, 64, (2368, 256)),  # no less overlap than in training
        # an eighth of 8 GiB is 2072² px of 250 bytes, and 2048 is the next multiple of the stride
        ("unet-resnet34", 256, 32, 8, (2048, 224)),
        ("unet-resnet34", 256, 32, 0.5, (896, 224)),  # half a tile is its core, at least
        ("unet-resnet34", 3008, 32, 64, (3008, 224)),  # never smaller than in training
        ("attention-unet", 256, 32, 64, (256, 32)),  # sees the whole tile
    ],
)
def test_tiles_for_whole_slides(
    architecture: str,
    tile_size: int,
    overlap: int,
    memory_gib: float,
    expected: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pyhisto.bundle.loaded.memory_gib", lambda device: {"cpu": memory_gib}[device])
    spec = dataclasses.replace(SPEC, architecture=architecture, tile_size=tile_size, overlap=overlap)
    model = build_model(architecture, out_channels=2, decoder_channels=SPEC.decoder_channels)
    bundle = Bundle(Path("none"), spec, "", model, "cpu")
    assert bundle.stream_tile == expected
    assert bundle.stride == (16 if architecture == "attention-unet" else 32)
    assert bundle.tiles_at_once == {256: 8, 896: 1, 2048: 1, 2368: 1, 3008: 1}[expected[0]]


def test_normalise_by_hand() -> None:
    spec = dataclasses.replace(SPEC, channel_mean=(0.5, 0.25, 0.0), channel_std=(0.5, 0.25, 1.0))
    tiles = np.zeros((1, 2, 3, 3), dtype=np.uint8)
    tiles[0, 1, 2] = (255, 0, 51)
    x = normalise(tiles, spec)
    assert tuple(x.shape) == (1, 3, 2, 3)
    assert x.dtype == torch.float32
    assert x[0, :, 1, 2].tolist() == pytest.approx([1.0, -1.0, 0.2])
    assert x[0, :, 0, 0].tolist() == pytest.approx([-1.0, -1.0, 0.0])
    assert (tiles[0, 1, 2] == (255, 0, 51)).all()


def test_files(original: Path) -> None:
    files = sorted(str(path.relative_to(original)) for path in original.rglob("*") if path.is_file())
    assert files == [
        "configs/inference.json",
        "configs/metadata.json",
        "docs/README.md",
        "models/golden.npz",
        "models/model.pt",
    ]
    metadata = json.loads((original / "configs" / "metadata.json").read_text("utf-8"))
    digest = hashlib.sha256((original / "models" / "model.pt").read_bytes()).hexdigest()
    assert metadata["pyhisto"]["weights_sha256"] == digest
    assert metadata["pyhisto"]["training"] == {"slides": 3, "seed": 7}
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "tumour"}
    card = (original / "docs" / "README.md").read_text("utf-8")
    for part in ("Finds tumour.", "64 x 64 px at 1.5 µm/px", "`Tumor`", "slides: 3", digest):
        assert part in card


def test_the_folder_is_as_readable_as_any_other(original: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    normal = (tmp_path / "folder").stat().st_mode, (tmp_path / "file").stat().st_mode
    assert original.stat().st_mode == normal[0]
    for path in original.rglob("*"):
        assert path.stat().st_mode == normal[path.is_file()]


def test_reading_the_description_needs_no_torch(original: Path) -> None:
    spec, sha256 = read_spec(original)
    assert spec == SPEC
    assert len(sha256) == 64
    code = (
        "import sys; from pyhisto.bundle.files import read_spec; "
        f"read_spec({str(original)!r}); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_monai_builds_the_network(original: Path) -> None:
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(str(original / "configs" / "inference.json"))
    model = parser.get_parsed_content("network_def")
    model.load_state_dict(torch.load(original / "models" / "model.pt", weights_only=True))
    own = small_model().state_dict()
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())


def test_another_kind_is_refused(original: Path) -> None:
    with pytest.raises(BundleError, match="is a model for tissue_segmentation; expected one for cell_detection"):
        load_bundle(original, kind="cell_detection")


def test_a_flipped_byte_is_found(bundle: Path) -> None:
    weights = bundle / "models" / "model.pt"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    with pytest.raises(BundleError, match=r"model\.pt is damaged or exchanged.*copy the bundle again"):
        load_bundle(bundle)


def edit_metadata(bundle: Path, **changes: Any) -> None:
    path = bundle / "configs" / "metadata.json"
    metadata = json.loads(path.read_text("utf-8"))
    metadata["pyhisto"] |= {key: value for key, value in changes.items() if key == "weights_sha256"}
    metadata["pyhisto"]["model"] |= {key: value for key, value in changes.items() if key != "weights_sha256"}
    path.write_text(json.dumps(metadata), "utf-8")


def write_weights(bundle: Path, content: Any) -> None:
    """Replace the weights and record their checksum, so that only later checks can find it."""
    weights = bundle / "models" / "model.pt"
    torch.save(content, weights)
    edit_metadata(bundle, weights_sha256=hashlib.sha256(weights.read_bytes()).hexdigest())


def test_exchanged_weights_are_found_by_checksum_and_by_golden_tile(bundle: Path) -> None:
    torch.save(small_model(1).state_dict(), bundle / "models" / "model.pt")
    with pytest.raises(BundleError, match="damaged or exchanged"):
        load_bundle(bundle)
    write_weights(bundle, small_model(1).state_dict())
    with pytest.raises(BundleError, match="another output on its golden tile"):
        load_bundle(bundle)


@pytest.mark.parametrize("content", [{"a": torch.zeros(1)}, [1, 2]])
def test_weights_of_something_else(bundle: Path, content: Any) -> None:
    write_weights(bundle, content)
    with pytest.raises(BundleError, match="does not fit the network unet-densenet121"):
        load_bundle(bundle)


def test_other_preprocessing_is_found_by_the_golden_tile(bundle: Path) -> None:
    edit_metadata(bundle, channel_mean=[0.0, 0.0, 0.0])
    with pytest.raises(BundleError, match="golden tile"):
        load_bundle(bundle)


@pytest.mark.parametrize("name", ["configs/metadata.json", "models/model.pt", "models/golden.npz"])
def test_a_missing_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=Path(name).name):
        load_bundle(bundle)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_golden_tile(bundle: Path, share: float) -> None:
    path = bundle / "models" / "golden.npz"
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(BundleError, match=r"golden\.npz is missing or damaged"):
        load_bundle(bundle)


def test_a_damaged_golden_tile(bundle: Path) -> None:
    path = bundle / "models" / "golden.npz"
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 255
    path.write_bytes(data)
    with pytest.raises(BundleError, match=r"golden"):
        load_bundle(bundle)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mppp": 1.0}, "unknown key 'mppp'"),
        ({"kind": "horoscope"}, "kind 'horoscope'; expected one of tissue_segmentation, cell_detection"),
        ({"classes": [{"name": "a", "colour": [1, 2, 3]}]}, "colour"),
        ({"classes": [{"classification": "Tumor"}]}, "incomplete"),
    ],
)
def test_descriptions_that_are_refused(bundle: Path, changes: dict[str, Any], message: str) -> None:
    edit_metadata(bundle, **changes)
    with pytest.raises(BundleError, match=message):
        read_spec(bundle)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"pyhisto": {}}', '{"pyhisto": {"model": {}}}'])
def test_metadata_of_something_else(bundle: Path, text: str) -> None:
    (bundle / "configs" / "metadata.json").write_text(text)
    with pytest.raises(BundleError):
        read_spec(bundle)


def test_no_bundle_at_all(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"is no model bundle; expected a folder with configs/metadata\.json"):
        load_bundle(tmp_path)


def test_an_existing_bundle_is_not_overwritten(bundle: Path) -> None:
    before = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    with pytest.raises(BundleError, match="exists already"):
        save_bundle(bundle, small_model(), SPEC, golden_tile=tile(), description="")
    assert {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()} == before
    (bundle.parent / "file").touch()
    with pytest.raises(BundleError, match="exists already"):
        save_bundle(bundle.parent / "file", small_model(), SPEC, golden_tile=tile(), description="")


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    saved = save_bundle(tmp_path / "new", small_model(), SPEC, golden_tile=tile(), description="")
    assert saved.path == tmp_path / "new"
    assert read_spec(tmp_path / "new") == (SPEC, saved.sha256)


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failing_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(type(error)):
        save_bundle(tmp_path / "new", small_model(), SPEC, golden_tile=tile(), description="")
    assert list(tmp_path.iterdir()) == []


def test_description_survives_json() -> None:
    assert ModelSpec.from_dict(json.loads(json.dumps(SPEC.to_dict()))) == SPEC


class Constant(torch.nn.Module):
    """Gives the same logits everywhere, but where a pixel is red: there the second channel is larger."""

    def __init__(self, logits: tuple[float, ...], red: float = 0.0) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor(logits), requires_grad=False)
        self.red = red

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.logits.view(1, -1, 1, 1).expand(len(x), -1, *x.shape[2:]).clone()
        out[:, 1] += self.red * x[:, 0]
        return out


def logit(probability: float) -> float:
    return float(np.log(probability / (1 - probability)))


def test_probabilities_of_regions_by_hand() -> None:
    # the whole cell with 0.9, the nucleus in it with 0.6: nucleus 0.6, membrane 0.9 * 0.4, background 0.1 * 0.4
    spec = dataclasses.replace(SPEC, classes=tuple(map(ModelClass, "abc")), regions=((1, 2), (1,)))
    model = Constant((logit(0.9), logit(0.6)))
    found = Bundle(Path("none"), spec, "", model, "cpu").predict(tile()[np.newaxis])
    np.testing.assert_allclose(found[0, :, 5, 5], [0.04, 0.6, 0.36], atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("regions", "classes", "message"),
    [
        (((1, 2), (1, 2)), 3, "classes \\[\\] of its own"),
        (((1, 2, 3), (3,)), 4, "classes \\[1, 2\\] of its own"),
        (((1,),), 3, "regions for the classes \\[1\\]; expected 1 to 2"),
    ],
)
def test_regions_that_leave_a_class_open(regions: tuple[tuple[int, ...], ...], classes: int, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        region_classes(regions, classes)


def test_a_golden_tile_without_contrast_is_refused_or_another_taken(tmp_path: Path) -> None:
    plain = np.full((64, 64, 3), 200, dtype=np.uint8)
    with pytest.raises(BundleError, match="nearly the same output everywhere on its 1 golden tiles"):
        save_bundle(tmp_path / "a", Constant((0.0, 0.0), red=1.0), SPEC, golden_tile=plain, description="")
    assert list(tmp_path.iterdir()) == []
    save_bundle(
        tmp_path / "b", Constant((0.0, 0.0), red=1.0), SPEC, golden_tile=np.stack([plain, tile()]), description=""
    )
    with np.load(tmp_path / "b" / "models" / "golden.npz") as golden:
        np.testing.assert_array_equal(golden["tile"], tile())


def test_other_preprocessing_is_found_where_the_output_hardly_varies(tmp_path: Path) -> None:
    model = small_model()
    with torch.no_grad():
        model.segmentation_head[0].weight /= 40  # type: ignore[index,union-attr,operator]
    folder = tmp_path / "pale"
    saved = save_bundle(folder, model, SPEC, golden_tile=tile(), description="")
    assert saved.predict(tile()[np.newaxis]).std(axis=(2, 3)).max() < 0.01
    load_bundle(folder)
    edit_metadata(folder, channel_mean=[0.0, 0.0, 0.0])
    with pytest.raises(BundleError, match="golden tile"):
        load_bundle(folder)


def test_the_training_slides_are_described(tmp_path: Path) -> None:
    reference = StainReference(H_DAB, (0.8, 1.1))
    spec = dataclasses.replace(SPEC, nucleus_diameter_um=7.25, stains=reference, init={"name": "a", "sha256": "b"})
    save_bundle(tmp_path / "new", small_model(), spec, golden_tile=tile(), description="")
    assert read_spec(tmp_path / "new")[0] == spec
    card = (tmp_path / "new" / "docs" / "README.md").read_text("utf-8")
    assert "Median nucleus 7.2 µm" in card
    assert "DAB 0.270, 0.570, 0.780 up to OD 1.10" in card.replace("0.269", "0.270").replace("0.568", "0.570").replace(
        "0.778", "0.780"
    )


def test_a_bundle_under_another_description_keeps_weights_and_golden_tile(original: Path, tmp_path: Path) -> None:
    bundle = load_bundle(original)
    spec = dataclasses.replace(SPEC, mpp=0.75, postprocessing={"threshold": 0.3})
    resave_bundle(bundle, tmp_path / "other", spec, {"calibrated on": "12 cells"})
    loaded = load_bundle(tmp_path / "other")
    assert (loaded.spec, loaded.sha256) == (spec, bundle.sha256)
    card = (tmp_path / "other" / "docs" / "README.md").read_text("utf-8")
    assert "slides: 3" in card
    assert "calibrated on: 12 cells" in card
    with pytest.raises(BundleError, match="exists already"):
        resave_bundle(bundle, tmp_path / "other", spec, {})
