"""The kernels for vertices' sums, run by Triton's interpreter, against what they stand for in torch's operations."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import cuda_stub as stub

PROGRAM = """
import itertools
import random

import torch

from nas_retrain.benches import build
from nas_retrain.benches.nas_bench_201 import space, sum_kernels, sums
from nas_retrain.benches.nas_bench_201.network import Network

LAST = torch.channels_last
drawn = random.Random(0)
generator = torch.Generator().manual_seed(0)


def images(channels, dtype=torch.float64, batch=3):
    made = torch.randn(batch, channels, 5, 4, generator=generator, dtype=torch.float64)
    made[0, 0, 0, :2] = torch.tensor([float("nan"), -0.0])
    return made.to(dtype).contiguous(memory_format=LAST)


def parts(number, channels, dtype, batch, last):
    '''Dense tensors and slices of wider ones; in double precision they may come with channels first.'''
    for place in range(number):
        of = drawn.randint(1, 3)
        wide = images(of * channels, dtype, batch)
        yield (wide if last else wide.contiguous()).narrow(1, min(place, of - 1) * channels, channels)


def equal(ours, theirs):
    assert ours.dtype == theirs.dtype
    assert ours.is_contiguous(memory_format=LAST) and theirs.is_contiguous(memory_format=LAST)
    assert torch.equal(ours.nan_to_num(7e7), theirs.nan_to_num(7e7))


cases = itertools.product(
    (1, 2, 3), (False, True), (None, torch.float64, torch.float16), ((3, 16), (30, 16), (3, 1)), (False, True)
)
for number, plain, rectified, (batch, channels), last in cases:
    if (not plain and rectified is None) or (rectified != torch.float64 and not last):
        continue
    dtype = torch.float64 if rectified == torch.float64 else torch.float32
    read = list(parts(number, channels, dtype, batch, last))
    ours = sum_kernels.add(read, plain, rectified)
    theirs = sums._add([part.contiguous(memory_format=LAST) for part in read], plain, rectified)
    assert len(ours) == len(theirs) == plain + (rectified is not None)
    for pair in zip(ours, theirs):
        equal(*pair)
    activated = theirs[-1] if rectified is not None else None
    given = (
        images(channels, dtype, batch) if plain else None,
        None if activated is None else torch.randn_like(activated),
    )
    wide = [[images(2 * channels, dtype, batch) for _ in range(number)] for _ in range(2)]
    wide[1] = [each.clone() for each in wide[0]]
    for write, whole in zip((sum_kernels.send_back, sums._send_back), wide):
        write(*given, activated, [each.narrow(1, channels, channels) for each in whole])
    for pair in zip(*wide):
        equal(*pair)

for function, name in ((sum_kernels.add, "add"), (sum_kernels.send_back, "send_back")):
    sums._library.impl(name, function, "CPU")


def both(first, second, third):
    wide, other = sums.Sent(first, 3), sums.Sent(second, 2)
    one, _ = sums.settle([(wide, 0)], plain=True, rectified=None)
    two, active = sums.settle([(wide, 1), (other, 0)], plain=True, rectified=torch.float64)
    _, last = sums.settle([(wide, 2), (sums.Sent(third), 0), (other, 1)], plain=False, rectified=torch.float64)
    return one * 2, two * active, last


inputs = [torch.randn(1, channels, 2, 1, dtype=torch.float64, generator=generator) for channels in (6, 4, 2)]
inputs = [each.contiguous(memory_format=LAST).requires_grad_() for each in inputs]
assert torch.autograd.gradcheck(both, inputs)

for arch in ("|a~0|+|b~0|c~1|+|a~0|d~1|a~2|", "|b~0|+|a~0|a~1|+|c~0|a~1|a~2|"):
    names = {"a": "nor_conv_3x3", "b": "skip_connect", "c": "avg_pool_3x3", "d": "nor_conv_1x1"}
    arch = "".join(names.get(letter, letter) for letter in arch)
    found, seen = [], images(3).nan_to_num(0)
    for by_sums in (False, True):
        sums.in_one_kernel = lambda _, by_sums=by_sums: by_sums
        torch.manual_seed(0)
        network = Network(space.parse(arch), channels=4, cells_per_stage=1, classes=3, image_channels=3).double()
        logits = network.to(memory_format=LAST)(seen)
        logits.square().mean().backward()
        found.append([logits, *(parameter.grad for parameter in network.parameters())])
    for ours, theirs in zip(*found):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton comes with torch for Linux and CUDA.")
def test_kernels_are_what_they_stand_for_in_values_and_gradients() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


WITHOUT = """
import warnings
import torch
from nas_retrain.benches.nas_bench_201 import sums

with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    print(sums.in_one_kernel(torch.device("cuda")), sums.in_one_kernel(torch.device("cuda", 0)))
print(*(one.message for one in told))
"""


def test_where_they_cannot_be_compiled_a_warning_says_so_once(
    cuda_stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("CC", "/bin/false")  # which Triton takes for the C compiler
    done = stub.run(cuda_stub, "-c", WITHOUT)
    answers, told = done.stdout.splitlines()
    assert answers == "False False"
    assert told.startswith("The kernels that sum a cell's vertices cannot be compiled here (CalledProcessError: ")
    assert told.count("Needed are Triton, gcc and Python's headers.") == 1
