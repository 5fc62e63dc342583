"""Average pooling on GPUs, whose gradient is our own, against torch's on the CPU."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from nas_retrain.benches import pooling


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.booleans())
def test_the_gradient_is_what_torch_s_is_on_the_cpu(
    batch: int, channels: int, height: int, width: int, last: bool
) -> None:
    layout = torch.channels_last if last else torch.contiguous_format
    drawn = torch.Generator().manual_seed(0)
    images, sent = torch.randn(2, batch, channels, height, width, dtype=torch.float64, generator=drawn).unbind()
    ours, theirs = (images.clone(memory_format=layout).requires_grad_() for _ in range(2))
    on_gpus = pooling._Averaged.apply(ours)
    on_cpus = functional.avg_pool2d(theirs, 3, stride=1, padding=1, count_include_pad=False)
    assert torch.equal(on_gpus, on_cpus)
    for made in (on_gpus, on_cpus):
        made.backward(sent.contiguous(memory_format=layout))
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("device", "ours"), [("cpu", False), ("meta", True)])
def test_torch_s_gradient_is_taken_on_the_cpu_and_ours_where_a_gpu_s_kernels_are_counted(
    device: str, ours: bool
) -> None:
    made = pooling.averaged(torch.zeros(1, 1, 3, 3, device=device, requires_grad=True))
    assert (made.grad_fn.name() == "_AveragedBackward") == ours
    assert pooling.halved(torch.zeros(1, 1, 7, 7, device=device)).shape == (1, 1, 4, 4)
