"""The bound on a step's time: operations and bytes against what is worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest

from nas_retrain.benches import build, registry
from nas_retrain.benches.registry import Sizes
from nas_retrain.commands.roofline import print_roofline
from nas_retrain.errors import NasRetrainError
from nas_retrain.execution import roofline
from nas_retrain.settings import Settings
from tests.conftest import MakeSettings
from tests.strategies import NAS_BENCH_201

ALL_3X3 = NAS_BENCH_201.index_of("|{0}~0|+|{0}~0|{0}~1|+|{0}~0|{0}~1|{0}~2|".format("nor_conv_3x3"))
POOL_AND_1X1 = NAS_BENCH_201.index_of(
    "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|nor_conv_1x1~0|none~1|skip_connect~2|"
)


@pytest.fixture
def settings(make_settings: MakeSettings) -> Settings:
    sizes = ("network.cells_per_stage=2", "training.batch_size=8")
    return make_settings("dataset=cifar10", "training.precision=tf32", *sizes)


@pytest.mark.parametrize("cell", [ALL_3X3, POOL_AND_1X1])
def test_operations_are_three_forward_passes_but_for_the_gradient_of_the_images(settings: Settings, cell: int) -> None:
    space, channels, batch = registry.of(settings.bench), settings.network.channels, settings.training.batch_size
    forward = 2 * batch * space.flops(space.graph_at(cell), Sizes.of(settings))
    stem = 2 * batch * 32 * 32 * 3 * 9 * channels
    assert roofline.work_of_step(cell, settings).operations == 3 * forward - stem


def test_each_kernel_of_a_layer_has_the_bytes_that_are_worked_out_by_hand(settings: Settings) -> None:
    """Of the skip cell's network: what its stem, the BatchNorm behind it and the update read and write."""
    channels, batch = settings.network.channels, settings.training.batch_size
    kernels = roofline.kernels_of_step(registry.of(settings.bench).base_cell, settings)
    images, values = 4 * batch * 32 * 32 * 3, 4 * batch * 32 * 32 * channels
    weight, channel = 4 * channels * 3 * 9, 4 * channels
    stem = next(place for place, kernel in enumerate(kernels) if kernel.operations)
    assert kernels[stem].bytes == images + weight + values
    # Its input twice and its output once; of each channel scale, shift and two running statistics are read, and the
    # batch's mean and deviation are written.
    assert kernels[stem + 1].bytes == 3 * values + 6 * channel
    graph = registry.of(settings.bench).base
    network = build.build(graph, settings, initialisation="stock", seed=0)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert kernels[-1] == roofline.Kernel(0.0, 5 * 4 * parameters)  # weight, gradient, momentum; weight, momentum


@pytest.mark.parametrize("cell", [ALL_3X3, POOL_AND_1X1])
def test_a_network_of_more_cells_is_told_from_two_smaller_ones(make_settings: MakeSettings, cell: int) -> None:
    settings = make_settings("network.cells_per_stage=4")
    told, counted = (vars(work(cell, settings)) for work in (roofline.work_of_step, roofline._work))
    assert told == pytest.approx(counted, rel=1e-9)


def test_the_time_is_the_larger_of_the_two_bounds_kernel_by_kernel(settings: Settings) -> None:
    gpu = settings.gpu.model_copy(update={"gigabytes_per_second": 1.0, "teraflops": {"tf32": 0.001}})
    slow = settings.model_copy(update={"gpu": gpu})
    work = roofline.work_of_step(ALL_3X3, slow)
    kernels = roofline.kernels_of_step(ALL_3X3, slow)
    assert work.seconds == pytest.approx(math.fsum(max(each.operations, each.bytes) / 1e9 for each in kernels))
    assert max(work.operations, work.bytes) / 1e9 < work.seconds < (work.operations + work.bytes) / 1e9
    assert work.kernels == len(kernels)


def test_cells_without_a_path_are_left_out_and_no_others_is_a_sentence(
    make_settings: MakeSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unconnected = NAS_BENCH_201.index_of("|{0}~0|+|{0}~0|{0}~1|+|{0}~0|{0}~1|{0}~2|".format("none"))
    small = ("training.batch_size=8", "network.cells_per_stage=1", f"results_dir={tmp_path}/results/mine")
    print_roofline(make_settings(*small, f"cells=[{unconnected},{POOL_AND_1X1}]"))
    (table,) = tmp_path.rglob("*.csv")
    assert pd.read_csv(table)["cell"].tolist() == [POOL_AND_1X1]
    assert "over 1 networks" in capsys.readouterr().out
    with pytest.raises(NasRetrainError, match="none is connected"):
        print_roofline(make_settings(*small, f"cells=[{unconnected}]"))
