"""Networks written otherwise: the same output from fewer layers, or fewer multiplications."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.networks.nets.basic_unet import UpCat
from monai.networks.nets.resnet import ResNetBlock
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.hooks import RemovableHandle

__all__ = [
    "fold_batch_norms",
    "has_winograd",
    "join_upsampling",
    "planar",
    "same_output",
    "use_winograd",
    "watched",
    "winograd_share",
]

TOLERANCE = 1e-5
"""Largest difference of an output that rewriting may make, as a share of the largest output (or absolutely below 1)."""

WINOGRAD_CHANNELS = (64, 512)
"""Channels with which Winograd's convolutions are faster: with fewer, transforms take longer than what they save."""

WINOGRAD_PX = 640
"""Pixels of a map from which they are: the weights' transforms are made anew for each input."""

TAPS = ((0.0, 0.0, 1.0), (0.0, 1.0, 1.0), (1.0, 1.0, 0.0), (1.0, 0.0, 0.0))
"""Which of three taps beside each other in an image at twice the size meet each of the four of its transposed form."""


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
    return folded if same_output(folded, network, example) else copy.deepcopy(network)


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
    watched(network, example, handles)
    return {conv: norm for conv, norm in pairs if calls.count(conv) == calls.count(norm) == 1}


def watched(network: nn.Module, example: torch.Tensor, handles: Sequence[RemovableHandle]) -> None:
    """Let an input go through a network whose hooks watch it, and take them off."""
    try:
        with torch.inference_mode():
            network(example)
    finally:
        for handle in handles:
            handle.remove()


def join_upsampling(network: nn.Module, example: torch.Tensor) -> nn.Module:
    """Return a copy of a network whose nearest-neighbour upsampling is part of the convolution after it.

    Doubling an image and convolving it with 3 x 3 taps, zeros beyond its edge, is one transposed convolution of
    stride 2 with 4 x 4: each output pixel sees 2 x 2 different pixels, whose taps are added up. Where the decoder of a
    U-Net joins a skip connection to the doubled image, the convolution of both is the sum of two. A network that then
    gives something else is returned as a plain copy.

    Parameters
    ----------
    network
        With MONAI's ``UpCat`` as decoder stages, in evaluation mode; it stays as it is.
    example
        float32 (n, 3, h, w), on its device.
    """
    joined = copy.deepcopy(network)
    stages = {name: stage for name, stage in joined.named_modules() if isinstance(stage, UpCat) and _doubles(stage)}
    if not stages:
        return joined
    for name, stage in stages.items():
        joined.set_submodule(name, JoinedStage(stage))
    return joined if same_output(joined, network, example) else copy.deepcopy(network)


def _doubles(stage: UpCat) -> bool:
    """Return whether a decoder stage doubles its input by nearest neighbours before a plain 3 x 3 convolution."""
    *_, upsample = stage.upsample.children()
    nearest = isinstance(upsample, nn.Upsample) and upsample.mode == "nearest" and upsample.scale_factor == (2.0, 2.0)
    return nearest and _plain(stage.convs.conv_0.conv)


def _plain(module: nn.Module) -> bool:
    """Return whether a module is a convolution with 3 x 3 taps, of every pixel, zeros beyond the edge."""
    if not isinstance(module, nn.Conv2d) or module.padding_mode != "zeros":
        return False
    found = module.kernel_size, module.stride, module.padding, module.dilation, module.groups
    return found == ((3, 3), (1, 1), (1, 1), (1, 1), 1)


class JoinedStage(nn.Module):
    """A decoder stage of a U-Net: what :func:`join_upsampling` makes of MONAI's ``UpCat``.

    Parameters
    ----------
    stage
        Its input is doubled by nearest neighbours; the skip connection, if any, takes the first channels of its first
        convolution.
    """

    def __init__(self, stage: UpCat) -> None:
        super().__init__()
        first = stage.convs.conv_0
        weight, bias = first.conv.weight.detach(), first.conv.bias
        *before, _ = stage.upsample.children()
        self.before = nn.Sequential(*before)
        coarse = before[0].out_channels if before else first.conv.in_channels
        skip = first.conv.in_channels - coarse
        self.up = nn.ConvTranspose2d(coarse, len(weight), 4, stride=2, padding=1, bias=bias is not None)
        taps = torch.tensor(TAPS, dtype=weight.dtype, device=weight.device)
        self.up.weight = nn.Parameter(torch.einsum("yi,xj,ocij->coyx", taps, taps, weight[:, skip:]))
        if bias is not None:
            self.up.bias = nn.Parameter(bias.detach())
        self.skip = nn.Conv2d(skip, len(weight), 3, padding=1, bias=False) if skip else None
        if self.skip is not None:
            self.skip.weight = nn.Parameter(weight[:, :skip])
        self.after = nn.Sequential(*[child for name, child in first.named_children() if name != "conv"])
        self.last = stage.convs.conv_1

    def forward(self, x: torch.Tensor, skip: torch.Tensor | None) -> torch.Tensor:
        """Return (n, out, 2 h, 2 w) for (n, c, h, w) and, where there is a skip connection, (n, s, 2 h, 2 w)."""
        out: torch.Tensor = self.up(self.before(x))
        if self.skip is not None:
            beside = self.skip(skip)
            out = beside.add_(planar(out) if beside.is_contiguous() else out)
        return self.last(self.after(out))  # type: ignore[no-any-return]


def has_winograd() -> bool:
    """Return whether torch has NNPACK, and this CPU is one on which its convolutions are the faster ones.

    NNPACK has no code for AVX-512, which ordinary convolutions gain from.
    """
    nnpack: bool = torch.backends.nnpack.is_available()  # type: ignore[no-untyped-call]
    known = hasattr(torch, "_nnpack_spatial_convolution")
    return nnpack and known and torch.backends.cpu.get_cpu_capability() == "AVX2"


def use_winograd(network: nn.Module) -> None:
    """Let NNPACK compute the convolutions of a network that it is faster at, in place; float32 on a CPU.

    Winograd's minimal filtering (Lavin and Gray 2016) takes 64 multiplications for 6 x 6 pixels instead of 324.

    Parameters
    ----------
    network
        In evaluation mode; :func:`has_winograd` must hold.
    """
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Conv2d) and _suits_winograd(module):
            network.set_submodule(name, WinogradConvolution(module))
    for name, block in list(network.named_modules()):
        if isinstance(block, ResNetBlock) and isinstance(block.conv2, WinogradConvolution):
            if block.downsample is not None:
                block.downsample = nn.Sequential(block.downsample, Planar())
            network.set_submodule(name, nn.Sequential(Planar(), block))
    torch.set_num_threads(torch.get_num_threads())  # else NNPACK takes one a processor


def winograd_share(network: nn.Module, example: torch.Tensor) -> float:
    """Return the share of a network's multiplications, written plainly, in convolutions of :func:`use_winograd`.

    Parameters
    ----------
    network
        In evaluation mode; it stays as it is.
    example
        float32 (n, 3, h, w), on its device.
    """
    counts = {True: 0, False: 0}

    def count(module: nn.Conv2d, inputs: Any, output: torch.Tensor) -> None:
        del inputs
        counts[_suits_winograd(module)] += module.weight[0].numel() * output.numel()

    handles = [each.register_forward_hook(count) for each in network.modules() if isinstance(each, nn.Conv2d)]
    watched(network, example, handles)
    return counts[True] / max(1, sum(counts.values()))


def _suits_winograd(module: nn.Conv2d) -> bool:
    """Return whether Winograd's convolution is faster on a large map."""
    channels = module.in_channels, module.out_channels
    return _plain(module) and WINOGRAD_CHANNELS[0] <= min(channels) and max(channels) <= WINOGRAD_CHANNELS[1]


class WinogradConvolution(nn.Module):
    """A 3 x 3 convolution by Winograd's minimal filtering on maps that are large enough.

    Parameters
    ----------
    direct
        The convolution.
    """

    flat: torch.Tensor
    """The weights, out x (c * 3 * 3): with two axes, nothing changes their order in memory."""

    def __init__(self, direct: nn.Conv2d) -> None:
        super().__init__()
        self.direct = direct
        self.register_buffer("flat", direct.weight.detach().flatten(1).clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (n, out, h, w) for (n, c, h, w)."""
        if x.shape[2] * x.shape[3] < WINOGRAD_PX:
            return self.direct(x)  # type: ignore[no-any-return]
        weight = self.flat.view(self.direct.weight.shape)
        out = [torch._nnpack_spatial_convolution(one[None], weight, self.direct.bias, 1) for one in planar(x)]
        return out[0] if len(out) == 1 else torch.cat(out)


class Planar(nn.Module):
    """Hands on what it gets, channel by channel; see :func:`planar`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the same numbers, (n, c, h, w)."""
        return planar(x)


def planar(x: torch.Tensor) -> torch.Tensor:
    """Return maps (n, c, h, w) that lie in memory one channel after the other, as NNPACK makes and wants them.

    Torch takes three times as long to order them itself, and ten times as long to add maps of different orders.
    """
    if x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return x.contiguous()
    n, channels, height, width = x.shape
    out = torch.empty((n, channels, height, width), dtype=x.dtype, device=x.device)
    for own, its in zip(out, x, strict=True):  # of two axes it exchanges blocks
        own.view(channels, -1).copy_(its.permute(1, 2, 0).reshape(-1, channels).t())
    return out


def same_output(rewritten: nn.Module, network: nn.Module, example: torch.Tensor) -> bool:
    """Return whether a network gives what it gave before it was rewritten."""
    with torch.inference_mode():
        expected, found = network(example), rewritten(example)
    bound = TOLERANCE * max(1.0, float(expected.abs().max()))
    return float((found - expected).abs().max()) <= bound
