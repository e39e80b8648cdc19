"""Encoders: what turns a tile into the numbers that describe it.

An encoder is a network by name with a file of weights, the encoder of a bundle, a TorchScript file with a description
beside it, or a model of timm. Nothing is downloaded unless timm is asked to.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pyhisto.errors import BundleError, ConfigError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["NETWORKS", "PIXELS", "TIMM_PREFIX", "Encoder", "EncoderOptions", "EncoderSpec", "load_encoder"]

Vector: TypeAlias = tuple[float, ...]

IMAGENET_MEAN: Vector = (0.485, 0.456, 0.406)
IMAGENET_STD: Vector = (0.229, 0.224, 0.225)

NETWORKS = {"densenet121": "DenseNet121Features", "resnet50-block3": "ResNet50Block3"}
"""Encoders by name, and their classes in :mod:`pyhisto.features.networks`."""

PIXELS = "pixels"
"""The encoder that hands on the tiles themselves, for heads with an encoder of their own: RGB 0 to 255."""

TIMM_PREFIX = "timm:"
"""Begins the name of an encoder of timm, such as ``timm:resnet18``."""

RANDOM_SEED = 0

ENGINE_TOLERANCE = 1e-4
"""Largest difference that OpenVINO may make to a feature, as a share of the largest one."""

DESCRIPTION = ("name", "mpp", "tile_size", "mean", "std")
"""What may stand in the JSON file beside a TorchScript file; ``mpp`` and ``tile_size`` must."""


@dataclass(frozen=True)
class EncoderSpec:
    """What an encoder is.

    Attributes
    ----------
    name
        Of the network.
    sha256
        Of its file of weights, or of the weights themselves where they come from no file.
    mpp, tile_size
        µm/px and side in px of the tiles that it sees.
    mean, std
        Of RGB scaled to 0..1; the input is (rgb / 255 - mean) / std.

    Raises
    ------
    ConfigError
        If a number is out of range.
    """

    name: str
    sha256: str
    mpp: float = 0.5
    tile_size: int = 256
    mean: Vector = IMAGENET_MEAN
    std: Vector = IMAGENET_STD

    def __post_init__(self) -> None:
        if not (0.02 <= self.mpp <= 100 and 1 <= self.tile_size <= 8192):
            raise ConfigError(
                f"encoder {self.name} for tiles of {self.tile_size} px at {self.mpp:g} µm/px",
                expected="1 to 8192 px at 0.02 to 100 µm/px",
            )
        if (
            len(self.mean) != 3
            or len(self.std) != 3
            or not np.isfinite(self.mean + self.std).all()
            or min(self.std) <= 0
        ):
            raise ConfigError(
                f"encoder {self.name} with mean {self.mean}, std {self.std}", expected="three numbers each, std above 0"
            )


@dataclass(frozen=True)
class EncoderOptions:
    """What is wanted of an encoder beside its name.

    Attributes
    ----------
    weights
        File with a state dict; ``"random"`` for weights that mean nothing, the same each time; for timm also
        ``"pretrained"``, which downloads them. None for encoders that have their own.
    sha256
        What the file of weights must have; None takes any.
    mpp, tile_size
        In place of the encoder's own.
    """

    weights: str | None = None
    sha256: str | None = None
    mpp: float | None = None
    tile_size: int | None = None


class Encoder:
    """A loaded encoder.

    Parameters
    ----------
    spec
        Its description.
    network
        Maps (n, 3, tile_size, tile_size), normalised float32, to (n, d), or to (n, d, h, w), of which the mean is
        taken.
    device
        Where it runs: ``"cpu"``, ``"cuda"``, ``"cuda:<number>"`` or ``"mps"``.

    Attributes
    ----------
    width
        Number of features.
    engine
        What computes it: ``"torch"``, or ``"openvino"`` after :meth:`compile`.

    Raises
    ------
    BundleError
        If the network fails on a tile of its size, or gives something else.
    """

    def __init__(self, spec: EncoderSpec, network: nn.Module, device: str) -> None:
        import torch

        self.spec = spec
        self.device = device
        self.engine = "torch"
        self._network: Any = network.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        example = np.zeros((1, spec.tile_size, spec.tile_size, 3), dtype=np.uint8)
        try:
            self.width = int(self._encode(example).shape[1])
        except (RuntimeError, ValueError, TypeError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise BundleError(
                f"encoder {spec.name} fails on a tile of {spec.tile_size} px ({reason})", remedy="choose another size"
            ) from error

    def compile(self) -> str:
        """Let OpenVINO compute the network from now on; on two cores it takes a third to a half of the time.

        Returns
        -------
        str
            Empty, or why it goes on as before: OpenVINO fails, or gives other features for two tiles of noise.
        """
        from pyhisto.bundle.engine import make_engine
        from pyhisto.bundle.rewrite import fold_batch_norms

        shape = (2, self.spec.tile_size, self.spec.tile_size, 3)
        tiles = np.random.default_rng(RANDOM_SEED).integers(0, 256, shape, dtype=np.uint8)
        before, expected = self._network, self._encode(tiles)
        try:
            example = self._input(tiles)
            self._network = make_engine("openvino", fold_batch_norms(before, example), example, "cpu", "float32")
            fault = float(np.abs(self._encode(tiles) - expected).max()) > ENGINE_TOLERANCE * np.abs(expected).max()
            reason = "it gives other features" if fault else ""
        except Exception as error:  # noqa: BLE001 - compilers fail in ways of their own
            reason = f"it fails ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        if reason:
            self._network = before
            return f"{self.spec.name} is not computed by openvino: {reason}"
        self.engine = "openvino"
        return ""

    def encode(self, tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the features of tiles; in parts where the device's memory is too small for all at once.

        Parameters
        ----------
        tiles
            RGB uint8 (n, tile_size, tile_size, 3), at ``spec.mpp`` µm/px.

        Returns
        -------
        numpy.ndarray
            float32 (n, width).

        Raises
        ------
        BundleError
            If the memory is too small for one tile, or features are no finite numbers.
        """
        from pyhisto.bundle.engine import in_parts

        one = f"one tile of {self.spec.tile_size} px"
        out = in_parts(self._encode, tiles, np.concatenate, device=self.device, one=one)
        if not np.isfinite(out).all():
            raise BundleError(f"encoder {self.spec.name} gives features that are no finite numbers")
        return out

    def _encode(self, tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        import torch

        with torch.inference_mode():
            found = self._network(self._input(tiles))
        if not isinstance(found, torch.Tensor) or found.ndim not in (2, 4) or len(found) != len(tiles):
            shape = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
            raise BundleError(
                f"encoder {self.spec.name} gives {shape} for {len(tiles)} tiles", expected="(n, d) or (n, d, h, w)"
            )
        pooled = found.mean(dim=(2, 3)) if found.ndim == 4 else found
        return np.asarray(pooled.float().cpu().numpy(), dtype=np.float32)

    def _input(self, tiles: npt.NDArray[np.uint8]) -> Any:
        """Return tiles as the network's input, float32 tensor (n, 3, tile_size, tile_size), on its device."""
        import torch

        x = torch.from_numpy(np.ascontiguousarray(tiles)).to(self.device).permute(0, 3, 1, 2).float().div_(255)
        mean, std = (torch.tensor(v, device=x.device).view(1, -1, 1, 1) for v in (self.spec.mean, self.spec.std))
        return (x - mean).div_(std)


def load_encoder(source: str, options: EncoderOptions | None = None, *, device: str = "cpu") -> Encoder:
    """Load an encoder, and try it on one tile.

    Parameters
    ----------
    source
        One of :data:`NETWORKS`; :data:`TIMM_PREFIX` and a name; :data:`PIXELS`; the folder of a bundle; or a
        TorchScript file, with a file of the same name and the suffix ``.json`` beside it: an object with ``mpp``
        (µm/px), ``tile_size`` (px) and optionally ``name``, ``mean`` and ``std`` (of RGB in 0..1). A TorchScript file
        is code that runs.
    options
        See :class:`EncoderOptions`.
    device
        Where it runs.

    Raises
    ------
    ConfigError
        If there is no such encoder, an option does not apply to it, its weights do not fit or have another sha256, or
        this machine does not have the device.
    BundleError
        If the bundle or TorchScript file is damaged, or its network no encoder.
    """
    from pyhisto.device import check_device

    check_device(device)
    options = options or EncoderOptions()
    spec, network = _reader(source, options)(source, options)
    if options.sha256 is not None and spec.sha256 != options.sha256.lower():
        raise ConfigError(f"encoder {source} with weights of sha256 {spec.sha256}", expected=options.sha256)
    mpp = spec.mpp if options.mpp is None else options.mpp
    tile_size = spec.tile_size if options.tile_size is None else options.tile_size
    return Encoder(dataclasses.replace(spec, mpp=mpp, tile_size=tile_size), network, device)


_Loaded: TypeAlias = "tuple[EncoderSpec, nn.Module]"


def _reader(source: str, options: EncoderOptions) -> Callable[[str, EncoderOptions], _Loaded]:
    """Return what loads an encoder of a kind."""
    if source in NETWORKS or source.startswith(TIMM_PREFIX):
        if options.weights is None:
            raise ConfigError(
                f"encoder {source} without weights",
                expected="--encoder-weights and a file",
                remedy="or random, to try things out with features that mean nothing",
            )
        return _named if source in NETWORKS else _timm
    if source == PIXELS and options.weights is None:
        return _pixels
    if not Path(source).exists():
        names = ", ".join((*NETWORKS, f"{TIMM_PREFIX}<name>", PIXELS))
        raise ConfigError(f"encoder {source!r}", expected=f"{names}, the folder of a bundle, or a TorchScript file")
    if options.weights is not None:
        raise ConfigError(f"--encoder-weights with {source}, which has its own", remedy="leave it out")
    return _of_bundle if Path(source).is_dir() else _torchscript


def _named(source: str, options: EncoderOptions) -> _Loaded:
    import torch

    from pyhisto.bundle.foreign.networks import file_sha256
    from pyhisto.features import networks
    from pyhisto.models.encoders import load_encoder_weights

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        network: nn.Module = getattr(networks, NETWORKS[source])()
    weights = str(options.weights)
    if weights in ("imagenet", "pretrained"):
        raise ConfigError(f"weights {weights!r} of {source}", expected="a file, or random")
    load_encoder_weights(network, weights)
    sha256 = _state_sha256(network) if weights == "random" else file_sha256(Path(weights))
    return EncoderSpec(source, sha256), network


def _pixels(source: str, options: EncoderOptions) -> _Loaded:
    """Return what lays the colours of a tile in a row, channels first; divided by 255 and multiplied again."""
    del options
    from torch import nn

    sha256 = hashlib.sha256(source.encode()).hexdigest()
    return EncoderSpec(source, sha256, tile_size=224, mean=(0.0,) * 3, std=(1 / 255,) * 3), nn.Flatten()


def _timm(source: str, options: EncoderOptions) -> _Loaded:
    try:
        import timm
    except ImportError as error:
        raise ConfigError(
            f"encoder {source} without timm ({error})", remedy="pip install 'qupath-ext[timm]'"
        ) from error
    import torch

    from pyhisto.bundle.foreign.networks import file_sha256, load_weights

    name, weights = source.removeprefix(TIMM_PREFIX), str(options.weights)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(RANDOM_SEED)
            network: nn.Module = timm.create_model(name, pretrained=weights == "pretrained", num_classes=0)
    except (RuntimeError, ValueError, OSError) as error:
        raise ConfigError(f"encoder {source} cannot be made ({str(error).splitlines()[0]})") from error
    from_file = weights not in ("random", "pretrained")
    if from_file:
        if not Path(weights).is_file():
            raise ConfigError(f"encoder weights {weights} do not exist", expected="a file, pretrained or random")
        load_weights(network, Path(weights))
    known: Mapping[str, Any] = getattr(network, "pretrained_cfg", None) or {}
    spec = EncoderSpec(
        source,
        file_sha256(Path(weights)) if from_file else _state_sha256(network),
        tile_size=int(known.get("input_size", (3, 256, 256))[-1]),
        mean=tuple(known.get("mean", IMAGENET_MEAN)),
        std=tuple(known.get("std", IMAGENET_STD)),
    )
    return spec, network


def _of_bundle(source: str, options: EncoderOptions) -> _Loaded:
    """Load the encoder of a bundle; in float32 by torch, so that every machine gives the same features."""
    del options
    from pyhisto.bundle.files import load_bundle
    from pyhisto.features.networks import bundle_encoder

    bundle = load_bundle(source, precision="float32", engine="torch")
    if bundle.spec.cascade is not None:
        bundle = bundle.stages()[0]
    own = bundle.spec
    spec = EncoderSpec(
        f"bundle:{bundle.path.resolve().name}", bundle.sha256, own.mpp, own.tile_size, own.channel_mean, own.channel_std
    )
    return spec, bundle_encoder(bundle)


def _torchscript(source: str, options: EncoderOptions) -> _Loaded:
    del options
    from pyhisto.bundle.foreign.literals import read_json
    from pyhisto.bundle.foreign.networks import file_sha256, load_torchscript

    path = Path(source)
    beside = path.with_suffix(".json")
    told = {"name": path.stem, "mean": IMAGENET_MEAN, "std": IMAGENET_STD, **read_json(beside)}
    if set(told) != set(DESCRIPTION):
        odd = sorted(set(told) ^ set(DESCRIPTION))[0]
        raise BundleError(f"{beside}: {odd!r} is {'unknown' if odd in told else 'missing'}", expected=f"{DESCRIPTION}")
    try:
        mean, std = (tuple(map(float, told[key])) for key in ("mean", "std"))
        mpp, tile_size = float(told["mpp"]), int(told["tile_size"])
    except (TypeError, ValueError) as error:
        raise BundleError(f"{beside} says what is no number ({error})", expected=f"{DESCRIPTION}") from error
    spec = EncoderSpec(str(told["name"]), file_sha256(path), mpp, tile_size, mean, std)
    return spec, load_torchscript(path)


def _state_sha256(network: nn.Module) -> str:
    """Return the sha256 of all weights, in the order of their names."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode() + b"\0" + value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
