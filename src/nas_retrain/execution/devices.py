"""The device that trainings run on: found without importing torch, which takes seconds, where that is plain; taken by a
worker process; probed; and what an error says about it."""

from __future__ import annotations

import os
import platform
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

ACCELERATORS = ("nvidia*", "nvhost*", "nvmap", "kfd", "dxg")
"""What NVIDIA's, AMD's and Windows' drivers put into /dev on Linux. Where there is none, torch finds none."""


@dataclass(frozen=True)
class Device:
    """type: torch's name for the kind ("cpu", "cuda", "mps"). name: what run records call it."""

    type: str
    name: str


@cache
def found(wanted: str) -> Device:
    """The device that launcher.device names; see `training.choose_device` for what "auto" means and what is raised."""
    if wanted == "cpu" or (wanted == "auto" and _plainly_none()):
        return Device("cpu", "cpu")
    from nas_retrain.execution.train import choose_device, device_name

    device = choose_device(wanted)
    return Device(device.type, device_name(device))


def _plainly_none() -> bool:
    """Whether this machine has no accelerator and was given none, so that torch need not be asked."""
    if sys.platform != "linux" or "CUDA_VISIBLE_DEVICES" in os.environ:
        return False
    return not any(any(Path("/dev").glob(name)) for name in ACCELERATORS)


OUTSIDE_OF_TORCH = 1 << 30
"""Bytes of a GPU that each process is left beside torch's own: for CUDA's context, its kernels and its libraries."""

PROBED = 1 << 16
"""How many numbers a probe sends to the device and back."""


def count(device: torch.device | Device) -> int:
    """How many devices of this kind there are."""
    if device.type != "cuda":
        return 1
    import torch

    return torch.cuda.device_count()


def called(device: str) -> str:
    """What messages call the device of torch's name: a GPU is named with its node."""
    kind, _, index = device.partition(":")
    return f"GPU {index or 0} of {platform.node()}" if kind == "cuda" else device


def take(device: torch.device, sharing: int) -> None:
    """Make this process ready to train on a device that `sharing` processes share. Raises what torch raises if the
    device is bad, absent or somebody else's."""
    import torch

    from nas_retrain.execution.train import prepare_process

    if device.type == "cuda":
        torch.cuda.set_device(device)  # what names no device must not make a context on the first one
        limit_memory(device, sharing)
    prepare_process(device)
    probe(device)


def cudnn_version() -> str:
    """cuDNN's version as torch counts it, such as 91002; "None" without it."""
    import torch

    return str(torch.backends.cudnn.version())  # type: ignore[no-untyped-call]


def empty_cache() -> None:
    """Give back the GPU memory that torch keeps for tensors to come."""
    import torch

    torch.cuda.empty_cache()


def limit_memory(device: torch.device, sharing: int) -> None:
    """Keep this process within its share of a GPU that `sharing` processes share.

    cuDNN takes another algorithm, with other last bits, where the memory that one needs cannot be had. So what a
    training comes to must not depend on what its neighbours hold just then.
    """
    import torch

    if sharing > 1:
        total = torch.cuda.get_device_properties(device).total_memory
        share = max(1 / sharing - OUTSIDE_OF_TORCH / total, 0.5 / sharing)
        torch.cuda.set_per_process_memory_fraction(share, device)


def probe(device: torch.device) -> None:
    """See whether a GPU still works: what is sent to it comes back, and a kernel runs on it without an error.

    Raises what torch raises if not, and RuntimeError if something else comes back.
    """
    import torch

    if device.type != "cuda":
        return
    sent = torch.arange(PROBED)
    there = sent.to(device)
    there + there
    torch.cuda.synchronize(device)
    if not torch.equal(there.cpu(), sent):
        raise RuntimeError(f"CUDA error: {called(str(device))} does not keep what is written to its memory")


_SHORT = re.compile(r"out of memory|(CUBLAS|CUDNN)_STATUS_ALLOC_FAILED", re.IGNORECASE)
_FAULT = re.compile(r"CUDA|cuDNN|CUBLAS|cuBLAS")


def blamed(error: BaseException, device: torch.device) -> Literal["memory", "device", "training"]:
    """What an error that came up while a device was used is to be blamed on: too little of the device's memory; the
    device, or this process's use of it, so that nothing in this process can succeed any more; or the training."""
    import torch

    if device.type != "cuda":
        return "training"
    told = str(error)
    if isinstance(error, torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and _SHORT.search(told)):
        return "memory"
    of_torch = getattr(torch, "AcceleratorError", ())  # torch has it since 2.8
    if isinstance(error, of_torch) or (isinstance(error, RuntimeError) and _FAULT.search(told)):
        return "device"
    try:
        probe(device)
    except RuntimeError:
        return "device"
    return "training"
