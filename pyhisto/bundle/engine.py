"""What computes a network: torch, with batch norms folded into convolutions, or OpenVINO where it is installed."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.fusion import fuse_conv_bn_eval

__all__ = [
    "Engine",
    "OpenVinoEngine",
    "TorchEngine",
    "fold_batch_norms",
    "is_local",
    "make_engine",
    "out_of_memory",
    "throughput_batch",
]

FOLDING_TOLERANCE = 1e-5
"""Largest difference of an output that folding may make, as a share of the largest output (or absolutely below 1)."""

WORTHWHILE = 1.05
"""A larger batch must be this much faster a tile, else the smaller one is taken."""


class Engine(Protocol):
    """Computes a network.

    Attributes
    ----------
    name
        ``"torch"`` or ``"openvino"``.
    precision
        ``"float32"``, ``"bfloat16"`` or ``"float16"``.
    network
        What it computes, as a torch module.
    """

    name: str
    precision: str
    network: nn.Module

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits, float32 (n, channels, h, w), for a float32 input (n, 3, h, w), on the input's device."""


class TorchEngine:
    """A network in torch, its memory in the order that convolutions like best.

    Parameters
    ----------
    network
        In evaluation mode; it is moved and converted in place.
    device
        Where it runs.
    precision
        What it computes in.
    """

    name = "torch"

    def __init__(self, network: nn.Module, device: str, precision: str = "float32") -> None:
        self.precision = precision
        self._type: torch.dtype = getattr(torch, precision)
        self.network = network.to(device, dtype=self._type, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits, float32 (n, channels, h, w)."""
        with torch.inference_mode():
            out: torch.Tensor = self.network(x.to(dtype=self._type, memory_format=torch.channels_last))
            return out.float()


class OpenVinoEngine:
    """A network compiled by OpenVINO for the CPU.

    Parameters
    ----------
    network
        In evaluation mode, on the CPU; it stays as it is.
    example
        float32 (n, 3, h, w): an input to follow through the network; other sizes and numbers may come later.
    precision
        ``"float32"`` or ``"bfloat16"``.
    """

    name = "openvino"

    def __init__(self, network: nn.Module, example: torch.Tensor, precision: str = "float32") -> None:
        import openvino

        self.precision = precision
        self.network = network
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # tracing is deprecated, and OpenVINO has no other way that takes any size
            traced = torch.jit.trace(network, example, check_trace=False)  # type: ignore[no-untyped-call]
            model = openvino.convert_model(traced, example_input=example)
        settings = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # other threads read slides meanwhile
        }
        self._request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
        self._lock = threading.Lock()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits, float32 (n, channels, h, w)."""
        with self._lock:  # a request holds the result of one call
            found = self._request.infer([x.contiguous().numpy()])
            return torch.from_numpy(np.array(found[0], dtype=np.float32))


def make_engine(name: str, network: nn.Module, example: torch.Tensor, device: str, precision: str) -> Engine:
    """Return an engine by its name for a network, which stays as it is; `example` as for :class:`OpenVinoEngine`."""
    if name == "openvino":
        return OpenVinoEngine(network, example, precision)
    return TorchEngine(copy.deepcopy(network), device, precision)


def fold_batch_norms(network: nn.Module, example: torch.Tensor) -> nn.Module:
    """Return a copy of a network whose batch norms are part of the convolutions before them.

    In evaluation mode a batch norm is an affine map of each channel (Ioffe and Szegedy 2015), which the weights of a
    convolution can take in (Jacob 2018, section 3.2). Those that follow no convolution, as before an activation in a
    DenseNet, stay. Which follow one is seen as `example` goes through; a network that then gives something else
    because it uses the output of such a convolution elsewhere, too, is returned as a plain copy.

    Parameters
    ----------
    network
        In evaluation mode; it stays as it is.
    example
        float32 (n, 3, h, w), on its device.
    """
    folded = copy.deepcopy(network)
    for conv_name, norm_name in _followed(folded, example).items():
        conv, norm = folded.get_submodule(conv_name), folded.get_submodule(norm_name)
        transposed = isinstance(conv, _ConvTransposeNd)
        folded.set_submodule(conv_name, fuse_conv_bn_eval(conv, norm, transpose=transposed))  # type: ignore[arg-type,type-var]
        folded.set_submodule(norm_name, nn.Identity())
    with torch.inference_mode():
        expected, found = network(example), folded(example)
    bound = FOLDING_TOLERANCE * max(1.0, float(expected.abs().max()))
    same = float((found - expected).abs().max()) <= bound
    return folded if same else copy.deepcopy(network)


def _followed(network: nn.Module, example: torch.Tensor) -> dict[str, str]:
    """Return the convolutions that a batch norm follows, with that batch norm, by their names; each is used once."""
    made: dict[int, tuple[str, torch.Tensor]] = {}  # keeps the tensors, so that no other gets the same id
    pairs: list[tuple[str, str]] = []
    calls: list[str] = []

    def after(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            del module, inputs
            made[id(output)] = name, output
            calls.append(name)

        return hook

    def before(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            del module
            calls.append(name)
            if id(inputs[0]) in made:
                pairs.append((made[id(inputs[0])][0], name))

        return hook

    handles = []
    for name, module in network.named_modules():
        if isinstance(module, _ConvNd):
            handles.append(module.register_forward_hook(after(name)))
        elif isinstance(module, _BatchNorm) and module.track_running_stats:
            handles.append(module.register_forward_pre_hook(before(name)))
    try:
        with torch.inference_mode():
            network(example)
    finally:
        for handle in handles:
            handle.remove()
    return {conv: norm for conv, norm in pairs if calls.count(conv) == calls.count(norm) == 1}


def is_local(network: nn.Module) -> bool:
    """Return whether an output pixel depends on pixels nearby only, so that tiles may be larger than in training.

    Squeeze-and-excitation, attention over the whole image, and norms of what is seen at once depend on all of a tile.
    """
    ours = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.GroupNorm, nn.LayerNorm, nn.MultiheadAttention, nn.Linear)
    normed = (nn.modules.instancenorm._InstanceNorm,)
    return not any(isinstance(module, (*ours, *normed)) for module in network.modules())


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that the memory of a device is used up."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    words = ("out of memory", "can't allocate memory", "not enough memory", "std::bad_alloc")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def throughput_batch(seconds: Callable[[int], float], most: int) -> int:
    """Return the batch size beyond which tiles hardly get cheaper, a power of two.

    Parameters
    ----------
    seconds
        How long a batch of some size takes; raises what :func:`out_of_memory` knows for one that is too large.
    most
        The largest that may be tried.
    """
    best, cost = 1, seconds(1)
    while best * 2 <= most:
        try:
            doubled = seconds(best * 2) / (best * 2)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            break
        if doubled * WORTHWHILE > cost:
            break
        best, cost = best * 2, doubled
    return best
