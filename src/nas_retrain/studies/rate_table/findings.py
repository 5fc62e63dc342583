"""Own best rates out of a table of trainings at several learning rates, published or our own.

The recipes of the reference study are here ways to set the rate: the benchmark's rate for all, the best one rate for
all, and the paper's rule with its scalar tuned. Nothing is trained anew, so what the study has from fresh seeds is
had by splitting the seeds: of each split one seed ranks the recipes, another one the own rates, and the others choose
these. So neither the choice nor a shared training counts as agreement, as far as there are three seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from nas_retrain.benches import registry
from nas_retrain.benches.registry import Bench
from nas_retrain.seeding import Seeding
from nas_retrain.settings import AnalysisSettings, RateTableSettings, Settings
from nas_retrain.statistics.accuracies import Accuracies
from nas_retrain.statistics.accuracy_grid import AccuracyGrid, best_places
from nas_retrain.statistics.noise import NoiseLevel, noise_level
from nas_retrain.statistics.rankings import FEWEST, Floats, Integers, bootstrap_interval, kendall_tau, rank_correlation
from nas_retrain.statistics.rate_tables import Budget, RateTable
from nas_retrain.statistics.significance import holm
from nas_retrain.studies.own_rates import by_rate
from nas_retrain.studies.own_rates.by_rate import OWN, PAPERS
from nas_retrain.studies.own_rates.findings import OwnRates, rankings, regret
from nas_retrain.theory.rule import find

_PAPER = "paper"
"""The name by which the paper's rule is found."""

_NAMED = ("recipe", "top_percent")


@dataclass(frozen=True)
class TableFindings:
    """What was found in a table.

    budget: the one that all but `budgets` is of. found: as in the reference study, with the ways to set the rate for
    recipes; its classes also have own_rate_low, own_rate_high and certainty (see `by_rate.own_rate_intervals`).
    permuted: see `by_rate.permuted_gains`. budgets: a row a budget: the best one rate and the test accuracy with it,
    what own rates gain over it (own_gain: chosen by some seeds and judged by others; hindsight_gain: by the same), the
    share of own rates at an end of the grid, tau between the rankings at the benchmark's rate and at own rates, and the
    rank correlation of own rates with the paper's rule.
    """

    table: RateTable
    budget: Budget
    found: OwnRates
    permuted: pd.DataFrame
    budgets: pd.DataFrame

    @property
    def grid(self) -> AccuracyGrid:
        """The accuracies of the budget."""
        return self.table.grids[self.budget]

    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables by the names of their files."""
        return self.found.tables() | {"permuted": self.permuted, "budgets": self.budgets}


def factors(grid: AccuracyGrid, names: Sequence[str], settings: Settings, space: Bench) -> dict[str, Floats]:
    """Each rule's factor of the learning rate of the grid's networks, (networks,) by rule. Rules that give all networks
    one rate are left out, for there is nothing to compare. Raises NasRetrainError for a rule that cannot be used."""
    size = registry.size_of(settings)
    found = {}
    for name in names:
        rule = find(name)
        cells = [(space.graph_at(int(cell)), space.arch_at(int(cell))) for cell in grid.cells]
        factor = np.array([rule.decide(graph, size, arch).learning_rate for graph, arch in cells])
        if np.ptp(factor) > 0:
            found[PAPERS if name == _PAPER else name.replace("_", " ")] = factor
    return found


def judge(table: RateTable, settings: Settings, space: Bench) -> TableFindings:
    """Analyse a table at the budget that the settings name; raises NasRetrainError if there is none."""
    asked, chosen = settings.rate_table, settings.analysis
    budget = table.chosen(asked.batch_size, asked.epochs)
    grid = table.grids[budget]
    classes = by_rate.describe_classes(grid, settings, space)
    drawn = np.random.default_rng(chosen.seed).integers(0, len(classes), (chosen.bootstrap_draws, len(classes)))
    explained = by_rate.explained(classes, drawn)
    rules = factors(grid, (_PAPER, *(name for name in asked.rules if name != _PAPER)), settings, space)
    sure = by_rate.own_rate_intervals(grid, asked.redraws, chosen.seed)
    classes = pd.concat([classes.iloc[:, :3], sure, classes.iloc[:, 3:]], axis=1)
    ways = _ways(grid, rules[PAPERS], asked, chosen.seed)
    control = next(iter(ways))
    own = _crossed_own(grid)
    sides = {name: _at(grid, places) for name, places in ways.items()}
    found = OwnRates(
        own=OWN,
        control=control,
        rankings=_rankings(grid, ways, table, chosen.model_copy(update={"control": control})),
        regret=regret(
            _accuracies(OWN, own, grid, table),
            {name: _accuracies(name, side, grid, table) for name, side in sides.items()},
        ),
        curves=by_rate.curves(grid),
        by_rate=grid.valid.mean(2),
        classes=classes,
        explained=explained,
        rules=by_rate.rules(grid, classes, list(explained["quantity"]), chosen.seed),
        reliability=by_rate.reliability(grid),
        judged_by="accuracy" if grid.test is grid.valid else "test accuracy",
    )
    return TableFindings(
        table=table,
        budget=budget,
        found=found,
        permuted=by_rate.permuted_gains(grid, rules, classes, drawn, chosen.seed, asked.permutations),
        budgets=_budgets(table, budget, rules[PAPERS], settings),
    )


def recipes_of(table: RateTable, settings: Settings) -> dict[str, Accuracies]:
    """Accuracies of the budget that the settings name under each way to set the rate, and at own rates, chosen for each
    seed by the others."""
    asked = settings.rate_table
    grid = table.grids[table.chosen(asked.batch_size, asked.epochs)]
    factor = factors(grid, [_PAPER], settings, registry.of(settings.bench))[PAPERS]
    sides = {name: _at(grid, places) for name, places in _ways(grid, factor, asked, settings.analysis.seed).items()}
    sides |= {OWN: _crossed_own(grid)}
    return {name: _accuracies(name, side, grid, table) for name, side in sides.items()}


def _ways(grid: AccuracyGrid, factor: Floats, asked: RateTableSettings, seed: int) -> dict[str, Integers]:
    """The place of each class's rate in every way to set it, by what it is called; the first is the control."""
    everyone = np.ones(len(grid), dtype=np.int64)
    nearest = _nearest(grid, asked.benchmark_rate)
    ways = {f"rate {grid.rates[nearest]:.3g}": nearest * everyone}
    ways.setdefault(f"rate {grid.rates[grid.one_rate]:.3g}", grid.one_rate * everyone)
    x, mean = np.log2(grid.rates), grid.valid.mean(2)
    ruled = np.empty(len(grid), dtype=np.int64)
    halves = by_rate.halves_of(len(grid), seed)
    log_factor = np.log2(factor)
    levels = np.linspace(x[0] - log_factor.max(), x[-1] - log_factor.min(), 8 * len(x))
    places = np.abs(log_factor[:, None, None] + levels[:, None] - x).argmin(2)  # (classes, levels)
    for fitted, judged in (halves, halves[::-1]):
        best = np.take_along_axis(mean[fitted], places[fitted], 1).mean(0).argmax()
        ruled[judged] = places[judged, best]
    return ways | {PAPERS: ruled}


def _nearest(grid: AccuracyGrid, rate: float) -> int:
    return int(np.abs(np.log2(grid.rates) - np.log2(rate)).argmin())


def _at(grid: AccuracyGrid, places: Integers) -> Floats:
    """Test accuracy at a place of each class, (classes, seeds)."""
    found: Floats = np.take_along_axis(grid.test, places[:, None, None], 1)[:, 0]
    return found


def _crossed_own(grid: AccuracyGrid) -> Floats:
    """Each class's test accuracy with each seed at the rate that the other seeds choose, (classes, seeds)."""
    columns = [
        _at(grid, best_places(np.delete(grid.valid, seed, 2).mean(2) if grid.seeds > 1 else grid.valid[:, :, seed]))[
            :, seed
        ]
        for seed in range(grid.seeds)
    ]
    return np.stack(columns, 1)


def _split_own(grid: AccuracyGrid, seed: int) -> Floats:
    """Each class's test accuracy, (classes,), with the seed after this one, at the rate that the others choose; with
    fewer than three seeds, this one does."""
    judging = (seed + 1) % grid.seeds
    choosing = [other for other in range(grid.seeds) if other not in (seed, judging)] or [seed]
    own = best_places(grid.valid[:, :, choosing].mean(2))
    return _at(grid, own)[:, judging]


def _accuracies(name: str, values: Floats, grid: AccuracyGrid, table: RateTable) -> Accuracies:
    """Values by class and seed, (classes, seeds), as accuracies of trainings."""
    seeds = values.shape[1]
    runs = pd.DataFrame(
        {
            "index": np.repeat(grid.cells, seeds),
            "seed": np.tile(np.arange(seeds), len(grid)),
            "accuracy": values.ravel().clip(0, 100),
        }
    )
    seeding: Seeding = "shared" if grid.shared else "nested"
    return Accuracies(name, runs, table.bench, per_class=True, classes=table.classes, seeding=seeding)


def _rankings(
    grid: AccuracyGrid, ways: Mapping[str, Integers], table: RateTable, chosen: AnalysisSettings
) -> pd.DataFrame:
    """The rankings of `OwnRates`, averaged over the splits of seeds. What noise alone gives is that of one split; twice
    the mean of p-values is one, however they depend on each other (Vovk and Wang, Biometrika 2020)."""
    own = np.stack([_split_own(grid, seed) for seed in range(grid.seeds)], 1)
    noise: dict[str, NoiseLevel | None] = {OWN: noise_level(_accuracies(OWN, own, grid, table))}
    noise |= {name: noise_level(_accuracies(name, _at(grid, places), grid, table)) for name, places in ways.items()}
    fewer = chosen.model_copy(update={"null_draws": max(1, chosen.null_draws // grid.seeds)})
    parts = []
    for seed in range(grid.seeds):
        right = _accuracies(OWN, own[:, [seed]], grid, table)
        others = {name: _accuracies(name, _at(grid, places)[:, [seed]], grid, table) for name, places in ways.items()}
        parts.append(rankings(right, others, fewer, noise))
    found = pd.concat(parts).groupby(list(_NAMED), sort=False).mean().reset_index()
    found["cells"] = found["cells"].round().astype(int)
    found["p_value"] = np.minimum(1, found["p_value"] * (2 if grid.seeds > 1 else 1))
    found["p_holm"] = holm(found["p_value"].to_numpy())
    return found


def _budgets(table: RateTable, main: Budget, factor: Floats, settings: Settings) -> pd.DataFrame:
    """A row for each budget that differs from the main one in one thing, or is predicted."""
    chosen = settings.analysis
    of_cell = dict(zip(table.grids[main].cells.tolist(), factor.tolist(), strict=True))
    rows = []
    for budget, grid in table.grids.items():
        differing = sum(
            getattr(budget, name) != getattr(main, name) for name in ("epochs", "batch_size", "weight_decay")
        )
        if differing > 1:
            continue
        grid = _on_cells(grid, [cell in of_cell for cell in grid.cells.tolist()])
        if len(grid) < FEWEST:
            continue
        own_log = np.log2(grid.rates[grid.own])
        ruled = np.array([of_cell[cell] for cell in grid.cells.tolist()])
        drawn = np.random.default_rng(chosen.seed).integers(0, len(grid), (200, len(grid)))
        low, high = bootstrap_interval(rank_correlation(ruled[drawn], own_log[drawn]), len(grid))
        at_benchmark = grid.test[:, _nearest(grid, settings.rate_table.benchmark_rate)]
        taus = [kendall_tau(at_benchmark[:, seed], _split_own(grid, seed)) for seed in range(grid.seeds)]
        gains = {"own_gain": by_rate.own_gain(grid), "hindsight_gain": by_rate.hindsight_gain(grid)}
        row: dict[str, object] = {
            "epochs": budget.epochs,
            "batch_size": budget.batch_size,
            "weight_decay": budget.weight_decay,
            "accuracies": "predicted" if budget in table.predicted else "trained",
            "networks": len(grid),
            "seeds": grid.seeds,
            "best_one_rate": grid.rates[grid.one_rate],
            "mean_own_rate": 2.0 ** own_log.mean(),
            "at_edge": float(np.isin(grid.own, (0, len(grid.rates) - 1)).mean()),
            "accuracy": float(grid.test[:, grid.one_rate].mean()),
        }
        for name, gain in gains.items():
            row |= {name.replace("gain", key): value for key, value in by_rate.gained(grid, gain).items()}
        row["tau_benchmark"] = float(np.mean(taus))
        row |= {"paper_rho": float(rank_correlation(ruled, own_log)), "paper_low": low, "paper_high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def _on_cells(grid: AccuracyGrid, kept: list[bool]) -> AccuracyGrid:
    if all(kept):
        return grid
    return AccuracyGrid(grid.cells[kept], grid.rates, grid.valid[kept], grid.test[kept], grid.shared)
