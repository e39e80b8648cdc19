"""Several processes that train one network, as torch's launcher ``torchrun`` starts them.

The joint batch has ``TrainSettings.batch_size`` patches; each process (rank) computes the network on its slice. Logits
and labels of all ranks are joined before the loss, and batch normalisation takes the statistics of the joint batch, so
that a step computes what one process would, up to the order of sums. With R ranks, each of which computes the joint
loss L, the backward pass of the collectives sums over the ranks and gives each one its share of the gradient of R L;
the mean over ranks, which DistributedDataParallel takes, is the gradient of L.
"""

from __future__ import annotations

import atexit
import copy
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pyhisto.errors import ConfigError

__all__ = ["JointBatchNorm", "Team", "is_first", "join_team"]


class Team:
    """The processes that train together; one alone unless ``torchrun`` started more.

    Attributes
    ----------
    rank, size
        Number of this process, from 0, and how many there are.
    device
        Where this process computes.
    """

    def __init__(self, rank: int, size: int, device: torch.device) -> None:
        self.rank = rank
        self.size = size
        self.device = device

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and shows progress."""
        return self.rank == 0

    def parallel(self, model: nn.Module) -> nn.Module:
        """Return what the loop runs: the model itself, or a copy of it that is kept alike on all ranks."""
        if self.size == 1:
            return model
        if self.device.type == "cuda":
            joint = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))  # type: ignore[no-untyped-call]
            return DistributedDataParallel(joint, device_ids=[self.device.index], static_graph=True)
        return DistributedDataParallel(_with_joint_batch_norm(copy.deepcopy(model)), static_graph=True)

    def gather(self, part: torch.Tensor) -> torch.Tensor:
        """Return the tensors of all ranks, each (b, ...), as one (size * b, ...); gradients flow back."""
        if self.size == 1:
            return part
        return _gather(part, self.rank, self.size)

    def total(self, numbers: torch.Tensor) -> torch.Tensor:
        """Return the sum over all ranks, on the CPU."""
        if self.size > 1:
            numbers = numbers.to(self.device, copy=True)
            dist.all_reduce(numbers)
        return numbers.cpu()

    def share(self, value: Any) -> Any:
        """Return the first rank's value on all ranks."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def collect(self, value: Any) -> list[Any]:
        """Return the values of all ranks in order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values


def join_team(device: str) -> Team:
    """Return the processes that ``torchrun`` started, connected; or this one alone.

    Parameters
    ----------
    device
        ``"cpu"`` (gloo), ``"cuda"`` (nccl; each process takes the GPU of its local rank) or another GPU (alone).

    Raises
    ------
    ConfigError
        If several processes are to share a GPU that is none of NVIDIA's or AMD's.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Team(0, 1, torch.device(device))
    if device not in ("cpu", "cuda"):
        raise ConfigError(f"{size} processes on the device {device}", expected="one", remedy="start without torchrun")
    place = torch.device(device)
    if device == "cuda":
        place = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(place)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device == "cuda" else "gloo")
        atexit.register(dist.destroy_process_group)
    return Team(dist.get_rank(), size, place)


def is_first() -> bool:
    """Return whether this process is the only one or the first that ``torchrun`` started."""
    return int(os.environ.get("RANK", "0")) == 0


class JointBatchNorm(nn.Module):
    """Batch normalisation (Ioffe 2015) with the statistics of the joint batch, on any device.

    torch's own ``SyncBatchNorm`` does the same, on GPUs only.

    Parameters
    ----------
    own
        The layer it stands for; it shares its parameters and buffers, under the same names.
    """

    def __init__(self, own: nn.modules.batchnorm._BatchNorm) -> None:
        super().__init__()
        self.eps = own.eps
        self.momentum = own.momentum
        self.weight, self.bias = own.weight, own.bias
        self.register_buffer("running_mean", own.running_mean)
        self.register_buffer("running_var", own.running_var)
        self.register_buffer("num_batches_tracked", own.num_batches_tracked)
        self.running_mean: torch.Tensor
        self.running_var: torch.Tensor
        self.num_batches_tracked: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x`, float (b, C, ...), normalised per channel; the ranks' slices are of one size."""
        mean, variance = self._joint_statistics(x) if self.training else (self.running_mean, self.running_var)
        shape = (1, -1) + (1,) * (x.dim() - 2)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return ((x - mean.view(shape)) * scale.view(shape) + self.bias.view(shape)).to(x.dtype)

    def _joint_statistics(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and variance of each channel over the joint batch, and add them to the running ones."""
        dims = [0, *range(2, x.dim())]
        x = x.float() if x.dtype in {torch.float16, torch.bfloat16} else x
        count = x.numel() / x.shape[1] * dist.get_world_size()
        mean = _sum(x.sum(dims)) / count
        centred = x - mean.view((1, -1) + (1,) * (x.dim() - 2))
        variance = _sum(centred.square().sum(dims)) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            rate = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, rate)
            self.running_var.lerp_(variance * count / max(count - 1, 1), rate)
        return mean, variance


def _with_joint_batch_norm(module: nn.Module) -> nn.Module:
    """Replace the batch normalisations inside a network."""
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            setattr(module, name, JointBatchNorm(child))
        else:
            _with_joint_batch_norm(child)
    return module


class _Sum(torch.autograd.Function):
    """Sum over all ranks; the gradient is the sum of the ranks' gradients."""

    @staticmethod
    def forward(_: Any, x: torch.Tensor) -> torch.Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, gradient: torch.Tensor) -> torch.Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


class _Gather(torch.autograd.Function):
    """The ranks' tensors one after another; a rank's gradient is its slice of the sum of all gradients."""

    @staticmethod
    def forward(ctx: Any, part: torch.Tensor, rank: int, size: int) -> torch.Tensor:
        ctx.own = slice(rank * len(part), (rank + 1) * len(part))
        parts = [torch.empty(part.shape, dtype=part.dtype, device=part.device) for _ in range(size)]
        dist.all_gather(parts, part.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[ctx.own], None, None


def _sum(x: torch.Tensor) -> torch.Tensor:
    total: torch.Tensor = _Sum.apply(x)  # type: ignore[no-untyped-call]
    return total


def _gather(part: torch.Tensor, rank: int, size: int) -> torch.Tensor:
    joined: torch.Tensor = _Gather.apply(part, rank, size)  # type: ignore[no-untyped-call]
    return joined
