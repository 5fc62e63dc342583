"""The stub itself: torch takes it for GPUs, and what it counts and the faults that it injects are as said."""

from __future__ import annotations

from pathlib import Path

from tests import cuda_stub as stub

PROGRAM = """
import torch
from torch import nn
from tests import cuda_stub as stub

device = torch.device("cuda", 1)
torch.cuda.set_device(device)
network = nn.Sequential(
    nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)
).to(device, memory_format=torch.channels_last)
rate = torch.tensor(0.1, device=device)
optimiser = torch.optim.SGD(network.parameters(), rate, momentum=0.9, fused=True)
images = torch.zeros(2, 3, 8, 8, device=device).contiguous(memory_format=torch.channels_last)
labels = torch.zeros(2, dtype=torch.long, device=device)

def step():
    loss = nn.functional.cross_entropy(network(images), labels)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return loss

def counted(act):
    before = stub.counts()
    act()
    return {name: count - before[name] for name, count in stub.counts().items() if count != before[name]}

assert torch.cuda.device_count() == 2 and torch.cuda.get_device_name(0) == "CUDA stub"
sent = torch.arange(5)
assert sent.to(device).cpu().equal(sent)
step()
eager = counted(step)
assert eager["launches"] > 5 and not {"syncs", "h2d", "d2h"} & eager.keys()
assert counted(lambda: step().item()) == eager | {"d2h": 1, "syncs": 1}
side = torch.cuda.Stream()
with torch.cuda.stream(side):
    step()
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    captured = counted(step)
assert captured["launches"] == eager["launches"]
assert counted(graph.replay) == {"replays": 1}
assert [touched > 0 for touched in stub.of_devices("touched")[:2]] == [False, True]
try:
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        step().item()
except RuntimeError as error:
    print(str(error).splitlines()[0])
"""

FAULTY = """
import os
import sys
import torch

def attempt(act):
    try:
        act()
        return "fine"
    except RuntimeError as error:
        return type(error).__name__ + ": " + str(error).splitlines()[0]

def work():
    for _ in range(8):
        torch.zeros(10**6, device="cuda").add_(1)
    torch.zeros(10**8, device="cuda")

for faults in eval(sys.argv[1]):
    if os.fork() == 0:  # CUDA begins in the new process
        os.environ.update(faults)
        print(attempt(work), "|", attempt(lambda: torch.zeros(10, device="cuda").cpu()), flush=True)
        os._exit(0)
    os.wait()
"""


def test_torch_trains_and_captures_on_it(cuda_stub: Path) -> None:
    done = stub.run(cuda_stub, "-c", PROGRAM, devices=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "CUDA error: operation not permitted when stream is capturing\n"


def test_faults_are_as_said(cuda_stub: Path, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.touch()
    once = {"CUDA_STUB_FAIL_AT": "5", "CUDA_STUB_ONCE": str(token)}
    cases = [once, once, {"CUDA_STUB_MEMORY": "100000000"}, {"CUDA_STUB_BAD_DEVICE": "0"}]
    done = stub.run(cuda_stub, "-c", FAULTY, repr(cases))
    illegal = "AcceleratorError: CUDA error: an illegal memory access was encountered"
    unavailable = "AcceleratorError: CUDA error: CUDA-capable device(s) is/are busy or unavailable"
    first, second, short, bad = done.stdout.splitlines()
    assert first == f"{illegal} | {illegal}"
    assert not token.exists()
    assert second == "fine | fine"
    assert short.startswith("OutOfMemoryError: CUDA out of memory. Tried to allocate")
    assert short.endswith(" | fine")
    assert bad == f"{unavailable} | {unavailable}"
