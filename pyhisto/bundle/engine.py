"""What computes a network: torch, or OpenVINO where it is installed."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from pyhisto.bundle.precise import reduce_precision
from pyhisto.bundle.rewrite import has_winograd, join_upsampling, use_winograd, watched
from pyhisto.bundle.strips import in_strips
from pyhisto.errors import BundleError

__all__ = [
    "Engine",
    "OpenVinoEngine",
    "TorchEngine",
    "in_parts",
    "is_local",
    "make_engine",
    "out_of_memory",
    "throughput_batch",
]

Found = TypeVar("Found")

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
        What it computes in; see :func:`pyhisto.bundle.precise.reduce_precision`.
    """

    name = "torch"

    def __init__(self, network: nn.Module, device: str, precision: str = "float32") -> None:
        self.precision = precision
        self._type: torch.dtype = getattr(torch, precision)
        if precision == "float32":
            network.float()
        else:
            reduce_precision(network, self._type)
        self.network = network.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

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
    """Return an engine by its name for a network, which stays as it is; `example` as for :class:`OpenVinoEngine`.

    On a CPU, where multiplications and memory are what takes the time, it is computed with less of both, as far as the
    engine does not see to it.
    """
    network = copy.deepcopy(network)
    if device == "cpu" and (precision == "float32" or name == "torch"):
        network = join_upsampling(network, example)
    if device == "cpu" and name == "torch":
        if precision == "float32" and has_winograd():
            use_winograd(network)
        network = in_strips(network, example)
    if name == "openvino":
        return OpenVinoEngine(network, example, precision)
    return TorchEngine(network, device, precision)


def is_local(network: nn.Module, example: torch.Tensor) -> bool:
    """Return whether an output pixel depends on pixels nearby only, so that tiles may be larger than in training.

    Squeeze-and-excitation, attention over the whole image, and norms of what is seen at once depend on all of a tile.
    Layers that a network has and does not use, such as the head of a classifier that became an encoder, do not count.

    Parameters
    ----------
    network
        In evaluation mode.
    example
        An input, float (n, channels, h, w), on its device.
    """
    ours = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.GroupNorm, nn.LayerNorm, nn.MultiheadAttention, nn.Linear)
    normed = (nn.modules.instancenorm._InstanceNorm,)
    used: list[nn.Module] = []

    def note(module: nn.Module, inputs: object) -> None:
        del inputs
        used.append(module)

    wide = [module for module in network.modules() if isinstance(module, (*ours, *normed))]
    if wide:
        watched(network, example, [module.register_forward_pre_hook(note) for module in wide])
    return not used


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that the memory of a device is used up."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    words = ("out of memory", "can't allocate memory", "not enough memory", "std::bad_alloc")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def in_parts(
    compute: Callable[[npt.NDArray[Any]], Found],
    batch: npt.NDArray[Any],
    join: Callable[[Sequence[Found]], Found],
    *,
    device: str,
    one: str,
    smaller: Callable[[int], None] | None = None,
) -> Found:
    """Return what is computed of a batch; of its halves, joined, where the memory of a device is too small for all.

    Parameters
    ----------
    compute, batch
        What is computed, of what, along axis 0; raises what :func:`out_of_memory` knows.
    join
        Makes one result of several, in order.
    device, one
        The device, and what one element is, for the message.
    smaller
        Told how many elements at once are tried next.

    Raises
    ------
    BundleError
        If the memory is too small for one element.
    """
    try:
        return compute(batch)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        if len(batch) == 1:
            raise BundleError(
                f"the memory of {device} is too small for {one}",
                remedy="choose smaller tiles, or end what else uses it",
            ) from error
    if device != "cpu":
        torch.get_device_module(device).empty_cache()
    half = len(batch) // 2
    if smaller is not None:
        smaller(half)
    halves = batch[:half], batch[half:]
    return join([in_parts(compute, each, join, device=device, one=one, smaller=smaller) for each in halves])


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
