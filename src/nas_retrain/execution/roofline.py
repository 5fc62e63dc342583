"""The roofline of a training step: operations, bytes and kernels, and the time that a GPU's figures allow them.

A step is run on torch's meta device, where tensors have shapes and no values, and every operation that reaches a kernel
is counted:

- a convolution or matrix product has 2 x (values of its output) x (values added into each) floating-point operations;
  the backward pass of a convolution is two such kernels, one for its input and one for its weights;
- a kernel reads each of its inputs once from memory and writes each of its outputs once. BatchNorm reads its input
  twice (statistics, then values), its backward pass reads input and gradient twice, and selecting rows
  reads those alone;
- its time is at least the larger of operations / peak and bytes / bandwidth (Williams et al. 2009), where operations of
  other kernels count for nothing. A step's time is at least the sum over its kernels.

Nothing is said of launching kernels, of caches that keep what one kernel wrote for the next, or of how near to its peak
a kernel comes: it is a bound below, and no measurement.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nas_retrain.benches import build, registry
from nas_retrain.execution.cost import made_up_images
from nas_retrain.execution.steps import Stepper
from nas_retrain.settings import GpuSettings, Precision, Settings

aten = torch.ops.aten
ALLOCATIONS = {aten.empty.memory_format, aten.empty_like.default, aten.new_empty.default, aten.empty_strided.default}
UPDATE = aten._fused_sgd_.tensor_lr
READ_TWICE = {aten.native_batch_norm.default: 1, aten.native_batch_norm_backward.default: 2}
"""How many of the first inputs of these are read twice."""


@dataclass(frozen=True)
class Kernel:
    """One kernel's work: floating-point operations of a convolution or product, and bytes read and written."""

    operations: float
    bytes: float


@dataclass
class Work:
    """A step's work and, in seconds, the least time of its kernels one after the other."""

    kernels: float = 0
    operations: float = 0.0
    bytes: float = 0.0
    seconds: float = 0.0

    def add(self, kernel: Kernel, gpu: GpuSettings, precision: Precision) -> None:
        """Count one more kernel."""
        self.kernels += 1
        self.operations += kernel.operations
        self.bytes += kernel.bytes
        peak, bandwidth = 1e12 * gpu.teraflops[precision], 1e9 * gpu.gigabytes_per_second
        self.seconds += max(kernel.operations / peak, kernel.bytes / bandwidth)


@dataclass
class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the kernels of what is run in its context, on the meta device."""

    kernels: list[Kernel] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self,
        function: Any,  # noqa: ANN401 - an operation of torch's, and what it was called with
        _types: object,
        arguments: Sequence[Any] = (),
        named: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - what that operation returns
        made = None if function is UPDATE else function(*arguments, **(named or {}))  # which has no meta kernel
        if not function.is_view and function not in ALLOCATIONS:
            self.kernels += _kernels(function, arguments, made)
        return made


def _kernels(function: Any, arguments: Sequence[Any], made: Any) -> list[Kernel]:  # noqa: ANN401 - as above
    """The kernels of one operation."""
    read, written = _tensors(arguments), _tensors(made)
    if function is aten.convolution_backward.default:
        gradient, values, weight = arguments[:3]
        operations = 2.0 * gradient.numel() * math.prod(weight.shape[1:])
        backward = zip(made[:2], (weight, values), arguments[-1][:2], strict=True)
        return [Kernel(operations, _bytes([gradient, other, result])) for result, other, wanted in backward if wanted]
    if function is UPDATE:  # reads weights, gradients and momenta, and writes weights and momenta
        weights, _, momenta = arguments[:3]
        return [Kernel(0.0, _bytes(read) + _bytes([*weights, *momenta]))]
    if function is aten._foreach_copy_.default:
        return [Kernel(0.0, _bytes(read))]
    if function in (aten.index_select.default, aten.gather.default):
        return [Kernel(0.0, 2 * _bytes(written) + _bytes(read[1:]))]
    twice = _bytes(read[: READ_TWICE.get(function, 0)])
    return [Kernel(_operations(function, arguments, made), _bytes(read) + twice + _bytes(written))]


def _operations(function: Any, arguments: Sequence[Any], made: Any) -> float:  # noqa: ANN401 - as above
    if function is aten.convolution.default:
        return float(2 * made.numel() * math.prod(arguments[1].shape[1:]))
    if function in (aten.mm.default, aten.bmm.default):
        return float(2 * made.numel() * arguments[0].shape[-1])
    if function is aten.addmm.default:
        return float(2 * made.numel() * arguments[1].shape[-1])
    return 0.0


def _tensors(values: Any) -> list[Tensor]:  # noqa: ANN401 - as above
    if isinstance(values, Tensor):
        return [values]
    return [each for value in values for each in _tensors(value)] if isinstance(values, list | tuple) else []


def _bytes(tensors: Sequence[Tensor]) -> float:
    """Bytes that these hold in memory, what is expanded counted once."""
    return float(
        sum(
            each.element_size()
            * math.prod(size for size, stride in zip(each.shape, each.stride(), strict=True) if stride)
            for each in tensors
        )
    )


def kernels_of_step(cell: int, settings: Settings) -> list[Kernel]:
    """The kernels of one training step of a cell's network, in their order."""
    device = torch.device("meta")
    network = build.build(registry.graph_of(cell, settings), settings, initialisation="stock", seed=0)
    stepper = Stepper(network, [0.1], [0], settings, made_up_images(settings, device, settings.training.batch_size))
    for _ in range(2):  # what is made in the first step alone is not counted
        with _Counting() as counting:
            stepper.step_eagerly(settings.training.batch_size)
    return list(counting.kernels)


def work_of_step(cell: int, settings: Settings) -> Work:
    """The work of one training step. The network's stages are of equal cells, so that two small networks tell it."""
    cells = settings.network.cells_per_stage
    if cells <= 2:
        return _work(cell, settings)
    one, two = (_work(cell, with_cells_per_stage(settings, number)) for number in (1, 2))
    return Work(**{name: value + (cells - 1) * (vars(two)[name] - value) for name, value in vars(one).items()})


def _work(cell: int, settings: Settings) -> Work:
    work = Work()
    for kernel in kernels_of_step(cell, settings):
        work.add(kernel, settings.gpu, settings.training.precision)
    return work


def with_cells_per_stage(settings: Settings, cells_per_stage: int) -> Settings:
    """The same settings with networks of another depth."""
    network = settings.network.model_copy(update={"cells_per_stage": cells_per_stage})
    return settings.model_copy(update={"network": network})


def measure(cells: Sequence[int], settings: Settings, tell: Callable[[], object] = lambda: None) -> pd.DataFrame:
    """A row for each cell: kernels, gigaflop, gigabytes and milliseconds of a step. tell: called after each."""
    rows = []
    for cell in cells:
        work = work_of_step(cell, settings)
        arch = registry.of(settings.bench).arch_at(cell)
        rows.append((cell, arch, work.kernels, work.operations / 1e9, work.bytes / 1e9, 1e3 * work.seconds))
        tell()
    return pd.DataFrame(rows, columns=["cell", "arch", "kernels", "gigaflop", "gigabytes", "milliseconds"])
