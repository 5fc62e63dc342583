"""The training step: the same as a straightforward one, and on a GPU one captured graph (shown on tests/cuda_stub)."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nas_retrain.benches import build, registry
from nas_retrain.commands.command_line import compose
from nas_retrain.data import batches
from nas_retrain.errors import NasRetrainError
from nas_retrain.execution import roofline
from nas_retrain.execution.precision import forward, set_precision
from nas_retrain.execution.schedule import share_of_rate
from nas_retrain.execution.steps import Stepper, epoch_seed
from nas_retrain.settings import Settings
from tests import cuda_stub as stub
from tests.conftest import MakeSettings
from tests.execution.test_train import CELL, CPU
from tests.strategies import NAS_BENCH_201

pytestmark = pytest.mark.usefixtures("one_thread")

CONNECTED = [cell for cell in random.Random(3).sample(range(15625), 30) if NAS_BENCH_201.graph_at(cell).connected][:20]
EPOCHS = 2


@pytest.fixture
def settings(make_settings: MakeSettings) -> Settings:
    return make_settings("dataset.train_subset=38", "training.batch_size=32", "network.cells_per_stage=1")


def straightforward(
    network: build.Network, rates: list[float], seeds: list[int], settings: Settings, data: batches.DeviceData
) -> tuple[list[float], list[int]]:
    """Train eagerly with torch's optimiser, batches drawn as they are needed and rates that are numbers; returns summed
    losses and hits of the last epoch."""
    recipe, parameters = settings.training, list(network.parameters())
    several = len(rates) > 1
    optimiser = torch.optim.SGD(
        parameters, rates[0], recipe.momentum, nesterov=True, fused=True,
        weight_decay=0.0 if several else recipe.weight_decay,
    )  # fmt: skip
    shares = torch.tensor(rates) / rates[0]
    for epoch in range(EPOCHS):
        optimiser.param_groups[0]["lr"] = rates[0] * 0.5 * (1 + math.cos(math.pi * epoch / EPOCHS))
        loss_sums, hits = torch.zeros(len(rates)), torch.zeros(len(rates), dtype=torch.int64)
        members = [
            batches.training_batches(data, recipe.batch_size, torch.Generator().manual_seed(epoch_seed(seed, epoch)))
            for seed in seeds
        ]
        for drawn in zip(*members, strict=True):
            images = torch.cat([each for each, _ in drawn], 1)
            logits = network(images).view(len(images), len(rates), -1).unbind(1)
            losses = [
                torch.nn.functional.cross_entropy(each, labels) for each, (_, labels) in zip(logits, drawn, strict=True)
            ]
            optimiser.zero_grad()
            sum(losses[1:], losses[0]).backward()
            for parameter in parameters if several else []:
                assert parameter.grad is not None
                share = shares.repeat_interleave(len(parameter) // len(rates))
                with torch.no_grad():
                    parameter.grad.add_(parameter, alpha=recipe.weight_decay)
                    parameter.grad.mul_(share.view(-1, *[1] * (parameter.ndim - 1)))
            optimiser.step()
            loss_sums += torch.stack(losses).detach() * len(images)
            hits += torch.stack(
                [(each.argmax(1) == labels).sum() for each, (_, labels) in zip(logits, drawn, strict=True)]
            )
    return loss_sums.tolist(), hits.tolist()


@pytest.mark.parametrize("members", [1, 6])
def test_steps_over_static_buffers_are_a_straightforward_training_s_to_the_last_bit(
    settings: Settings, members: int
) -> None:
    data = batches.load(settings.dataset, settings.data_dir, CPU)
    rates, seeds = [0.1, 0.02, 0.5, 0.1, 0.02, 0.5][:members], [1, 1, 1, 2, 2, 2][:members]

    def built(cell: int) -> build.Network:
        graph = NAS_BENCH_201.graph_at(cell)
        return build.join([build.build(graph, settings, initialisation="he", seed=seed) for seed in seeds])

    for cell in CONNECTED:
        plain = built(cell)
        loss_sums, hits = straightforward(plain, rates, seeds, settings, data)
        stepper = Stepper(built(cell), rates, seeds, settings, data)
        for epoch in range(EPOCHS):
            stepper.begin_epoch(
                epoch, share_of_rate(settings.training, epoch, EPOCHS), 0, [0.0] * members, [0] * members
            )
            stepper.first_step(32)
            stepper.step(6)
        assert stepper.sums() == (loss_sums, hits)
        ours, theirs = stepper.network.state_dict(), plain.state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_tf32_is_refused_where_there_is_none_and_set_and_unset_where_there_is() -> None:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    with pytest.raises(NasRetrainError, match=r"training\.precision=tf32 needs an NVIDIA GPU.*run on cpu.*float32"):
        set_precision("tf32", CPU)
    try:
        for precision in ("tf32", "float32", "tf32", "bfloat16"):
            set_precision(precision, torch.device("cuda"))
            flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
            assert flags == (precision == "tf32",) * 2
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("bench", ["201", "sss", "mlp", "cnn"])
@pytest.mark.parametrize("members", [1, 2])
def test_bfloat16_is_near_single_precision_in_logits_and_every_gradient(
    make_settings: MakeSettings, bench: str, members: int
) -> None:
    config = "config" if bench in ("201", "sss") else "verify"
    width = 32 if bench == "sss" else 8  # of the widest that there may be
    settings = make_settings(f"bench={bench}", f"network.channels={width}", config=config)
    chosen = registry.of(settings.bench)
    graph = chosen.graph_at(CELL if bench == "201" else chosen.base_cell)
    network = build.join([build.build(graph, settings, initialisation="he", seed=seed) for seed in range(members)])
    images = batches.load(settings.dataset, settings.data_dir, CPU).test_images[:64].repeat(1, members, 1, 1)
    weights = list(network.eval().parameters())  # a batch's own statistics would make much of small differences

    def computed(precision: str) -> list[Tensor]:
        logits = forward(network, images, precision)
        return [logits.detach().float(), *torch.autograd.grad(logits.float().square().mean(), weights)]

    single, half = computed("float32"), computed("bfloat16")
    assert not torch.equal(single[0], half[0])
    for ours, theirs in zip(half, single, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() <= 0.05 * theirs.norm() + 1e-6  # bfloat16 has 8 bits: each value is off by 0.4 %


PROGRAM = """
import json
import pickle
import sys
import time
import warnings
from pathlib import Path

import torch

from nas_retrain.benches import build as networks
from nas_retrain.benches import registry
from nas_retrain.execution import cost
from nas_retrain.execution import train as training
from nas_retrain.execution.steps import Stepper
from nas_retrain.settings import Settings
from tests import cuda_stub as stub

warnings.simplefilter("error")
space = registry.default()
device = torch.device("cuda", 0)
training.prepare_process(device)
calls = sys.modules["cuda_stub_kernels"].calls
text = Path(sys.argv[1]).read_text()


def counted(act, times):
    counts, begun = stub.counts(), time.process_time()
    for _ in range(times):
        act()
    spent = (time.process_time() - begun) / times
    return {name: (count - counts[name]) / times for name, count in stub.counts().items()} | {"seconds": spent}
"""

LIBRARY = ("convolution", "convolution_backward", "cudnn_batch_norm", "cudnn_batch_norm_backward", "product")

WHOLE_STEP = """
found = {}
for precision in ("float32", "tf32", "bfloat16"):
    settings = Settings.model_validate_json(text.replace('"float32"', f'"{precision}"'))
    data = cost.made_up_images(settings, device, 3 * 256 + 20)
    network = networks.build(space.graph_at(int(sys.argv[2])), settings, initialisation="stock", seed=1)
    stepper = Stepper(network, [0.1], [1], settings, data)
    stepper.begin_epoch(0, 1.0, 0, [0.0], [0])
    stepper.first_step(256)
    with stepper.on_stream():
        stepper.step_eagerly(256)
        calls.clear()
        eager = counted(lambda: stepper.step_eagerly(256), 4)
    library = {name: count / 4 for name, count in calls.items()}
    stepper.begin_epoch(0, 1.0, 0, [0.0], [0])
    for images in (256, 20):
        stepper.step(images)
    found[precision] = {"library": library, "eager": eager, "replays": []}
    for images in (256, 20):
        found[precision]["replays"].append(counted(lambda: stepper.step(images), 200))
print(json.dumps(found))
"""

MANY_CLASSES = """
from nas_retrain.execution.checkpoints import Checkpoint
from nas_retrain.plan import plan

settings = Settings.model_validate_json(text)
data = cost.made_up_images(settings, device, 40)
used, streams = [], set()
for cell in json.loads(sys.argv[2]):
    built = [networks.build(space.graph_at(cell), settings, initialisation="stock", seed=seed) for seed in (1, 2)]
    steppers = training.steppers_for(built, [0.1, 0.2], [1, 2], settings, data)
    progress = training.Progress.start(2)
    for _ in range(2):
        assert training.train_epoch(steppers, 1.0, progress, lambda: False)
    assert [stepper.network.members for stepper in steppers] == [1, 1]
    assert len({stepper.pool for stepper in steppers}) == 2
    streams |= {stepper.stream.cuda_stream for stepper in steppers}
    del built, steppers
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    used.append(stub.of_devices("used")[0])
assert len(streams) == 2  # cuBLAS keeps a workspace for each of them

(group,) = plan.groups(plan.recipe_trainings(settings, 0.5), 2)
checkpoint, steps = Path(sys.argv[1]).with_name("group.pt"), iter(range(100))
try:
    training.train(group, settings, data, checkpoint, lambda: next(steps) == 2)
except training.Stopped:
    saved = pickle.loads(checkpoint.read_bytes().partition(b"\\n")[2])
joined = networks.join([networks.build(space.graph_at(cell), settings, initialisation="stock", seed=0)] * 2)
assert {name: array.shape for name, array in saved["network"].items()} == {
    name: tuple(tensor.shape) for name, tensor in joined.state_dict().items()
}
records = training.train(group, settings, data, checkpoint)
print(json.dumps({"used": used, "resumed": [record.resumed for record in records]}))
"""


def on_the_stub(library: Path, settings: Settings, folder: Path, program: str, *arguments: object) -> Any:
    (folder / "settings.json").write_text(settings.model_dump_json())
    done = stub.run(library, "-c", PROGRAM + program, folder / "settings.json", *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_captured_step_is_one_call_of_the_driver(cuda_stub: Path, tmp_path: Path) -> None:
    """On the full network of the cell with most convolutions. Kernels do not run: this tells numbers, not speeds."""
    cell = NAS_BENCH_201.index_of("|{0}~0|+|{0}~0|{0}~1|+|{0}~0|{0}~1|{0}~2|".format("nor_conv_3x3"))
    full = ("dataset=cifar10", "profile=full", "launcher=local")
    settings = compose(*full)
    found = on_the_stub(cuda_stub, settings, tmp_path, WHOLE_STEP, cell)
    convolutions = 3 * 5 * 3 + 2 * 3 + 1  # a cell's six in three calls, two reduction blocks, the stem
    norms = 3 * 5 * 3 + 2 * 2 + 2
    for precision, of_step in found.items():
        library, eager = of_step["library"], of_step["eager"]
        assert library["convolution"] == library["deterministic"] == convolutions
        assert library["convolution_backward"] == 2 * convolutions - 1  # images need no gradient
        assert library["cudnn_batch_norm"] == library["cudnn_batch_norm_backward"] == norms
        assert library["tf32"] == (convolutions if precision == "tf32" else 0)
        assert not library.get("native_batch_norm")
        assert not library["benchmarked"]
        counted = roofline.work_of_step(cell, compose(*full, f"training.precision={precision}")).kernels
        in_library = sum(library[name] for name in LIBRARY)
        assert eager["launches"] + in_library == pytest.approx(counted, abs=5)  # the update is some kernels, not one
        assert eager["syncs"] == eager["h2d"] == eager["d2h"] == 0
        for replay in of_step["replays"]:
            done = {name: count for name, count in replay.items() if count and name != "seconds"}
            assert done == {"replays": 1}
            assert replay["seconds"] < eager["seconds"] / 20
    assert found["float32"]["eager"] | {"seconds": 0} == found["tf32"]["eager"] | {"seconds": 0}
    float32 = found["float32"]
    assert float32["eager"]["launches"] + sum(float32["library"][name] for name in LIBRARY) <= 400


def test_members_train_side_by_side_and_memory_is_flat_over_many_classes(
    cuda_stub: Path, make_settings: MakeSettings, tmp_path: Path
) -> None:
    """Two steps an epoch, of 32 and of 8 images. The checkpoint of two networks is that of one with two members."""
    last = f"cells=[{CONNECTED[-1]}]"
    settings = make_settings(
        last, "recipe=[benchmark]", "seeds=[1,2]", "network.cells_per_stage=1", "training.batch_size=32"
    )
    found = on_the_stub(cuda_stub, settings, tmp_path, MANY_CLASSES, json.dumps(CONNECTED))
    assert len(found["used"]) == 20
    assert len(set(found["used"][2:])) == 1
    assert found["resumed"] == ["1.1", "1.1"]
