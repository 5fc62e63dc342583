"""The sums of a cell's vertices, each with its ReLU in one kernel, and with one kernel on the way back.

Small networks are bound by the bytes that their kernels move and by the kernels' number. As a module for each operation
has it, a vertex is a sum of two tensors, another one of that and a third, and a ReLU; on the way back the ReLU's
gradient, and a copy of it to where it lies beside those of other vertices that the same convolution serves. Here, what
is to be summed is handed on as a list of addends until a reader comes, who says what of the sum is read: itself, its
ReLU, or both. The sums are the same, in the same order, so that forward passes have the same bits.

Two operations of torch are defined: `add` and `send_back`. On CUDA devices each is a kernel (see `sum_kernels`);
elsewhere they are what they mean in torch's own operations, which the kernels are tested against.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, reduce
from typing import Any

import torch
from torch import Tensor


@dataclass
class Sent:
    """A tensor whose channels are `parts` addends side by side, each of another vertex; or one addend of any number of
    vertices. tensor: it, or an alias of it, as the vertices after the last one that was settled must read it."""

    tensor: Tensor
    parts: int = 1


Addend = tuple[Sent, int]
"""One of the parts of what was sent."""


def in_one_kernel(device: torch.device) -> bool:
    """Whether networks on this device should be computed by way of this module.

    On the meta device they are as on a GPU, so that what is counted there is what a GPU does.
    """
    return device.type == "meta" or (device.type == "cuda" and _compiled())


@cache
def _compiled() -> bool:
    """Whether the kernels can be compiled on this machine. If not, a warning says why."""
    some = torch.zeros(1, 1, 1, 1, device="cuda")
    try:
        _add_on_gpu([some, some], plain=False, rectified=torch.float32)
    except torch.OutOfMemoryError:
        raise  # which says nothing about compiling
    except Exception as error:  # noqa: BLE001 - of a compiler, a linker, a full disk: torch's own kernels do without
        warnings.warn(
            f"The kernels that sum a cell's vertices cannot be compiled here ({type(error).__name__}: {error}). "
            "torch's own take their place, which are more and slower. Needed are Triton, gcc and Python's headers.",
            stacklevel=2,
        )
        return False
    return True


def settle(
    addends: Sequence[Addend], *, plain: bool, rectified: torch.dtype | None
) -> tuple[Tensor | None, Tensor | None]:
    """The sum of addends of shape (batch, channels, height, width) if it is asked for plain, and its ReLU, in the
    precision `rectified`, if there is one.

    Parts of one tensor must be settled in their order, each once.
    """
    (first, _), *others = addends
    if rectified is None and not others and first.parts == 1:
        return (first.tensor if plain else None), None
    places = [(part, sent.parts) for sent, part in addends]
    total, activated, *passed_on = _Settled.apply(places, plain, rectified, *(sent.tensor for sent, _ in addends))
    for (sent, _), alias in zip(addends, passed_on, strict=True):
        if alias is not None:
            sent.tensor = alias
    return total, activated


class _Settled(torch.autograd.Function):
    """The sum of parts of tensors, its ReLU, and those tensors once more.

    A tensor with several parts goes from vertex to vertex, so that its gradient comes back from vertex to vertex: the
    last one makes room for all of it, and each writes its part.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's own, without a public type
        places: Sequence[tuple[int, int]],
        plain: bool,
        rectified: torch.dtype | None,
        *tensors: Tensor,
    ) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        parts = [_part(tensor, *place) for tensor, place in zip(tensors, places, strict=True)]
        alone = len(parts) == 1 and places[0][1] == 1  # it is the sum itself
        made = list(torch.ops.nas_retrain.add(parts, plain and not alone, rectified))
        activated = made.pop() if rectified is not None else None
        total = (tensors[0] if alone else made.pop()) if plain else None
        ctx.save_for_backward(activated)
        ctx.places, ctx.device = places, tensors[0].device
        ctx.like = [(tensor.shape, tensor.dtype) for tensor in tensors]
        passed_on = [tensor if of > 1 else None for tensor, (_, of) in zip(tensors, places, strict=True)]
        return total, activated, *passed_on

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401 - as above
        of_total: Tensor | None,
        of_activated: Tensor | None,
        *of_passed_on: Tensor | None,
    ) -> tuple[Any, ...]:
        (activated,) = ctx.saved_tensors

        def room(shape: torch.Size, dtype: torch.dtype) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=ctx.device, memory_format=torch.channels_last)

        known = of_total is not None or of_activated is not None
        whole = None if of_activated is not None else of_total  # the gradient of addends that are no part of a tensor
        written: list[Tensor] = []
        returned: list[Tensor | None] = []
        for (part, parts), (shape, dtype), later in zip(ctx.places, ctx.like, of_passed_on, strict=True):
            if parts > 1:
                held = room(shape, dtype) if later is None else later
                if later is None and part + 1 < parts:
                    held.zero_()  # nothing that is differentiated depends on the vertices after this one
                written.append(_part(held, part, parts))
                returned.append(held)
            else:
                if whole is None and known:
                    whole = room(shape, reduce(torch.promote_types, {dtype for _, dtype in ctx.like}))
                    written.append(whole)
                returned.append(whole)
        if not known:  # nor on this one
            for each in written:
                each.zero_()
        elif written:
            torch.ops.nas_retrain.send_back(of_total, of_activated, activated, written)
        return None, None, None, *returned


def _part(tensor: Tensor, place: int, parts: int) -> Tensor:
    channels = tensor.shape[1] // parts
    return tensor.narrow(1, place * channels, channels)


def _add(parts: Sequence[Tensor], plain: bool, rectified: torch.dtype | None) -> list[Tensor]:
    """The sum of parts, if it is asked for plain, and its ReLU in another precision, if there is one."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    made = [total.clone() if len(parts) == 1 else total] if plain else []
    return made if rectified is None else [*made, total.relu().to(rectified)]


def _send_back(
    of_total: Tensor | None, of_activated: Tensor | None, activated: Tensor | None, written: Sequence[Tensor]
) -> None:
    """Write the gradient of a sum to all of `written`, from those of the sum itself and of its ReLU."""
    given = [] if of_total is None else [of_total]
    if of_activated is not None:
        given.append(torch.ops.aten.threshold_backward(of_activated, activated, 0))
    gradient = given[0] if len(given) == 1 else given[0] + given[1]
    for each in written:
        each.copy_(gradient)


def _add_on_gpu(parts: Sequence[Tensor], plain: bool, rectified: torch.dtype | None) -> list[Tensor]:
    from nas_retrain.benches.nas_bench_201 import sum_kernels  # which imports Triton, and that is not everywhere

    return sum_kernels.add(parts, plain, rectified)


def _send_back_on_gpu(
    of_total: Tensor | None, of_activated: Tensor | None, activated: Tensor | None, written: Sequence[Tensor]
) -> None:
    from nas_retrain.benches.nas_bench_201 import sum_kernels  # as above

    sum_kernels.send_back(of_total, of_activated, activated, written)


_library = torch.library.Library("nas_retrain", "DEF")  # type: ignore[no-untyped-call]
for _name, _schema, _in_torch, _on_gpu in (
    ("add", "(Tensor[] parts, bool plain, ScalarType? rectified) -> Tensor[]", _add, _add_on_gpu),
    (
        "send_back",
        "(Tensor? of_total, Tensor? of_activated, Tensor? activated, Tensor(a!)[] written) -> ()",
        _send_back,
        _send_back_on_gpu,
    ),
):
    _library.define(_name + _schema)  # type: ignore[no-untyped-call]
    _library.impl(_name, _in_torch, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    _library.impl(_name, _on_gpu, "CUDA")  # type: ignore[no-untyped-call]
