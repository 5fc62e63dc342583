"""Which benchmarks there are, and what each says of its networks before they are built."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from nas_retrain.benches import build, registry
from nas_retrain.benches.registry import Sizes
from nas_retrain.commands.command_line import compose
from nas_retrain.errors import NasRetrainError
from nas_retrain.settings import BenchSettings
from nas_retrain.theory.graph import CellGraph

SETTINGS = {
    "201": ["bench=201"],
    "201 without BatchNorm": ["bench=201", "network.normalisation=none", "network.cells_per_stage=2"],
    "sss": ["bench=sss"],
    "mlp": ["bench=mlp", "recipe=[grid_he]"],
    "mlp as released": ["bench=mlp", "recipe=[grid_he]", "bench.as_released=true"],
    "cnn": ["bench=cnn", "recipe=[grid_he]"],
    "cnn as released": ["bench=cnn", "recipe=[grid_he]", "bench.as_released=true"],
}


@pytest.mark.parametrize(
    "settings",
    [
        *("201", None, {"name": "201"}, CellGraph, 201),
        BenchSettings(name="no such bench", depth_offset=1, base_kernel_size=3),
    ],
    ids=repr,
)
def test_what_is_no_benchmark_s_settings_is_told_with_the_benchmarks_that_there_are(settings: Any) -> None:
    with pytest.raises(NasRetrainError, match=r"[Tt]here are .*mlp, cnn, 201, sss"):
        registry.of(settings)


def test_settings_without_a_benchmark_s_own_keys_are_told() -> None:
    with pytest.raises(NasRetrainError, match=r"settings of bench mlp lack its own keys.*DagSettings was expected"):
        registry.of(BenchSettings(name="mlp", depth_offset=1, base_kernel_size=1))


def test_a_benchmark_is_one_object_whatever_its_constants_in_the_rule() -> None:
    of_offsets = [registry.of(BenchSettings(name="201", depth_offset=one, base_kernel_size=3)) for one in (1, 3)]
    assert of_offsets[0] is of_offsets[1] is registry.default()


@pytest.mark.parametrize("chosen", SETTINGS.values(), ids=SETTINGS)
def test_parameters_are_those_of_the_network_that_is_built(chosen: list[str]) -> None:
    settings = compose(*chosen, "dataset=digits", "profile=dry", "launcher=local", "network.channels=8")
    bench = registry.of(settings.bench)

    @hypothesis_settings(max_examples=15)
    @given(st.integers(0, bench.size - 1).filter(lambda cell: bench.graph_at(cell).connected))
    def are_the_same(cell: int) -> None:
        network = build.build(registry.graph_of(cell, settings), settings, initialisation="stock", seed=0)
        there = sum(parameter.numel() for parameter in network.parameters())
        for graph in (bench.graph_at(cell), registry.graph_of(cell, settings)):
            assert bench.parameters(graph, Sizes.of(settings)) == there

    are_the_same()
