"""What `scale` asks of its arguments: each check raises one NasRetrainError that says what is wrong and what to do."""

from __future__ import annotations

import copy
import inspect
import math
import operator
from collections.abc import Sequence
from typing import SupportsFloat, SupportsIndex

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from nas_retrain.errors import NasRetrainError, shown

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""The layers that are drawn."""

_REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def positive(base_rate: SupportsFloat) -> float:
    """A base rate as a float."""
    try:
        if isinstance(base_rate, str | bytes | bool | np.bool_):  # which float() would take
            raise TypeError
        number = float(base_rate)
        if not (math.isfinite(number) and number > 0):
            raise ValueError
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise NasRetrainError(f"base_rate is {shown(base_rate)}; give a positive learning rate, a number.") from error
    return number


def generator_of(seed: SupportsIndex | torch.Generator | None) -> torch.Generator | None:
    """The generator of a seed; None stands for torch's own."""
    if seed is None or isinstance(seed, torch.Generator):
        return seed
    try:
        if isinstance(seed, bool | np.bool_):
            raise TypeError
        return torch.Generator().manual_seed(operator.index(seed))
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise NasRetrainError(
            f"seed is {shown(seed)}; give a whole number of 64 bits, a torch.Generator, or None for torch's own."
        ) from error


def require_example(example_input: Tensor) -> None:
    """Refuse what is not a tensor with values."""
    if not isinstance(example_input, Tensor):
        raise NasRetrainError(f"example_input is a {type(example_input).__name__}; give one tensor, a batch of inputs.")
    if example_input.is_meta or not example_input.numel():
        what = "is on the meta device, where tensors have no values" if example_input.is_meta else "is empty"
        raise NasRetrainError(f"example_input {what}. Give a batch of at least one input, such as zeros.")


def require_readable(module: nn.Module) -> None:
    """Refuse what hides a network or its weights from a trace, before anything of the network runs."""
    if not isinstance(module, nn.Module):
        raise NasRetrainError(f"module is {shown(module)}; give a torch.nn.Module, the network to scale.")
    for name, part in module.named_modules():
        if reason := _hidden(part):
            raise NasRetrainError(f"Module {name or type(part).__name__} {reason}")


def _hidden(part: nn.Module) -> str | None:
    """Why a module cannot be read or set, if so."""
    tensors = [tensor for tensor in (*part._parameters.values(), *part._buffers.values()) if tensor is not None]
    if isinstance(part, torch.jit.ScriptModule):
        return (
            "is compiled to TorchScript, which cannot be traced again. Scale the module that it was made of, and "
            "script or trace that afterwards."
        )
    if "_orig_mod" in part._modules:
        return "is compiled. Scale the module that it was made of, its _orig_mod: the two share their weights."
    if isinstance(part, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return "spreads a module over devices. Scale that module, its attribute module, before it is wrapped."
    if any(is_lazy(tensor) for tensor in tensors):
        return "is lazy and does not know its shapes yet. Run the network once on a batch, then scale it."
    if any(tensor.is_meta for tensor in tensors):
        return "is on the meta device, where tensors have no values. Move it with to_empty(device=...), then scale it."
    # Asked before the weight is read: that computes it, and spectral normalisation changes its state by that.
    if is_parametrized(part) or (isinstance(part, LAYERS) and not isinstance(part.weight, nn.Parameter)):
        return (
            "has no weight that can be set: it is computed from others (a parametrisation, weight normalisation, "
            "pruning). Remove that, or scale the network before it is added."
        )
    if isinstance(part, LAYERS) and part.weight.dtype not in _REAL:
        return f"has weights of type {part.weight.dtype}. Use real numbers of 16, 32 or 64 bits."
    if part._forward_hooks or part._forward_pre_hooks:
        return (
            "has a forward hook, which may change its values unseen by the trace. Remove it, and register it again "
            "after scaling."
        )
    return None


def require_one_input(module: nn.Module, example_input: Tensor) -> None:
    """Refuse a module whose forward needs more than one argument, or takes none."""
    try:
        inspect.signature(module.forward).bind(example_input)
    except TypeError as error:
        raise NasRetrainError(
            f"The forward of {type(module).__name__} cannot be called with one input alone: {said(error)}. Give its "
            "other arguments defaults, or wrap the module in one that takes one tensor."
        ) from error


def copied(module: nn.Module) -> nn.Module:
    """A copy that may be traced and run; raises NasRetrainError, naming the attribute, for what cannot be copied."""
    try:
        made = copy.deepcopy(module)
    except RecursionError:
        raise
    except Exception as error:
        for name, part in module.named_modules():
            for attribute, value in vars(part).items():
                if attribute == "_modules":  # their turn comes
                    continue
                try:
                    copy.deepcopy(value)
                except Exception as cause:
                    raise NasRetrainError(
                        f"Module {name or type(part).__name__} cannot be copied because of its attribute {attribute} "
                        f"({type(value).__name__}): {said(cause).split('. ')[0]}. Set it to None, then scale; a tensor "
                        "that forward keeps can be copied if it is detached."
                    ) from cause
        raise NasRetrainError(f"{type(module).__name__} cannot be copied: {said(error)}.") from error
    for part in made.modules():
        part._backward_hooks.clear()
        part._backward_pre_hooks.clear()
    return made


def require_settable(module: nn.Module, layers: Sequence[str], normalisations: Sequence[str]) -> None:
    """Refuse parameters that cannot be set, and weights that share memory with others, before any is changed."""
    for name in (*layers, *normalisations):
        for kind, parameter in module.get_submodule(name).named_parameters(recurse=False):
            if reason := _unsettable(parameter):
                raise NasRetrainError(f"The {kind} of module {name} {reason}")
    drawn = {id(module.get_submodule(name).weight) for name in layers}
    spans = sorted(
        (str(parameter.device), *_memory(parameter), ".".join(filter(None, (name, kind))), id(parameter))
        for name, part in module.named_modules()
        for kind, parameter in part.named_parameters(recurse=False)
        if _is_plain(parameter)
    )
    furthest = ("", 0, 0, "", 0)  # of those before
    for span in spans:
        (device, _, end, one, first), (same_device, start, reached, other, second) = furthest, span
        if device == same_device and start < end and {first, second} & drawn:
            raise NasRetrainError(
                f"The parameters {one} and {other} share their memory, so that a weight is used more than once; in the "
                "theory each is used once. Make them two, or search this network's learning rate instead."
            )
        if device != same_device or reached > end:
            furthest = span


def _unsettable(parameter: nn.Parameter) -> str | None:
    """Why a parameter cannot be set, if so."""
    if parameter.is_inference():
        return "was made in torch.inference_mode and can never be trained. Build the network outside of it."
    if not parameter.requires_grad:
        return (
            "is frozen, and scaling would overwrite it; in the theory every layer is trained. Thaw it first with "
            "requires_grad_(True), or search this network's learning rate instead."
        )
    if not parameter.numel():
        return f"has the shape {tuple(parameter.shape)} and so no values. Give the layer a size, or leave it out."
    sides = zip(parameter.shape, parameter.stride(), strict=True)
    if not _is_plain(parameter) or any(size > 1 and stride == 0 for size, stride in sides):
        return "is no tensor of its own that can be written to. Make it one: nn.Parameter(weight.detach().clone())."
    return None


def _is_plain(parameter: nn.Parameter) -> bool:
    return type(parameter.data) is Tensor and parameter.layout == torch.strided


def _memory(parameter: nn.Parameter) -> tuple[int, int]:
    """The address of a parameter, and the one behind it."""
    if not parameter.numel():
        return 0, 0
    sides = zip(parameter.shape, parameter.stride(), strict=True)
    values = 1 + sum((size - 1) * stride for size, stride in sides)
    return parameter.data_ptr(), parameter.data_ptr() + values * parameter.element_size()


def said(error: Exception) -> str:
    """What an exception says, to be part of a sentence."""
    return str(error).strip().rstrip(".")
