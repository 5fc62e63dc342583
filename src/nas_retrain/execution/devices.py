"""The device that trainings run on, found without importing torch, which takes seconds, where that is plain."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

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
