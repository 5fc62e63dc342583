"""Whether trainings on this GPU are right: each check is a function that takes a `Subject` and returns a `Finding`.

What is compared is compared with the CPU in double precision, or with another training on the same GPU, bit for bit. No
check knows how fast the GPU is; for that see `gpu_tuning`. A check that needs what is not there (numbers from a device
that computes nothing, a second GPU) says so instead of passing.
"""

from __future__ import annotations

import copy
import gc
import hashlib
import itertools
import math
import multiprocessing
import os
import platform
import shutil
import signal
import statistics
import subprocess
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from nas_retrain.benches import build, pooling, registry
from nas_retrain.data import batches
from nas_retrain.data.batches import DeviceData
from nas_retrain.execution import checkpoints, devices, mps, train
from nas_retrain.execution.cost import made_up_images
from nas_retrain.execution.precision import forward, set_precision
from nas_retrain.execution.roofline import with_cells_per_stage
from nas_retrain.execution.steps import Stepper
from nas_retrain.plan import plan
from nas_retrain.settings import Settings
from nas_retrain.trainings.failures import first_line
from nas_retrain.trainings.training import Training

RATE = 0.01
STEPS = 50
SHORT = 7
"""Steps that a training is stopped after to be resumed: in the middle of an epoch."""

EXACT = 1e-9
"""How far what a device computes in float64 may be from what the CPU does, as a share of its norm."""

OF_AN_OPERATION = {"float64": EXACT, "float32": 1e-4, "tf32": 1e-3, "bfloat16": 1e-2}
"""How far what a device computes of one operation may be from float64 on the CPU, as a share of its norm. An H100 is
off by 2e-6 in float32, 3e-4 in TF32 and 4e-3 in bfloat16, so that none of them passes for the one before it; a wrong
gradient is off by about 1."""

TIMES_THE_CPUS = 3.0
"""How many times as far from float64 as the CPU's a network's values in a lower precision may be. TF32 is held to
bfloat16's, which has three bits fewer."""

PATIENCE = 120.0
"""Seconds that a process of a check may take."""


@dataclass(frozen=True)
class Subject:
    """What is checked: a device, with the settings and cells to train there. learnable: settings with a data set that
    networks learn from in seconds. scratch: an empty folder."""

    device: torch.device
    settings: Settings
    cells: tuple[int, ...]
    learnable: Settings
    scratch: Path

    @property
    def images(self) -> int:
        """How many made-up images there are: four whole batches and a smaller one."""
        return 4 * self.settings.training.batch_size + self.settings.training.batch_size // 3

    def data(self, device: torch.device | None = None) -> DeviceData:
        """Made-up images, the same each time."""
        return made_up_images(self.settings, device or self.device, self.images)


@dataclass(frozen=True)
class Finding:
    """What a check found, in a sentence, with the figures that it is based on."""

    verdict: Literal["passed", "failed", "not run"]
    told: str
    figures: dict[str, Any] = field(default_factory=dict)


Check = Callable[[Subject], Finding]


def run(subject: Subject, checks: Sequence[Check], tell: Callable[[str, Finding], None]) -> dict[str, Finding]:
    """Run checks one after another, and tell each finding as it comes. An error is a finding, too."""
    findings: dict[str, Finding] = {}
    for check in checks:
        name = check.__name__.replace("_", " ")
        try:
            devices.probe(subject.device)
            found = check(subject)
        except Exception:  # noqa: BLE001 - what a device does when it is wrong is not known
            found = Finding("failed", first_line(traceback.format_exc()), {"traceback": traceback.format_exc()})
        findings[name] = found
        tell(name, found)
    return findings


def _judged(right: bool, told: str, **figures: Any) -> Finding:  # noqa: ANN401
    return Finding("passed" if right else "failed", told, figures)


NO_GPU = "there is no CUDA device"
NO_NUMBERS = "the device computes nothing, so that there is nothing to compare"


def computes(device: torch.device) -> bool:
    """Whether arithmetic on the device gives what it must, exactly."""
    numbers = torch.arange(1000, device=device, dtype=torch.float64)
    return bool(numbers.sum().item() == 499_500 and (numbers * 2)[999].item() == 1998)


def _without_numbers(subject: Subject) -> Finding | None:
    return None if computes(subject.device) else Finding("not run", NO_NUMBERS)


# ---- the device ----------------------------------------------------------------------------------------------------


def environment(subject: Subject) -> Finding:
    """What is here: GPUs, driver, libraries, and whether processes can share a GPU at full speed."""
    figures: dict[str, Any] = {
        "node": platform.node(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": train.device_name(subject.device),
    }
    if subject.device.type != "cuda":
        return Finding("not run", NO_GPU, figures)
    properties = torch.cuda.get_device_properties(subject.device)
    figures |= {
        "gpus": torch.cuda.device_count(),
        "memory_gb": round(properties.total_memory / 1e9, 1),
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "cudnn": devices.cudnn_version(),
        "driver": _nvidia_smi("driver_version"),
        "compute_mode": _nvidia_smi("compute_mode"),
        "ecc_errors": _nvidia_smi("ecc.errors.uncorrected.volatile.total"),
        "mps": shutil.which(mps.CONTROL) or "unknown: no " + mps.CONTROL,
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }
    return _judged(True, f"{figures['gpus']} x {figures['device']}, torch {torch.__version__}", **figures)


def _nvidia_smi(what: str) -> str:
    if shutil.which("nvidia-smi") is None:
        return "unknown: no nvidia-smi"
    asked = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown: {error}"
    return ", ".join(dict.fromkeys(done.stdout.split("\n"))).strip(", ")


def arithmetic(subject: Subject) -> Finding:
    """Sums and products of whole numbers, which every device must get exactly."""
    exact = computes(subject.device)
    return _judged(exact, f"sums and products of whole numbers are {'exact' if exact else 'WRONG'}")


# ---- equality with the CPU -----------------------------------------------------------------------------------------


def augmentation(subject: Subject) -> Finding:
    """Crops, flips and normalised values are bit for bit the CPU's."""
    if (unable := _without_numbers(subject)) is not None:
        return unable
    cpu, there = subject.data(torch.device("cpu")), subject.data()
    drawn = [batches.draw_augmentation(data, torch.Generator().manual_seed(1)) for data in (cpu, there)]
    made = [
        batches.augment(data, *(tensor[:99] for tensor in vars(each).values()))
        for data, each in zip((cpu, there), drawn, strict=True)
    ]
    same = torch.equal(made[0], made[1].cpu())
    return _judged(same, f"augmented images {'equal' if same else 'DIFFER FROM'} the CPU's, bit for bit")


def operations(subject: Subject) -> Finding:
    """Each of torch's operations that networks are made of, with its gradients, in each precision, against the CPU's in
    float64, on images of even and of odd size, where 2x2 pooling cuts the last squares."""
    if (unable := _without_numbers(subject)) is not None:
        return unable
    differences: dict[str, float] = {}
    wrong: list[str] = []
    for (operation, module), size in itertools.product(_operations().items(), (7, 16)):
        exact = _with_gradients(module, size, torch.device("cpu"), "float64")
        products = any(parameter.ndim > 1 for parameter in module.parameters())  # else it is in single precision
        for precision in _precisions(subject.device) if products else ("float64", "float32"):
            found = _with_gradients(module, size, subject.device, precision)
            name = f"{operation} of {size}x{size} pixels in {precision}"
            differences[name] = max(map(_far, found, exact))
            if differences[name] > OF_AN_OPERATION[precision]:
                wrong.append(f"{name} is off by {differences[name]:.1e}")
    told = ", ".join(wrong) or "no value or gradient is farther from the CPU's than allowed"
    return _judged(not wrong, told, **differences)


def _precisions(device: torch.device) -> tuple[str, ...]:
    return ("float64", "float32", "bfloat16", *(["tf32"] if device.type == "cuda" else []))


def _far(found: Tensor, exact: Tensor) -> float:
    """The distance as a share of the exact values' norm; infinite if anything is no number."""
    far = ((found - exact).norm() / exact.norm().clamp_min(1e-12)).item()
    return far if math.isfinite(far) else math.inf


def _operations() -> dict[str, nn.Module]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {
            "3x3 pooling": _Function(pooling.averaged),
            "2x2 pooling": _Function(pooling.halved),
            "1x1 convolution": build.Convolution(16, 16, 1, members=1),
            "3x3 convolution": build.Convolution(16, 48, 3, members=1),
            "3x3 convolution of stride 2": build.Convolution(16, 32, 3, members=1, stride=2),
            "BatchNorm": build.BatchNorm(16),
            "ReLU": nn.ReLU(),
            "readout": _Readout(),
        }


class _Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images)


class _Readout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.readout = nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        return build.read_out(images.mean((2, 3)), self.readout, members=1)


@contextmanager
def _computing_in(precision: str, device: torch.device) -> Iterator[torch.dtype]:
    """A context in which the device computes in a precision, which may be float64. It yields the kind of weights."""
    set_precision("float32" if precision == "float64" else precision, device)
    try:
        yield torch.float64 if precision == "float64" else torch.float32
    finally:
        set_precision("float32", device)


def _with_gradients(module: nn.Module, size: int, device: torch.device, precision: str) -> list[Tensor]:
    """On the CPU, what an operation makes of random images, and the gradients of the images and of its weights."""
    generator = torch.Generator().manual_seed(1)
    images, module = torch.randn(8, 16, size, size, generator=generator), copy.deepcopy(module)
    with _computing_in(precision, device) as kind:
        images = images.to(device, kind, memory_format=torch.channels_last).requires_grad_()
        module = module.to(device, kind).to(memory_format=torch.channels_last)
        made = forward(module, images, precision)
        made.backward(torch.randn(made.shape, generator=generator).to(made))  # type: ignore[no-untyped-call]
    gradients = [leaf.grad for leaf in (images, *module.parameters()) if leaf.grad is not None]
    return [tensor.detach().double().cpu() for tensor in (made, *gradients)]


def equality_with_the_cpu(subject: Subject) -> Finding:
    """Logits, all gradients and BatchNorm's statistics against the CPU's in float64: of the whole network in float64,
    and of one with a cell a stage in the lower precisions, in which a deep network's gradients have no right digit."""
    if (unable := _without_numbers(subject)) is not None:
        return unable
    cpu, differences, allowed = torch.device("cpu"), dict[str, float](), dict[str, float]()
    shallow = replace(subject, settings=with_cells_per_stage(subject.settings, 1))
    for cell in subject.cells:
        exact = _one_pass(cell, subject, cpu, "float64")
        for kind, found in _one_pass(cell, subject, subject.device, "float64").items():
            name = f"float64 {kind} of cell {cell}"
            differences[name], allowed[name] = _far(found, exact[kind]), EXACT
        exact, single, half = (_one_pass(cell, shallow, cpu, name) for name in ("float64", "float32", "bfloat16"))
        for precision in _precisions(subject.device)[1:]:
            for kind, found in _one_pass(cell, shallow, subject.device, precision).items():
                name = f"{precision} {kind} of cell {cell}"
                off = (_far(each[kind], exact[kind]) for each in (single, half))
                differences[name], allowed[name] = _far(found, exact[kind]), _allowed(precision, kind, *off)
    wrong = [f"{name} {far:.1e} ({allowed[name]:.1e})" for name, far in differences.items() if far > allowed[name]]
    told = f"farther from float64 than (allowed): {', '.join(wrong)}" if wrong else "no value is too far from float64"
    return _judged(not wrong, told, differences=differences, allowed=allowed)


def _allowed(precision: str, kind: str, single: float, half: float) -> float:
    """How far a network's values in a lower precision may be, where the CPU's in float32 are off by `single` and in
    bfloat16 by `half`.

    A ReLU whose input is next to zero opens in one computation and not in another, which changes all gradients before
    it. So in float32 gradients are off by next to nothing or, by luck, by what one ReLU makes. In bfloat16 many do: an
    eighth of what they come to is more than one makes, and far less than a wrong gradient is off by.
    """
    if precision == "float32":
        return half / 8 if kind == "gradients" else TIMES_THE_CPUS * single
    return TIMES_THE_CPUS * half


def _one_pass(cell: int, subject: Subject, device: torch.device, precision: str) -> dict[str, Tensor]:
    """What a forward and a backward pass make, on the CPU: logits, the gradients of all parameters together, and the
    statistics that BatchNorm keeps."""
    settings = subject.settings
    data = subject.data(torch.device("cpu"))
    network = build.build(registry.of(settings.bench).graph_at(cell), settings, initialisation="stock", seed=1)
    with _computing_in(precision, device) as kind:
        images, labels = data.test_images[:16].to(device, kind), data.test_labels[:16].to(device)
        network = network.to(device, kind).train()
        logits = forward(network, images, precision)
        functional.cross_entropy(logits.to(kind), labels).backward()  # type: ignore[no-untyped-call]

    def joined(tensors: Iterable[Tensor | None]) -> Tensor:
        flat = [each.detach().double().cpu().flatten() for each in tensors if each is not None]
        return torch.cat([torch.empty(0, dtype=torch.float64), *flat])  # without normalisation there are no statistics

    return {
        "logits": joined([logits]),
        "gradients": joined(parameter.grad for parameter in network.parameters()),
        "statistics": joined(tensor for tensor in network.buffers() if tensor.is_floating_point()),
    }


# ---- the same bits each time ---------------------------------------------------------------------------------------


def a_training(cell: int, settings: Settings, epochs: int = 100, seed: int = 1) -> Training:
    """A training of one cell at a small rate."""
    chosen = settings.model_copy(update={"cells": (cell,), "seeds": (seed,)})
    planned = plan.recipe_trainings(chosen, RATE)[0]
    return replace(planned, cell=cell, epochs=epochs, learning_rate=RATE)


def bits_after(group: Sequence[Training], steps: int, subject: Subject, data: DeviceData, name: str) -> str:
    """A digest of all that a group of trainings is after so many more steps; it goes on from a checkpoint of the same
    name."""
    path = subject.scratch / name
    left = iter(range(steps - 1, -1, -1))
    with suppress(train.Stopped):
        train.train(group, subject.settings, data, path, lambda: next(left) == 0)
    state = checkpoints.content(path)
    digest = hashlib.blake2b()
    for array in [*state["network"].values(), *state["momenta"]]:
        digest.update(array.tobytes())
    return digest.hexdigest()


def _bits_elsewhere(group: Sequence[Training], steps: int, subject: Subject, name: str) -> str:
    """The same, in a process of its own."""
    devices.take(subject.device, 1)
    return bits_after(group, steps, subject, subject.data(), name)


def _processes(number: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(number, mp_context=multiprocessing.get_context("spawn"))


def determinism(subject: Subject) -> Finding:
    """Fifty steps, the smaller batch among them: twice here, in another process, beside another process and beside
    other trainings of the same process."""
    if (unable := _without_numbers(subject)) is not None:
        return unable
    data, differing = subject.data(), []
    other = (a_training(subject.cells[-1], subject.settings),)
    for place, cell in enumerate(subject.cells[:3]):
        group = (a_training(cell, subject.settings),)
        expected = bits_after(group, STEPS, subject, data, f"first-{place}")
        with _processes(2) as pool:
            neighbour = pool.submit(_bits_elsewhere, other, STEPS, subject, f"neighbour-{place}")
            beside = pool.submit(_bits_elsewhere, group, STEPS, subject, f"beside-{place}")
            found = {
                "again": bits_after(group, STEPS, subject, data, f"again-{place}"),
                "in another process, beside others": beside.result(PATIENCE),
            }
            neighbour.result(PATIENCE)
        differing += [f"cell {cell} {how}" for how, bits in found.items() if bits != expected]
    told = f"differing bits: {', '.join(differing)}" if differing else f"{STEPS} steps end with the same bits"
    return _judged(not differing, told)


def side_by_side(subject: Subject) -> Finding:
    """A training has the same bits alone and with two others in its process, each with a stream of its own."""
    if subject.device.type != "cuda":
        return Finding("not run", f"{NO_GPU}; elsewhere trainings of a group are one wide network")
    if (unable := _without_numbers(subject)) is not None:
        return unable
    data = subject.data()
    seeds = [a_training(subject.cells[0], subject.settings, seed=seed) for seed in (1, 2, 3)]
    bits_after(seeds, STEPS, subject, data, "together")
    together = checkpoints.content(subject.scratch / "together")
    differing = 0
    for place, alone in enumerate(seeds):
        bits_after((alone,), STEPS, subject, data, f"alone-{place}")
        arrays = checkpoints.content(subject.scratch / f"alone-{place}")["network"]
        for name, array in arrays.items():
            length = len(array)
            differing += array.tobytes() != together["network"][name][place * length : (place + 1) * length].tobytes()
    return _judged(differing == 0, f"{differing} tensors of three trainings differ from those trained alone")


def graph_and_eager(subject: Subject) -> Finding:
    """Steps that are replayed as a graph end with the bits of steps that are launched kernel by kernel."""
    if subject.device.type != "cuda":
        return Finding("not run", NO_GPU)
    if (unable := _without_numbers(subject)) is not None:
        return unable
    differing = []
    for cell in subject.cells[:3]:
        ends = []
        for eager in (False, True):
            (stepper,), batch_size = _steppers(cell, subject), subject.settings.training.batch_size
            stepper.begin_epoch(0, 1.0, 0, [0.0], [0])
            stepper.first_step(batch_size)
            for _ in range(3):
                (stepper.step_eagerly if eager else stepper.step)(batch_size)
            torch.cuda.synchronize(subject.device)
            ends.append([tensor.detach().cpu() for tensor in stepper.network.state_dict().values()])
        if not all(map(torch.equal, *ends)):
            differing.append(str(cell))
    return _judged(not differing, f"cells that differ: {', '.join(differing) or 'none'}")


def _steppers(cell: int, subject: Subject) -> list[Stepper]:
    graph = registry.of(subject.settings.bench).graph_at(cell)
    network = build.build(graph, subject.settings, initialisation="stock", seed=1)
    steppers = train.steppers_for([network], [RATE], [1], subject.settings, subject.data())
    for stepper in steppers:
        stepper.network.train()
    return steppers


# ---- going on ------------------------------------------------------------------------------------------------------


def resume(subject: Subject) -> Finding:
    """A training stopped in the middle of an epoch, and one whose process was killed, end as if nothing had been; on
    another GPU of this machine, too."""
    if (unable := _without_numbers(subject)) is not None:
        return unable
    cell, data = subject.cells[0], subject.data()
    group = (a_training(cell, subject.settings),)
    expected = bits_after(group, 2 * SHORT, subject, data, "straight")
    bits_after(group, SHORT, subject, data, "stopped")
    found = {"stopped": bits_after(group, SHORT, subject, data, "stopped") == expected}
    others = [torch.device("cuda", index) for index in range(1, devices.count(subject.device))]
    if subject.device.type == "cuda" and others:
        bits_after(group, SHORT, subject, data, "moved")
        moved = replace(subject, device=others[0])
        with _processes(1) as pool:
            bits = pool.submit(_bits_elsewhere, group, SHORT, moved, "moved").result(PATIENCE)
        found["on another GPU"] = bits == expected
    found["killed"] = _killed_and_resumed(cell, subject, data)
    told = ", ".join(f"{how}: {'the same bits' if same else 'OTHER BITS'}" for how, same in found.items())
    return _judged(all(found.values()), told, **found)


def _killed_and_resumed(cell: int, subject: Subject, data: DeviceData) -> bool:
    launcher = subject.settings.launcher.model_copy(update={"checkpoint_every": 1, "checkpoint_minutes": 0.0})
    often = replace(subject, settings=subject.settings.model_copy(update={"launcher": launcher}))
    group = (a_training(cell, subject.settings, epochs=6),)
    (expected,) = train.train(group, subject.settings, data, subject.scratch / "undisturbed")
    path = subject.scratch / "killed"
    process = multiprocessing.get_context("spawn").Process(target=_train_slowly, args=(group, often, path), daemon=True)
    process.start()
    deadline = time.monotonic() + PATIENCE
    while not path.exists() and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.join()
    if not path.exists():
        raise RuntimeError("no checkpoint was written before the time was over")
    (found,) = train.train(group, subject.settings, data, path)
    figures = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
    return bool(found.resumed) and all(getattr(found, name) == getattr(expected, name) for name in figures)


def _train_slowly(group: Sequence[Training], subject: Subject, path: Path) -> None:
    devices.take(subject.device, 1)

    def wait_once_saved() -> bool:
        while path.exists():
            time.sleep(1)  # for its end
        return False

    train.train(group, subject.settings, subject.data(), path, wait_once_saved)


# ---- faults --------------------------------------------------------------------------------------------------------


def faults(subject: Subject) -> Finding:
    """Too little memory, a failing kernel and a killed process are told apart, and this process goes on."""
    if subject.device.type != "cuda":
        return Finding("not run", NO_GPU)
    here = subject.data()
    found: dict[str, str] = {}
    with _processes(1) as pool:
        found["out of memory"] = pool.submit(_blamed_for_memory, subject.device).result(PATIENCE)
    context = multiprocessing.get_context("spawn")
    for name, target in {"failing kernel": _fail, "killed": _wait_to_be_killed}.items():
        ours, theirs = context.Pipe()
        process = context.Process(target=target, args=(theirs, subject.device), daemon=True)
        process.start()
        theirs.close()
        if not ours.poll(PATIENCE):
            raise RuntimeError(f"the process for {name} never answered")
        found[name] = ours.recv()
        process.kill()
        process.join()
    devices.probe(subject.device)
    bits_after((a_training(subject.cells[0], subject.settings),), 2, subject, here, "survivor")
    expected = {"out of memory": "memory, then sound", "killed": "alive"}
    if computes(subject.device):
        expected["failing kernel"] = "device"
    wrong = [name for name, told in expected.items() if found[name] != told]
    return _judged(
        not wrong, f"not as expected: {', '.join(wrong)}" if wrong else "each was told as what it is", **found
    )


def _blamed_for_memory(device: torch.device) -> str:
    devices.take(device, 1)
    total = torch.cuda.get_device_properties(device).total_memory
    try:
        torch.empty(2 * total, dtype=torch.uint8, device=device)
    except RuntimeError as error:
        blamed = devices.blamed(error, device)
    else:
        return "nothing was raised"
    devices.empty_cache()
    devices.probe(device)
    return f"{blamed}, then sound"


def _fail(connection: Any, device: torch.device) -> None:  # noqa: ANN401 - multiprocessing's, different on each system
    devices.take(device, 1)
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - CUDA itself prints that the assertion failed, as it should
        os.dup2(nowhere.fileno(), 2)
    try:
        torch.arange(3, device=device)[torch.tensor([7], device=device)].cpu()  # asserts on the device
    except RuntimeError as error:
        connection.send(devices.blamed(error, device))
    else:
        connection.send("nothing was raised")


def _wait_to_be_killed(connection: Any, device: torch.device) -> None:  # noqa: ANN401 - as above
    devices.take(device, 1)
    connection.send("alive")
    signal.pause()


# ---- what a step may not do ----------------------------------------------------------------------------------------


def no_hidden_synchronisation(subject: Subject) -> Finding:
    """A step never waits for the GPU. torch itself raises where one does."""
    if subject.device.type != "cuda":
        return Finding("not run", NO_GPU)
    batch_size = subject.settings.training.batch_size
    for cell in subject.cells[:3]:
        (stepper,) = _steppers(cell, subject)
        stepper.begin_epoch(0, 1.0, 0, [0.0], [0])
        stepper.step(batch_size)  # is captured here, which waits
        with _raising_at_synchronisation():
            for _ in range(3):
                stepper.step(batch_size)
    return _judged(True, "no step waits for the GPU")


@contextmanager
def _raising_at_synchronisation() -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def no_leak(subject: Subject, classes: int = 50) -> Finding:
    """After trainings of many classes, no more memory is in use than after the first few."""
    if subject.device.type != "cuda":
        return Finding("not run", NO_GPU)
    data, used = subject.data(), []
    for number, cell in enumerate(registry.of(subject.settings.bench).sample(classes, 0)):
        bits_after((a_training(cell, subject.settings),), 2, subject, data, f"leak-{number}")
        gc.collect()
        used.append(torch.cuda.memory_allocated(subject.device))
    grown = max(used[3:]) - max(used[:3])  # libraries keep what they allocate in the first
    return _judged(grown <= 0, f"{grown:,} bytes more after {classes} trainings than after 3", bytes=used)


# ---- what comes out ------------------------------------------------------------------------------------------------


def short_trainings(subject: Subject, seeds: int = 4, epochs: int = 8) -> Finding:
    """Trainings in each precision reach the accuracy of float32, within the noise of seeds."""
    if (unable := _without_numbers(subject)) is not None:
        return unable
    settings = subject.learnable
    data = batches.load(settings.dataset, settings.data_dir, subject.device)
    means, spreads = {}, {}
    for precision in ("float32", "bfloat16", *(["tf32"] if subject.device.type == "cuda" else [])):
        recipe = settings.training.model_copy(update={"precision": precision})
        chosen = settings.model_copy(update={"training": recipe})
        reached = []
        for seed in range(seeds):
            planned = replace(a_training(subject.cells[0], chosen, epochs, seed), learning_rate=0.1)
            (record,) = train.train((planned,), chosen, data, subject.scratch / f"short-{precision}-{seed}")
            reached.append(record.test_accuracy)
        means[precision], spreads[precision] = statistics.mean(reached), statistics.stdev(reached)
    noise = {name: 3 * ((spread**2 + spreads["float32"] ** 2) / seeds) ** 0.5 for name, spread in spreads.items()}
    right = all(abs(mean - means["float32"]) <= max(noise[name], 1.0) for name, mean in means.items())
    learnt = means["float32"] > 2 * 100 / settings.dataset.classes
    told = ", ".join(f"{name} {mean:.1f} +- {spreads[name]:.1f} %" for name, mean in means.items())
    return _judged(right and learnt, f"test accuracies of {seeds} seeds: {told}", **means)


CHECKS: tuple[Check, ...] = (
    environment,
    arithmetic,
    augmentation,
    operations,
    equality_with_the_cpu,
    determinism,
    side_by_side,
    graph_and_eager,
    resume,
    faults,
    no_hidden_synchronisation,
    no_leak,
    short_trainings,
)
