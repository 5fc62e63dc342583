"""Search algorithms on the original and on the retrained table: their ranking, what the wrong table costs, and which
network to take.

Each algorithm searches both tables many times. How the tables differ is held against what training again gives
(`replay`): a difference is beyond noise if it stands out from those of tables drawn again. Several differences
are tested at once by the largest of them (single-step max-T; Westfall and Young, 1993).
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import rankdata
from tqdm import tqdm

from nas_retrain.reports.document import tell_stage, write_document
from nas_retrain.reports.figures import BLUE, GREEN, GREY, ORANGE, STYLE, draw_estimates, drawn_name, save
from nas_retrain.reports.tables import p_text, write_tables
from nas_retrain.reports.template import render_markdown
from nas_retrain.settings import AlgorithmsSettings
from nas_retrain.statistics.accuracies import Accuracies
from nas_retrain.statistics.noise import NoiseLevel, noise_level
from nas_retrain.statistics.rankings import Floats, Integers, interval, kendall_tau, middle
from nas_retrain.statistics.significance import SIGNIFICANT
from nas_retrain.studies.search_algorithms import asked, replay
from nas_retrain.studies.search_algorithms.algorithms import Space, space_of
from nas_retrain.studies.search_algorithms.replay import MEASURES, Outcome, Table, regrets
from nas_retrain.studies.search_algorithms.transfer import SIDES, drawn_truth, network_classes, pick
from nas_retrain.trainings.version import analysis_versions

UNKNOWN_NOISE = "The noise of training is unknown on a side: nothing can be said of what is beyond noise."
EXHAUSTIVE = "best of all cells"
SHOWN_QUERIES = 60
TIED_SHOWN = 20
"""Rows of the table of the tied classes that the report shows."""

COLOURS = (GREY, BLUE, GREEN, "#CC79A7", ORANGE, "#56B4E9", "#F0E442", "#000000")
"""Of the algorithms in their order, and again from the first one if there are more."""


@dataclass(frozen=True)
class Replays:
    """Everything that a report tells. Tables are described by the functions that make them.

    names: of the two sources. noise: None where it is unknown, and with it everything about training again.
    seeds: whether a search sees one of several trainings of a cell. classes: see `transfer.network_classes`.
    """

    names: tuple[str, str]
    algorithms: tuple[str, ...]
    settings: AlgorithmsSettings
    noise: tuple[NoiseLevel | None, NoiseLevel | None]
    seeds: bool
    regret: pd.DataFrame
    ranking: pd.DataFrame
    agreement: pd.DataFrame
    pairs: pd.DataFrame
    wrong_table: pd.DataFrame
    picks: pd.DataFrame
    tied: pd.DataFrame
    classes: pd.DataFrame

    def colour(self, algorithm: str) -> str:
        """What the algorithm is drawn in."""
        return COLOURS[self.algorithms.index(algorithm) % len(COLOURS)]

    @property
    def compared_with_noise(self) -> bool:
        """Whether differences could be held against training again."""
        return None not in self.noise

    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables by the names of their files."""
        names = ("regret", "ranking", "agreement", "pairs", "wrong_table", "picks", "tied")
        fronts = self.classes[self.classes["front_original"] | self.classes["front_retrained"]]
        return {name: getattr(self, name) for name in names} | {"pareto": fronts.sort_values("flops")}


def write(findings: Replays, folder: Path) -> Path:
    """Write tables/*.csv, figures/*, report.md and report.html below `folder`, and return it. Raises NasRetrainError if
    the folder cannot be written."""
    write_tables(findings.tables(), folder)
    draw_all(findings, folder / "figures")
    write_document(folder, _text(findings), _title(findings))
    return folder


def find(original: Accuracies, retrained: Accuracies, settings: AlgorithmsSettings) -> Replays:
    """Replay all algorithms on both tables. Raises NasRetrainError if a table lacks a cell, and for a limit of FLOPs
    that no cell keeps."""
    space, names = space_of(original.bench), tuple(replay.algorithms(settings))
    tables = replay.table(original), replay.table(retrained)
    noise = noise_level(original), noise_level(retrained)
    searching, again, resampling, truth = np.random.default_rng(settings.seed).spawn(4)
    _tell_slow_ones(space, settings, pairs=1 if None in noise else 1 + settings.null_draws)
    tell_stage(f"{settings.searches:,} searches of each algorithm on each table: {', '.join(names)}")
    found = replay.play_both(tables, space, settings, searching)
    observed, null = replay.outcome(tables, found), None
    # Noise that only one side tells is not lent to the other: budgets and recipes differ in it.
    if noise[0] is not None and noise[1] is not None:
        tell_stage(f"All searches again, on {settings.null_draws:,} pairs of tables drawn from the noise of training")
        draws = replay.training_again((original, retrained), (noise[0], noise[1]), space, settings, again)
        total, quiet = settings.null_draws, not sys.stderr.isatty()
        null = list(tqdm(draws, desc="training again", total=total, unit="draw", disable=quiet))
    tell_stage(f"Intervals, from {settings.bootstrap_draws:,} resamples of the searches")
    means = _resampled(observed.own, settings.bootstrap_draws, resampling)
    classes = network_classes(original, retrained)
    drawn = None if noise[1] is None else drawn_truth(classes, noise[1], settings.bootstrap_draws, truth)
    picks, tied = pick(classes, settings.flop_limits, drawn)
    return Replays(
        names=(original.name, retrained.name),
        algorithms=names,
        settings=settings,
        noise=noise,
        seeds=any(table.trainings.shape[1] > 1 for table in tables),
        regret=regret_curves(names, tables, found, settings, resampling),
        ranking=ranking(names, observed, null, means),
        agreement=agreement(observed, null, means),
        pairs=pairs(names, observed, null, means),
        wrong_table=wrong_table(
            names, observed, null, _resampled(observed.other, settings.bootstrap_draws, resampling), means
        ),
        picks=picks,
        tied=tied,
        classes=classes,
    )


def _tell_slow_ones(space: Space, settings: AlgorithmsSettings, pairs: int) -> None:
    """Say, before so many pairs of tables are searched, which algorithms that the settings add will take long."""
    searches = 2 * pairs * settings.searches
    for name in settings.others:
        hours = asked.hours_at_least(asked.algorithm(name), space, settings, searches)
        if hours > asked.LONG_HOURS:
            tell_stage(
                f"{asked.label(name)} will take at least {hours:,.1f} hours for {searches:,} searches of "
                f"{settings.queries:,} trainings; algorithms.null_draws, .searches and .queries make them fewer"
            )


def _resampled(values: Floats, draws: int, generator: np.random.Generator) -> Floats:
    """Means of resampled searches: (..., searches) to (..., draws), each mean with resamples of its own."""
    count = values.shape[-1]
    rows = [row[generator.integers(0, count, (draws, count))].mean(1) for row in values.reshape(-1, count)]
    return np.stack(rows).reshape(*values.shape[:-1], draws)


def adjusted_p(observed: Floats, null: Floats, *, two_sided: bool = False) -> Floats:
    """p-values of several statistics, (tests,), from those of null draws, (draws, tests), adjusted for their number.

    Each is measured in standard deviations about its mean, over the draws and the observation together, which under
    the null hypothesis are exchangeable. Large values speak against it; two-sided, small ones as well. NaN where a
    statistic is undefined.
    """
    everything = np.vstack([observed, null])
    defined = np.isfinite(everything).all(0)
    distance = everything[:, defined] - everything[:, defined].mean(0)
    spread = everything[:, defined].std(0)
    score = np.divide(distance, spread, out=np.zeros_like(distance), where=spread > 1e-9)
    if two_sided:
        score = np.abs(score)
    p = np.full(len(observed), np.nan)
    if defined.any():
        p[defined] = (score.max(1)[:, None] >= score[0] - 1e-12).mean(0)
    return p


def regret_curves(
    names: Sequence[str],
    tables: tuple[Table, Table],
    found: tuple[Integers, Integers],
    settings: AlgorithmsSettings,
    generator: np.random.Generator,
) -> pd.DataFrame:
    """Regret against the number of trainings: table, algorithm, trainings, mean_regret with its interval over
    searches, and the quartiles of searches (quarter, median, three_quarters)."""
    shown = np.unique(np.geomspace(1, settings.queries, SHOWN_QUERIES).round().astype(int))
    parts = []
    for side, table, cells in zip(SIDES, tables, found, strict=True):
        for name, searches in zip(names, cells[..., shown - 1], strict=True):
            regret = regrets(searches, table).T
            low, high = middle(_resampled(regret, settings.bootstrap_draws, generator), -1)
            quarters = np.quantile(regret, [0.25, 0.5, 0.75], axis=1)
            columns = {"table": side, "algorithm": name, "trainings": shown, "mean_regret": regret.mean(1)}
            columns |= {"regret_low": low, "regret_high": high}
            columns |= dict(zip(("quarter", "median", "three_quarters"), quarters, strict=True))
            parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def ranking(names: Sequence[str], observed: Outcome, null: list[Outcome] | None, means: Floats) -> pd.DataFrame:
    """A row a measure, table and algorithm: mean_regret and rank (1 is the best) with intervals over searches.

    rank_again_low, rank_again_high: 95 % of the ranks on tables drawn again.
    """
    places = itertools.product(MEASURES, SIDES, names)
    table = pd.DataFrame(places, columns=["measure", "table", "algorithm"])
    table["mean_regret"] = observed.mean.ravel()
    table["regret_low"], table["regret_high"] = middle(means, -1).reshape(2, -1)
    table["rank"] = rankdata(observed.mean, axis=-1).ravel()
    table["rank_low"], table["rank_high"] = middle(rankdata(means, axis=-2), -1).reshape(2, -1)
    if null is None:
        return table.assign(rank_again_low=np.nan, rank_again_high=np.nan)
    again = rankdata(np.stack([one.mean for one in null], axis=-1), axis=-2)
    table["rank_again_low"], table["rank_again_high"] = middle(again, -1).reshape(2, -1)
    return table


def agreement(observed: Outcome, null: list[Outcome] | None, means: Floats) -> pd.DataFrame:
    """A row a measure: Kendall's tau between the tables' rankings of the algorithms, with its interval over searches,
    beside that of tables drawn again (tau_again, again_low, again_high); p_adjusted: how likely these give a tau as
    low, adjusted for there being several measures."""
    table = pd.DataFrame({"measure": MEASURES, "kendall_tau": observed.tau})
    resampled = [[kendall_tau(*both) for both in measure.transpose(2, 0, 1)] for measure in means]
    table["tau_low"], table["tau_high"] = np.transpose([interval(np.array(taus)) for taus in resampled])
    if null is None:
        return table.assign(tau_again=np.nan, again_low=np.nan, again_high=np.nan, p_adjusted=np.nan)
    again = np.array([one.tau for one in null])
    table["tau_again"] = again.mean(0)
    table["again_low"], table["again_high"] = np.transpose([interval(taus) for taus in again.T])
    table["p_adjusted"] = adjusted_p(-observed.tau, -again)
    return table


def pairs(names: Sequence[str], observed: Outcome, null: list[Outcome] | None, means: Floats) -> pd.DataFrame:
    """A row a measure and pair of algorithms.

    difference_*: the first's mean regret less the second's, with its interval over searches. superiority_*: how
    likely a search of the first comes out better than one of the second. change: of superiority from original to
    retrained; again_low, again_high: 95 % of what training again gives; p_adjusted: how often that is as far from its
    mean, adjusted for the number of rows. reversed: the change is beyond noise, and the two differences are certain
    over searches and of opposite sign.
    """
    places = [(measure, names[first], names[second]) for measure in MEASURES for first, second in observed.pairs]
    table = pd.DataFrame(places, columns=["measure", "algorithm", "other"])
    first, second = ([pair[end] for pair in observed.pairs] for end in (0, 1))
    difference = observed.mean[:, :, first] - observed.mean[:, :, second]
    low, high = middle(means[:, :, first] - means[:, :, second], -1)
    for place, side in enumerate(SIDES):
        for suffix, values in (("", difference), ("_low", low), ("_high", high)):
            table[f"difference_{side}{suffix}"] = values[:, place].ravel()
    for place, side in enumerate(SIDES):
        table[f"superiority_{side}"] = observed.superiority[:, place].ravel()
    table["change"] = observed.change.ravel()
    if null is None:
        return table.assign(again_low=np.nan, again_high=np.nan, p_adjusted=np.nan, reversed=False)
    again = np.array([one.change.ravel() for one in null])
    table["again_low"], table["again_high"] = middle(again.T, -1)
    table["p_adjusted"] = adjusted_p(observed.change.ravel(), again, two_sided=True)
    better, worse = high < 0, low > 0
    opposite = (better[:, 0] & worse[:, 1]) | (worse[:, 0] & better[:, 1])
    table["reversed"] = opposite.ravel() & (table["p_adjusted"] <= SIGNIFICANT)
    return table


def wrong_table(
    names: Sequence[str], observed: Outcome, null: list[Outcome] | None, others: Floats, means: Floats
) -> pd.DataFrame:
    """A row a table searched and algorithm: the final regret by the other table (regret), that of searching the other
    one itself (regret_own), and the cost, their difference, with its interval over searches; all in points.

    The last row of each table stands for the choice of its best cell. again, again_low, again_high: the mean and 95 %
    of the cost that training again has, since a search fits noise too; beyond_noise: the cost less that mean;
    p, adjusted: how likely training again costs as much, adjusted for the number of rows. others, means: resampled
    means of `Outcome.other` and `Outcome.own`.
    """
    places = itertools.product(zip(SIDES, SIDES[::-1], strict=True), (*names, EXHAUSTIVE))
    table = pd.DataFrame([(*sides, name) for sides, name in places], columns=["searched", "judged_by", "algorithm"])
    own = np.column_stack([observed.mean[0, ::-1], np.zeros(2)])
    table["regret"] = (observed.cost + own).ravel()
    table["regret_own"] = own.ravel()
    table["cost"] = observed.cost.ravel()
    unknown = np.full((2, 2, 1), np.nan)  # the best of all cells is one choice, without searches to resample
    intervals = np.concatenate([middle(others - means[0, ::-1], -1), unknown], axis=-1)
    table["cost_low"], table["cost_high"] = intervals.reshape(2, -1)
    if null is None:
        return table.assign(again=np.nan, again_low=np.nan, again_high=np.nan, beyond_noise=np.nan, p_adjusted=np.nan)
    again = np.array([one.cost.ravel() for one in null])
    table["again"] = again.mean(0)
    table["again_low"], table["again_high"] = middle(again.T, -1)
    table["beyond_noise"] = table["cost"] - table["again"]
    table["p_adjusted"] = adjusted_p(observed.cost.ravel(), again)
    return table


def draw_all(findings: Replays, folder: Path) -> None:
    """Draw regret, algorithms and pareto, each as PNG and PDF."""
    with rc_context(STYLE):
        save(_regret_figure(findings), folder, "regret")
        save(_algorithms_figure(findings), folder, "algorithms")
        save(_pareto_figure(findings), folder, "pareto")


def _regret_figure(findings: Replays) -> Figure:
    figure = Figure(figsize=(10.0, 3.8), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, side, source in zip(panels, SIDES, findings.names, strict=True):
        curves = findings.regret[findings.regret["table"] == side]
        for name, curve in curves.groupby("algorithm", sort=False):
            colour, x = findings.colour(str(name)), curve["trainings"]
            axes.fill_between(x, curve["regret_low"], curve["regret_high"], color=colour, alpha=0.2, linewidth=0)
            axes.plot(x, curve["mean_regret"], color=colour, label=name)
            axes.plot(x, curve["median"], color=colour, linewidth=0.9, linestyle=":")
        axes.set(xlabel="trainings", ylabel="regret (points)", xscale="log", yscale="log", title=drawn_name(source))
        axes.set_ylim(bottom=max(0.01, 0.7 * curves["mean_regret"].min()))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_major_formatter("{x:g}")
    handles, labels = panels[0].get_legend_handles_labels()
    (median,) = panels[0].plot([], [], color="black", linewidth=0.9, linestyle=":")
    figure.legend([*handles, median], [*labels, "median"], loc="outside lower center", ncols=6)
    return figure


def _algorithms_figure(findings: Replays) -> Figure:
    figure = Figure(figsize=(10.0, 3.8), layout="constrained")
    ranks, original, retrained = figure.subplots(1, 3, width_ratios=[1, 1.3, 1.3])
    _ranks(ranks, findings)
    for axes, searched, judge in ((original, 0, 1), (retrained, 1, 0)):
        rows = findings.wrong_table[findings.wrong_table["searched"] == SIDES[searched]]
        y = -np.arange(len(rows))
        if findings.compared_with_noise:
            axes.hlines(y, rows["again_low"], rows["again_high"], color=ORANGE, alpha=0.35, linewidth=7)
            axes.plot(rows["again"], y, "|", color=ORANGE, markersize=10)
        draw_estimates(
            axes, y, rows["cost"], rows["cost_low"], rows["cost_high"], colour=BLUE, width=1.5, sideways=True
        )
        axes.axvline(0, color=GREY, linewidth=0.6)
        axes.set_yticks(y, rows["algorithm"] if axes is original else [""] * len(rows))
        axes.set(xlabel="points", ylim=(y[-1] - 0.6, 0.6))
        axes.set_title(f"Cost of the wrong table:\n{SIDES[searched]} searched, {SIDES[judge]} judges")
    (cost,) = original.plot([], [], "o-", color=BLUE, markersize=4, linewidth=1.5)
    (again,) = original.plot([], [], "-", color=ORANGE, alpha=0.35, linewidth=7)
    labels = ["cost, 95 % interval over searches", "cost if merely trained again, 95 %"]
    figure.legend([cost, again], labels, loc="outside lower center", ncols=2)
    return figure


def _ranks(axes: Axes, findings: Replays) -> None:
    """How the algorithms' ranks by final regret go from one table to the other, and where training again puts them."""
    rows = findings.ranking[findings.ranking["measure"] == "final"]
    for place, (name, both) in enumerate(rows.groupby("algorithm", sort=False)):
        x = np.arange(2) + 0.04 * (place - len(findings.algorithms) // 2)
        colour = findings.colour(str(name))
        axes.vlines(x, both["rank_again_low"], both["rank_again_high"], color=colour, alpha=0.4, linewidth=5)
        axes.plot(x, both["rank"], "o-", color=colour, markersize=4)
        axes.annotate(str(name), (1.15, both["rank"].iloc[-1]), va="center", color=colour, annotation_clip=False)
    axes.set(
        xlim=(-0.2, 1.2), ylim=(len(findings.algorithms) + 0.4, 0.6), yticks=range(1, len(findings.algorithms) + 1)
    )
    axes.set(ylabel="rank by final regret", title="Ranking of the algorithms\n(bars: trained again, 95 %)")
    axes.set_xticks([0, 1], SIDES)


def _pareto_figure(findings: Replays) -> Figure:
    figure = Figure(figsize=(10.0, 4.0), layout="constrained")
    classes = findings.classes.sort_values("flops")
    panels = figure.subplots(1, 2)
    for axes, side, other, source in zip(panels, SIDES, SIDES[::-1], findings.names, strict=True):
        x, y = classes["flops"] / 1e6, classes[f"accuracy_{side}"]
        axes.plot(x, y, ".", color=GREY, markeredgewidth=0, markersize=3, alpha=0.4, rasterized=True)
        own, strange = classes[f"front_{side}"], classes[f"front_{other}"]
        axes.step(x[own], y[own], "o-", where="post", color=BLUE, markersize=4, label="front of this table")
        axes.plot(x[strange], y[strange], "D", color=ORANGE, markersize=4, label="front of the other table")
        front = y[own | strange]
        axes.set(xlabel="FLOPs (millions)", ylabel="accuracy (%)", title=drawn_name(source), xscale="log")
        axes.set_ylim(front.min() - 0.1 * np.ptp(front), front.max() + 0.1 * np.ptp(front))
        axes.set_xticks([10, 20, 50, 100, 200], ["10", "20", "50", "100", "200"])
        axes.xaxis.set_minor_formatter("")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _title(findings: Replays) -> str:
    original, retrained = findings.names
    return f"Search algorithms: {retrained} against {original}"


def _text(findings: Replays) -> str:
    pairs_shown = ["measure", "algorithm", "other", "superiority_original", "superiority_retrained"]
    pairs_shown += ["change", "again_low", "again_high", "p_adjusted", "reversed"]
    unlimited = findings.tied[~np.isfinite(findings.tied["limit_mflops"].astype(float))]
    return render_markdown(
        __package__,
        title=_title(findings),
        statements=statements(findings),
        found=findings,
        pairs=findings.pairs[pairs_shown],
        tied=unlimited.head(TIED_SHOWN),
        facts=_facts(findings.settings),
    )


def _facts(chosen: AlgorithmsSettings) -> dict[str, str]:
    """What the report says of how it was made, by name."""
    return {
        "each algorithm": f"{chosen.searches:,} searches of {chosen.queries:,} trainings, on each table",
        "regularised evolution": f"population {chosen.population}, tournament {chosen.tournament}",
        "REINFORCE": f"learning rate {chosen.learning_rate:g} (accuracy in points)",
        "TPE": f"{chosen.startup} random cells first, {chosen.candidates} candidates, best {chosen.good_share:.0%} "
        "are good",
        "draws": f"{chosen.null_draws:,} of training again, {chosen.bootstrap_draws:,} of the bootstrap and of true "
        f"accuracies; seed {chosen.seed}",
        "versions": analysis_versions(),
    }


def statements(findings: Replays) -> list[str]:
    """What the numbers show and do not show, in plain sentences."""
    sides = dict(zip(SIDES, findings.names, strict=True))
    found = _orders(findings)
    if findings.compared_with_noise:
        found += _too_few_draws(findings) + _agreements(findings) + _beyond_noise(findings, sides)
    else:
        found.append(UNKNOWN_NOISE)
    found += _to_take(findings)
    seen = "one of a cell's trainings" if findings.seeds else "a cell's mean accuracy and so fits its noise"
    found.append(
        "A training counts as one unit of cost whatever the cell, since no training times are read; nor are learning "
        f"curves, so successive halving and Hyperband are not replayed. A search sees {seen}. One setting of each "
        "algorithm was tried: another may rank otherwise."
    )
    return found


def headline(findings: Replays) -> list[str]:
    """The sentences that matter most: the ranking of the algorithms on each table, and whether noise explains how they
    differ."""
    noise = [UNKNOWN_NOISE]
    if findings.compared_with_noise:
        noise = _too_few_draws(findings) or _agreements(findings)[:1]
    return [*_orders(findings), *noise]


def _orders(findings: Replays) -> list[str]:
    sides = dict(zip(SIDES, findings.names, strict=True))
    final = findings.ranking[findings.ranking["measure"] == "final"]
    found = []
    for side, name in sides.items():
        rows = final[final["table"] == side].sort_values("mean_regret", kind="stable")
        order = [f"{row['algorithm']} ({row['mean_regret']:.3f})" for _, row in rows.iterrows()]
        found.append(
            f"By mean regret after {findings.settings.queries:,} trainings (points) the algorithms rank, on {name}: "
            f"{', '.join(order)}."
        )
    return found


def _too_few_draws(findings: Replays) -> list[str]:
    draws = findings.settings.null_draws
    if SIGNIFICANT * (draws + 1) >= 1:  # the largest statistic adjusts for the number of tests within each draw
        return []
    return [
        f"{draws} draws of training again give no p-value below {1 / (draws + 1):.2g}, so that nothing can reach "
        f"the 5 % level: set algorithms.null_draws to {round(1 / SIGNIFICANT) - 1} at least."
    ]


def _agreements(findings: Replays) -> list[str]:
    found = []
    for _, row in findings.agreement.iterrows():
        differ = "differ" if row["p_adjusted"] <= SIGNIFICANT else "are not shown to differ"
        found.append(
            f"Kendall's tau between the rankings of the algorithms by {row['measure']} regret: "
            f"{row['kendall_tau']:.2f}, and {row['tau_again']:.2f} [{row['again_low']:.2f}, "
            f"{row['again_high']:.2f}] if the cells are merely trained again. The rankings {differ} more than "
            f"training again explains (p = {p_text(row['p_adjusted'])}, adjusted)."
        )
    return found


def _beyond_noise(findings: Replays, sides: dict[str, str]) -> list[str]:
    found = []
    table = findings.pairs
    changed = table[table["p_adjusted"] <= SIGNIFICANT]
    listed = "".join(
        f"; {row['algorithm']} against {row['other']} ({row['measure']}): {row['superiority_original']:.2f} to "
        f"{row['superiority_retrained']:.2f}" + (", reversed" if row["reversed"] else "")
        for _, row in changed.iterrows()
    )
    found.append(
        f"How often one algorithm beats another changed more than training again explains in {len(changed)} of "
        f"{len(table)} comparisons, and was reversed in {int(table['reversed'].sum())}{listed}."
    )
    for searched, rows in findings.wrong_table.groupby("searched", sort=False):
        judge = sides[str(rows["judged_by"].iloc[0])]
        algorithms = rows[rows["algorithm"] != EXHAUSTIVE]
        sure = rows.loc[rows["p_adjusted"] <= SIGNIFICANT, "algorithm"]
        found.append(
            f"Searching {sides[str(searched)]} instead of {judge} costs {algorithms['cost'].min():.2f} to "
            f"{algorithms['cost'].max():.2f} points of {judge}, of which training again explains "
            f"{algorithms['again'].min():.2f} to {algorithms['again'].max():.2f}; the cost is beyond noise for "
            f"{', '.join(sure) if len(sure) else 'none'}."
        )
    return found


def _to_take(findings: Replays) -> list[str]:
    picks = findings.picks
    old, new = (picks[picks["chosen_by"] == side].iloc[-1] for side in SIDES)
    found = f"The network with the highest accuracy on {findings.names[1]} is cell {new['cell']}'s: "
    found += f"{new['accuracy_retrained']:.2f} %"
    if findings.noise[1] is None:
        return [f"{found}; how much of that is luck is unknown."]
    among = "one" if old["in_tied"] else "not one"
    out = picks[(picks["chosen_by"] == "original") & (picks["in_tied"] == 0)]
    return [
        f"{found}, truly about {new['true_retrained']:.2f} [{new['true_low']:.2f}, {new['true_high']:.2f}] since the "
        f"best of many is lucky. {new['tied']:.0f} network classes cannot be told from the best; {findings.names[0]}'s "
        f"own pick, cell {old['cell']}, is {among} of them and truly {old['behind']:.2f} points behind "
        f"[{old['behind_low']:.2f}, {old['behind_high']:.2f}].",
        f"Under {len(out)} of {len(picks) // 2} limits of FLOPs (no limit counts as one) the original's pick is not "
        "among the classes that cannot be told from the best.",
    ]
