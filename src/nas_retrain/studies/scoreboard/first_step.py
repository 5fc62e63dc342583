"""The coordinate check of any rule: does the first step change the last vertex by the same amount in every network?"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import pandas as pd
import torch
from torch.nn import functional

from nas_retrain.benches import build, registry
from nas_retrain.benches.parametrised import update_factors
from nas_retrain.data.batches import DeviceData
from nas_retrain.errors import NasRetrainError
from nas_retrain.settings import RuleSettings, ScoreboardSettings, Settings
from nas_retrain.studies.rate_prediction.coordinates import BASE_RATE, IMAGES, mean_square
from nas_retrain.studies.rate_prediction.findings import slopes_by_sweep
from nas_retrain.theory.graph import CellGraph
from nas_retrain.theory.rule import Parametrisation, find

SEEDS = 4
NEED_MORE = ("measured", "permuted")
"""The rules that ship which need measurements, or networks to compare with."""


def measure_slopes(settings: Settings, data: DeviceData, wanted: ScoreboardSettings) -> pd.DataFrame:
    """A row for each rule and sweep (see `Bench.sweeps`): sweep, rule, and size_slope and change_slope, the
    exponents of power laws of the last vertex's mean square and of that of its change in the first step; 0 is flat.

    Rules that need more than a graph and a size (measurements, or networks to compare with) are left out, and so is of
    a sweep, with a warning, one that cannot be used for a network of it.
    """
    return slopes_by_sweep(measure(settings, data, wanted.rules, wanted), "rule")


def measure(
    settings: Settings, data: DeviceData, rules: Mapping[str, RuleSettings], wanted: ScoreboardSettings
) -> pd.DataFrame:
    """A row for each rule and network of all sweeps: sweep, x, rule, size and change (see `coordinates.measure`)."""
    rows = []
    left_out: set[tuple[str, str]] = set()
    for sweep in registry.of(settings.bench).sweeps(settings.bench):
        network = settings.network.model_copy(update={"channels": sweep.channels})
        sized = settings.model_copy(update={"network": network})
        size = registry.size_of(sized)
        for name, rule in rules.items():
            if (sweep.name, name) in left_out:
                continue
            try:
                decided = find(rule.rule, rule.parameters).decide(sweep.graph, size, f"of sweep {sweep.name}")
            except NasRetrainError as error:
                if rule.rule not in NEED_MORE:
                    warnings.warn(f"{name} has no exponent for {sweep.name}: {error}", stacklevel=2)
                left_out.add((sweep.name, name))
                continue
            rows.append((sweep.name, sweep.x, name, *_one_step(sweep.graph, decided, sized, data, wanted)))
    whole = [row for row in rows if (row[0], row[2]) not in left_out]
    return pd.DataFrame(whole, columns=["sweep", "x", "rule", "size", "change"])


def _one_step(
    graph: CellGraph, decided: Parametrisation, settings: Settings, data: DeviceData, wanted: ScoreboardSettings
) -> tuple[float, float]:
    built = [
        build.build(graph, settings, initialisation=wanted.initialisation, seed=seed, decided=decided)
        for seed in range(SEEDS)
    ]
    network = build.join(built).to(data.device)
    images, labels = data.test_images[:IMAGES].repeat(1, SEEDS, 1, 1), data.test_labels[:IMAGES]
    parameters = list(network.parameters())
    of_layers = update_factors(parameters, network.parameter_blocks, [decided] * SEEDS)
    with torch.no_grad():
        before = network.pre_activations(images)[-1]
    logits = network(images).view(len(images) * SEEDS, -1)
    loss = functional.cross_entropy(logits, labels.repeat_interleave(SEEDS), reduction="sum")
    loss.div(len(images)).backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for place, parameter in enumerate(parameters):
            if parameter.grad is not None:
                share = of_layers.rates[place] if of_layers else 1.0
                parameter.sub_(BASE_RATE * decided.learning_rate * share * parameter.grad)
        after = network.pre_activations(images)[-1]
    assert before is not None
    assert after is not None
    return mean_square(before), mean_square(after - before) / BASE_RATE**2
