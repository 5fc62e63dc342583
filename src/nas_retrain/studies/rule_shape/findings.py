"""What the records say: the gain of each exponent, of each rule, of the paper's procedure, and the hypotheses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from nas_retrain.benches import registry
from nas_retrain.plan.study import NothingYet, Records
from nas_retrain.purpose import Trial
from nas_retrain.settings import RuleSettings, Settings
from nas_retrain.statistics.rankings import FEWEST, LEVEL, Floats, bootstrap_weights
from nas_retrain.statistics.response_surface import (
    Curves,
    Estimate,
    Halves,
    Rules,
    chosen_by,
    over_null,
    pair_signs,
    share_beyond,
    sign_flip_p,
    tau_difference,
)
from nas_retrain.statistics.significance import SIGNIFICANT, holm
from nas_retrain.studies.rate_prediction.findings import STACKED, rules_of
from nas_retrain.studies.rule_shape import afterwards, design
from nas_retrain.studies.rule_shape.design import (
    CONFIRMATION,
    INITIALISATIONS,
    ONE_RATE,
    PERMUTED,
    PLAIN_CONFIRMATION,
    RULE,
)
from nas_retrain.studies.rule_shape.observed import (
    Confirmed,
    Surface,
    confirmations_of,
    mean_of,
    surfaces_of,
    with_ends,
)
from nas_retrain.studies.scoreboard.findings import factors_of

RULES = {
    "the paper's": RuleSettings(rule="paper", parameters={"initialisation": False}),
    "effective depth": RuleSettings(rule="effective_depth"),
    "depth": RuleSettings(rule="depth"),
    "measured": RuleSettings(rule="measured"),
}
"""The rules that are judged on the surface, by what reports call them."""

ALL_CELLS = "the paper's, paths through all cells"
"""Equation 8 as derived: over paths through the whole network. The paper's experiments take those through one cell."""

BENCHMARK_RATE = 0.1
"""What the benchmark gave all networks."""

SEARCH_SEEDS = 3
"""Seeds of the paper's search for the base rate."""


@dataclass(frozen=True)
class Findings:
    """Tables, by name, each with the columns that its maker below describes; and how they were made (facts)."""

    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)


def find_all(records: Records, settings: Settings) -> Findings:
    """What the parts say of which all trainings are stored: none is looked at before it and those like it are whole,
    since a look may decide when to stop. Raises NothingYet if there is no surface among them."""
    from nas_retrain.reports.document import facts as stage_facts
    from nas_retrain.reports.document import tell_stage

    frame = records.frame(Trial)
    frame = frame.assign(
        part=[purpose.part for purpose in frame["purpose"]], arm=[purpose.arm for purpose in frame["purpose"]]
    )
    counted = trainings(records, frame)
    like = counted["part"].map(design.series)
    whole = (counted["wanted"] == counted["stored"]).groupby(like).transform("all")
    frame = frame[frame["part"].isin(counted.loc[whole, "part"])]
    surfaces = surfaces_of(frame)
    if not surfaces:
        raise NothingYet(
            f"Nothing to judge yet: a surface takes {FEWEST} networks, and every rate and seed of each must be trained."
        )

    def of_each(table: Callable[[Surface, Settings], pd.DataFrame]) -> pd.DataFrame:
        made = [
            table(surface, settings).assign(normalisation=normalisation, initialisation=initialisation)
            for (normalisation, initialisation), surface in surfaces.items()
        ]
        return pd.concat(made, ignore_index=True)

    shape = design.asked_for(settings)
    confirmed = confirmations_of(frame, settings.dataset.classes)
    tell_stage(f"Exponents, rules and hypotheses, on {len(surfaces)} surface(s), from {shape.draws:,} draws")
    tables = {
        "exponents": of_each(of_exponents),
        "rules": of_each(of_rules),
        "attainable": of_each(of_attainable),
        "base_rates": base_rates(frame, settings),
        "procedure": of_procedure(frame, surfaces, settings),
        "arms": arms(confirmed),
        "hypotheses": hypotheses(confirmed, surfaces, settings),
        "halvings": halvings(surfaces, settings),
        "scalars": scalars(records, settings),
        "contrasts": contrasts(confirmed, [CONFIRMATION, PLAIN_CONFIRMATION]),
        "by_edges": afterwards.by_edges(confirmed, settings),
        "correlations": afterwards.correlations(surfaces, settings),
        "initialisations": afterwards.initialisations(surfaces, settings),
        "longer": contrasts(confirmed, [design.longer_part(decay) for decay in shape.longer.weight_decays]),
        "ladder": ladder(frame, surfaces, settings),
        "trainings": counted,
    }
    dataset = settings.dataset
    facts = stage_facts(settings) | {
        "records": f"{len(frame):,} of {settings.results_dir / 'runs.parquet'}",
        "network": f"{settings.network.channels} channels, {settings.network.cells_per_stage} cell(s) a stage",
        "images": f"{dataset.images_per_epoch:,} of {dataset.image_size} x {dataset.image_size} pixels, "
        f"{settings.training.epochs} epochs in batches of {settings.training.batch_size}",
        "draws": f"{shape.draws:,} resamples and null draws, {shape.permutations:,} permutations, "
        f"seed {settings.analysis.seed}",
    }
    return Findings({name: table for name, table in tables.items() if len(table)}, facts)


def trainings(records: Records, frame: pd.DataFrame) -> pd.DataFrame:
    """A row for each part of the study that the settings ask for: how many trainings are wanted, and stored."""
    wanted = Counter(training.purpose.part for training in records.trainings if isinstance(training.purpose, Trial))
    stored = frame["part"].value_counts()
    rows = [{"part": part, "wanted": number, "stored": stored.get(part, 0)} for part, number in wanted.items()]
    return pd.DataFrame(rows, columns=["part", "wanted", "stored"])


def of_exponents(surface: Surface, settings: Settings) -> pd.DataFrame:
    """A row for each exponent alpha of rate = m factor^alpha: networks; exponent; gain over exponent 0 in points, with
    gain_low and gain_high, where m is tuned for each exponent on one half of the networks and judged on the other;
    permuted, permuted_low and permuted_high, mean and 95 % of the same with the factors handed to the wrong networks;
    scalar, the geometric mean of the rates that is best on all networks; outside, the share of rates beyond the grid.
    """
    shape, rules = design.asked_for(settings), surface.rules(settings)
    log_factors = design.log_factors(settings, surface.cells.tolist())
    random = np.random.default_rng(settings.analysis.seed)
    rows = []
    for exponent in sorted(shape.exponents):
        factors = exponent * log_factors
        gain, null = rules.gain(factors), rules.gains_if_permuted(factors, shape.permutations, random)
        best = design.scalars(rules.curves, factors)
        at = best.mean[RULE] + factors - best.offset
        rows.append(
            {
                "networks": len(surface.cells),
                "exponent": exponent,
                **gain.columns("gain"),
                **with_ends("permuted", float(null.mean()), tuple(np.quantile(null, _TAILS))),
                "scalar": 2.0 ** best.mean[RULE],
                "outside": rules.curves.outside(at),
            }
        )
    return pd.DataFrame(rows)


_TAILS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)


def of_rules(surface: Surface, settings: Settings) -> pd.DataFrame:
    """A row for each of `RULES` and for `ALL_CELLS`: its gain over one rate with ends, as in `of_exponents`;
    over_permuted, what it gains over its own factors in the wrong networks, on average over permutations, with ends of
    `over_null`; p_value, how often a permutation gains as much, and p_holm, adjusted for the number of rules."""
    shape, rules = design.asked_for(settings), surface.rules(settings)
    random, rows = np.random.default_rng(settings.analysis.seed), []
    for name, factors in _log_factors_of_rules(surface, settings).items():
        gain, null = rules.gain(factors), rules.gains_if_permuted(factors, shape.permutations, random)
        over = over_null(gain.value, null)
        rows.append(
            {
                "rule": name,
                "networks": len(surface.cells),
                **gain.columns("gain"),
                **over.columns("over_permuted"),
                "p_value": share_beyond(gain.value, null),
            }
        )
    table = pd.DataFrame(rows)
    return table.assign(p_holm=holm(table["p_value"].to_numpy()))


def of_attainable(surface: Surface, settings: Settings) -> pd.DataFrame:
    """One row, of what rates for single networks can gain at all: networks; gain and over_permuted with ends, see
    `own_rates`; total, how much accuracies vary without the means of rates and of networks, in points^2, and own, how
    much of it is a network's own and not a seed's, see `own_part`; own_near, the same within `NEAR` octaves of the best
    one rate. gain is a lower bound of what can be gained, since one seed chooses badly."""
    gain, null = own_rates(surface, settings)
    best = 2.0 ** design.scalars(surface.curves, np.zeros(len(surface.cells))).mean[ONE_RATE]
    near = surface.between(best / 2**NEAR, best * 2**NEAR)
    row = {
        "networks": len(surface.cells),
        "total": float((_left(surface) ** 2).mean()),
        **own_part(surface, settings).columns("own"),
        **own_part(near, settings).columns("own_near"),
        **gain.columns("gain"),
        **over_null(gain.value, null).columns("over_permuted"),
    }
    return pd.DataFrame([row])


NEAR = 1.0
"""Octaves to each side of the best one rate: beyond them, networks that begin to fail make most of the differences."""


def _left(surface: Surface) -> Floats:
    """What is left of accuracies, (networks, rates, seeds), after the means of rates over networks and of networks over
    rates, with each seed by itself."""
    left = surface.accuracy - surface.accuracy.mean(0)
    without_means: Floats = left - left.mean(1, keepdims=True)
    return without_means


def own_part(surface: Surface, settings: Settings) -> Estimate:
    """The covariance between seeds of what is left of accuracies without the means of rates and of networks; on average
    over networks, rates and pairs of seeds."""
    left = _left(surface)
    seeds = left.shape[2]
    pairs = (left.sum(2) ** 2 - (left**2).sum(2)).mean(1) / (seeds * (seeds - 1))
    weights = bootstrap_weights(np.arange(len(pairs)), design.asked_for(settings).draws, settings.analysis.seed)
    return Estimate(float(pairs.mean()), pairs @ weights / len(pairs))


def own_rates(surface: Surface, settings: Settings) -> tuple[Estimate, Floats]:
    """What networks gain over one rate if each has the rate that was best for it with one seed, judged with the other
    seeds; on average over which seed that is. And the same where networks have each other's best rates, by permutation.
    """
    shape, seeds = design.asked_for(settings), surface.accuracy.shape[2]
    halves = surface.rules(settings).halves
    gains, nulls = [], []
    for seed in range(seeds):
        choosing = Curves.of(surface.rates, surface.accuracy[..., seed])
        best = choosing.logarithms[choosing.accuracy.argmax(1)]
        others = surface.accuracy[..., np.arange(seeds) != seed].mean(2)
        rules = Rules(Curves.of(surface.rates, others), halves)
        gains.append(rules.gain(best))
        random = np.random.default_rng(settings.analysis.seed)
        nulls.append(rules.gains_if_permuted(best, shape.permutations, random))
    return Estimate.mean(gains), np.mean(nulls, axis=0)


def _log_factors_of_rules(surface: Surface, settings: Settings) -> dict[str, Floats]:
    """The logarithms of the factors that each rule gives the networks of a surface, if it gives all of them one."""
    cells = surface.cells.tolist()
    # What is measured is the surface's own first steps. The base network's is a common factor; nothing depends on it.
    shares = {registry.of(settings.bench).base_cell: 1.0} | dict(zip(cells, surface.shares.tolist(), strict=True))
    rules = dict(RULES)
    if not (surface.shares > 0).all():  # a network's first step changed nothing: what is measured gives it no rate
        del rules["measured"]
    found = {name: np.log2(factors_of(rule, cells, settings, shares)) for name, rule in rules.items()}
    space = registry.of(settings.bench)
    stacked = rules_of(settings.bench, space, settings.network.cells_per_stage).get(STACKED)
    if stacked is not None:
        found[ALL_CELLS] = np.log2([stacked(space.graph_at(cell)) for cell in cells])
    return found


def _searches(frame: pd.DataFrame) -> dict[tuple[str, int], tuple[Floats, Floats]]:
    """Rates, and losses (rates, seeds), of the base network by initialisation and epochs; infinite where diverged."""
    base = frame[frame["part"].str.startswith("base_rate_")]
    found = {}
    for _, ours in base.groupby(["arm", "epochs"]):
        initialisation, epochs = str(ours["arm"].iloc[0]), int(ours["epochs"].iloc[0])
        losses = ours.assign(loss=ours["train_loss"].fillna(np.inf)).pivot_table(
            index="learning_rate", columns="seed", values="loss"
        )
        if losses.notna().all(axis=None) and losses.shape[1] >= SEARCH_SEEDS:
            found[initialisation, epochs] = losses.index.to_numpy(dtype=float), losses.to_numpy()
    return found


def base_rates(frame: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """A row for each initialisation, number of epochs and rate of the grid: seeds, mean_loss over all of them with its
    standard error, and share, of draws of three seeds whose search chooses this rate."""
    shape, random = design.asked_for(settings), np.random.default_rng(settings.analysis.seed)
    tables = []
    for (initialisation, epochs), (rates, losses) in _searches(frame).items():
        chosen = chosen_by(losses, SEARCH_SEEDS, shape.draws, random)
        number = losses.shape[1]
        with np.errstate(invalid="ignore"):
            error = losses.std(axis=1, ddof=1) / number**0.5
        tables.append(
            pd.DataFrame(
                {
                    "initialisation": initialisation,
                    "epochs": epochs,
                    "learning_rate": rates,
                    "seeds": number,
                    "mean_loss": losses.mean(1),
                    "standard_error": error,
                    "share": np.bincount(chosen, minlength=len(rates)) / len(chosen),
                }
            )
        )
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def of_procedure(frame: pd.DataFrame, surfaces: Mapping[tuple[str, str], Surface], settings: Settings) -> pd.DataFrame:
    """The paper's procedure, whose base rate is what three seeds find after one epoch (or so many as the study has).

    A row for each initialisation and number of epochs of the search: over_benchmark, points that the rule gains over
    the benchmark's own rate under PyTorch's initialisation, and over_tuned, over one rate tuned on the other half of
    the networks; on average over the base rates that three seeds find. The ends are of one such search: each draw takes
    other networks and three other seeds.
    """
    random = np.random.default_rng(settings.analysis.seed)
    control = surfaces.get(("batch", "stock"))
    rows = []
    for (initialisation, epochs), (rates, losses) in _searches(frame).items():
        surface = surfaces.get(("batch", initialisation))
        if surface is None or control is None:
            continue
        common = np.intersect1d(surface.cells, control.cells)
        surface, its = surface.first(common), control.first(common)
        curves, rules = surface.curves, its.rules(settings)
        factors = design.log_factors(settings, common.tolist())
        by_rate = np.array([curves.at(np.log2(rate) + factors) for rate in rates])
        benchmark = rules.curves.at(np.full(len(common), np.log2(BENCHMARK_RATE)))
        chosen = chosen_by(losses, SEARCH_SEEDS, len(rules.halves.weights), random)
        shares = np.bincount(chosen, minlength=len(rates)) / len(chosen)
        drawn = (rules.halves.weights * by_rate[chosen]).sum(1) / len(common)
        benchmark_drawn = rules.halves.weights @ benchmark / len(common)
        mean, tuned = float(shares @ by_rate.mean(1)), rules.one_rate
        over_benchmark = Estimate(mean - float(benchmark.mean()), drawn - benchmark_drawn)
        over_tuned = Estimate(mean - float(rules.halves.judged(tuned).mean()), drawn - rules.halves.judged_means(tuned))
        rows.append(
            {
                "initialisation": initialisation,
                "epochs": epochs,
                "networks": len(common),
                **over_benchmark.columns("over_benchmark"),
                **over_tuned.columns("over_tuned"),
            }
        )
    return pd.DataFrame(rows)


def arms(confirmed: Mapping[str, Confirmed]) -> pd.DataFrame:
    """A row for each part and arm: networks, mean test accuracy, and how many trainings diverged and collapsed."""
    rows = [
        {
            "part": part,
            "arm": arm,
            "networks": len(of_part.accuracy),
            "accuracy": float(of_part.accuracy[arm].mean()),
            "diverged": int(of_part.diverged[arm].sum()),
            "collapsed": int(of_part.collapsed[arm].sum()),
        }
        for part, of_part in confirmed.items()
        for arm in of_part.accuracy
    ]
    return pd.DataFrame(rows)


def contrasts(confirmed: Mapping[str, Confirmed], parts: Iterable[str]) -> pd.DataFrame:
    """A row for each of these parts, initialisation and rival of the rule: networks and difference in points, with
    ends; median, its median; worse, the share of networks that do worse under the rule; steady_networks, of which no
    training of the two arms collapsed, and their difference, steady, with ends."""
    rows = []
    for part in parts:
        of_part = confirmed.get(part)
        for initialisation in design.confirmed(plain=part == PLAIN_CONFIRMATION):
            for rival in (ONE_RATE, PERMUTED):
                if of_part is None or f"{initialisation}_{rival}" not in of_part.accuracy:
                    continue
                values = of_part.difference(RULE, rival, [initialisation])
                both = [f"{initialisation}_{arm}" for arm in (RULE, rival)]
                steady = (of_part.collapsed[both].sum(axis=1) == 0).to_numpy()
                rows.append(
                    {
                        "part": part,
                        "initialisation": initialisation,
                        "over": rival,
                        "networks": len(values),
                        **mean_of("difference", values),
                        "median": float(np.median(values)),
                        "worse": float((values < 0).mean()),
                        "steady_networks": int(steady.sum()),
                        **mean_of("steady", values[steady]),
                    }
                )
    return pd.DataFrame(rows)


def scalars(records: Records, settings: Settings) -> pd.DataFrame:
    """A row for each arm of the confirmation whose surface is whole: normalisation, initialisation, arm, scalar (the
    geometric mean of the rates on the surface), lowest and highest of the confirmation's rates, octaves_below and
    octaves_above (from the grid's ends to the scalar), and outside, the share of the confirmation's rates beyond these
    ends."""
    made = design.Design(settings, records.stored)
    rows = [
        {
            "normalisation": "none" if plain else "batch",
            "initialisation": place.initialisation,
            "arm": place.arm,
            "scalar": place.scalar,
            "lowest": place.lowest,
            "highest": place.highest,
            "octaves_below": place.below,
            "octaves_above": place.above,
            "outside": place.outside,
        }
        for plain in (False, True)
        for place in made.places(plain=plain)
    ]
    return pd.DataFrame(rows)


def hypotheses(
    confirmed: Mapping[str, Confirmed], surfaces: Mapping[tuple[str, str], Surface], settings: Settings
) -> pd.DataFrame:
    """A row for each hypothesis whose data are there: hypothesis, claim, unit, networks, difference with its 95 % ends,
    p_value (two-sided) and p_holm, margin, low_90 and high_90, equivalent (whether this 90 % interval lies within the
    margin, as in two one-sided tests), and verdict.

    Holm's adjustment is for all seven, also while data of some are missing.
    """
    shape, random = design.asked_for(settings), np.random.default_rng(settings.analysis.seed)
    both = [str(one) for one in INITIALISATIONS]
    tests: list[tuple[str, str, Floats | None, float]] = []

    def values(part: str, first: str, second: str, initialisations: Sequence[str]) -> Floats | None:
        of_part = confirmed.get(part)
        return None if of_part is None else of_part.difference(first, second, initialisations)

    def add(name: str, claim: str, differences: Floats | None, margin: float = shape.margin) -> None:
        tests.append((name, claim, differences, margin))

    add("H1", "rule less one rate, PyTorch's initialisation", values(CONFIRMATION, RULE, ONE_RATE, both[:1]))
    add("H2", "rule less one rate, the paper's initialisation", values(CONFIRMATION, RULE, ONE_RATE, both[1:]))
    add("H3", "rule less permuted rule", values(CONFIRMATION, RULE, PERMUTED, both))
    initialisation = None
    if CONFIRMATION in confirmed:
        table = confirmed[CONFIRMATION].accuracy
        initialisation = (table[f"{both[1]}_{ONE_RATE}"] - table[f"{both[0]}_{ONE_RATE}"]).to_numpy(dtype=float)
    add("H4", "the paper's initialisation less PyTorch's, one rate", initialisation)
    plain = "without BatchNorm, the derived initialisation"
    for name, claim, rival in (("H6", "permuted rule", PERMUTED), ("H7", "one rate", ONE_RATE)):
        differences = values(PLAIN_CONFIRMATION, RULE, rival, design.confirmed(plain=True))
        add(name, f"rule less {claim}, {plain}", differences, shape.plain.margin)
    rows = []
    for name, claim, differences, margin in tests:
        if differences is not None:
            narrow = _interval(differences, 0.9)
            rows.append(
                {
                    "hypothesis": name,
                    "claim": claim,
                    "unit": "points",
                    "networks": len(differences),
                    **mean_of("difference", differences),
                    "p_value": sign_flip_p(differences, shape.draws, random),
                    "margin": margin,
                    "low_90": narrow[0],
                    "high_90": narrow[1],
                }
            )
    if (ranked := ranking_difference(surfaces, settings)) is not None:
        networks, estimate = ranked
        narrow = estimate.within(0.9)
        rows.append(
            {
                "hypothesis": "H5",
                "claim": "tau with own best of the paper's two rules less that of one rate",
                "unit": "tau",
                "networks": networks,
                **estimate.columns("difference"),
                "p_value": estimate.p,
                "margin": shape.tau_margin,
                "low_90": narrow[0],
                "high_90": narrow[1],
            }
        )
    if not rows:
        return pd.DataFrame()
    found = pd.DataFrame(rows).sort_values("hypothesis", ignore_index=True)
    found["equivalent"] = found[["low_90", "high_90"]].abs().max(axis=1) < found["margin"]
    padded = np.concatenate([found["p_value"].to_numpy(), np.ones(HYPOTHESES - len(found))])
    found["p_holm"] = holm(padded)[: len(found)]
    return found.assign(verdict=[_verdict(row) for _, row in found.iterrows()])


HYPOTHESES = 7


def _verdict(row: pd.Series[Any]) -> str:
    """What follows: a difference beyond doubt, one too small to matter, both, or nothing."""
    differs = row["p_holm"] <= SIGNIFICANT
    side = ("better" if row["difference"] > 0 else "worse") if differs else ""
    small = "within the margin" if row["equivalent"] else ""
    return ", ".join(filter(None, (side, small))) or "open"


def _interval(values: Floats, level: float) -> tuple[float, float]:
    """Student's interval of the mean of independent values."""
    from scipy import stats

    half = float(stats.t.ppf((1 + level) / 2, len(values) - 1)) * float(values.std(ddof=1)) / len(values) ** 0.5
    return float(values.mean()) - half, float(values.mean()) + half


def ranking_difference(surfaces: Mapping[tuple[str, str], Surface], settings: Settings) -> tuple[int, Estimate] | None:
    """How many networks, and by how much nearer the paper's two rules rank them to the ranking at each network's own
    best initialisation and rate than one rate under PyTorch's initialisation does, both with their scalars tuned; None
    without both surfaces.

    One seed chooses each network's own best and gives the accuracies under both recipes, and the other seeds give the
    accuracy at the own best, so that the two rankings share no noise; on average over which seed that is.
    """
    both = _both_initialisations(surfaces)
    if both is None:
        return None
    return len(both[0].cells), _ranked(both, both[0].rules(settings).halves, settings)


def halvings(surfaces: Mapping[tuple[str, str], Surface], settings: Settings) -> pd.DataFrame:
    """One row, of `HALVINGS` other random halvings of the networks: networks, and the difference of H5, on average over
    them with the least and the largest."""
    if (both := _both_initialisations(surfaces)) is None:
        return pd.DataFrame()
    networks, random = len(both[0].cells), np.random.default_rng([settings.analysis.seed, 1])
    found = [_ranked(both, Halves.drawn(networks, 1, random), settings).value for _ in range(HALVINGS)]
    row = {"networks": networks, "halvings": HALVINGS, "mean": np.mean(found), "least": min(found), "most": max(found)}
    return pd.DataFrame([row])


HALVINGS = 100


def _both_initialisations(surfaces: Mapping[tuple[str, str], Surface]) -> tuple[Surface, Surface] | None:
    """The surfaces with BatchNorm under PyTorch's initialisation and under the paper's, of the networks of both; None
    if they are too few for rankings."""
    found = [surfaces.get(("batch", initialisation)) for initialisation in INITIALISATIONS]
    if any(surface is None for surface in found):
        return None
    stock, papers = (surface for surface in found if surface is not None)
    common = np.intersect1d(stock.cells, papers.cells)
    if len(common) < FEWEST or min(stock.accuracy.shape[2], papers.accuracy.shape[2]) < 2:
        return None
    return stock.first(common), papers.first(common)


def _ranked(both: tuple[Surface, Surface], halves: Halves, settings: Settings) -> Estimate:
    stock, papers = both
    networks, seeds = len(stock.cells), min(one.accuracy.shape[2] for one in both)
    factors = design.log_factors(settings, stock.cells.tolist())
    estimates = []
    for seed in range(seeds):
        others = [other for other in range(seeds) if other != seed]
        chosen = np.concatenate([stock.accuracy[..., seed], papers.accuracy[..., seed]], axis=1).argmax(1)
        rest = np.concatenate([one.accuracy[..., others].mean(2) for one in (stock, papers)], axis=1)
        own_best = rest[np.arange(networks), chosen]
        curves = [Curves.of(one.rates, one.accuracy[..., seed]) for one in (stock, papers)]
        one_rate = halves.judged(curves[0].by_scalar(np.zeros(networks)))
        rule = halves.judged(curves[1].by_scalar(factors))
        estimates.append(tau_difference(pair_signs(rule, own_best), pair_signs(one_rate, own_best), halves.weights))
    return Estimate.mean(estimates)


def ladder(frame: pd.DataFrame, surfaces: Mapping[tuple[str, str], Surface], settings: Settings) -> pd.DataFrame:
    """A row for each size, the study's own first: image_size, channels, networks, seeds, what the rule gains in points
    (over_one_rate and over_permuted, with ends) and the median of what networks gain over one rate, all under PyTorch's
    initialisation and of the same networks.

    So few networks gain more or less by how they are cut into two halves. So values are means over many halvings, and
    the ends hold 95 % of the resamples (permutations) of all halvings together.
    """
    shape, dataset, network = design.asked_for(settings), settings.dataset, settings.network
    parts: dict[tuple[int, int], Surface] = {}
    for size in shape.ladder.sizes:
        ours = frame[frame["part"] == design.ladder_part(*size)]
        if len(ours) and len((surface := Surface.of(ours)).cells) >= FEWEST:
            parts[size] = surface
    if not parts:
        return pd.DataFrame()
    if (own := surfaces.get(("batch", "stock"))) is not None:
        cells = design.networks(settings).surface[: shape.ladder.classes]
        narrow = own.first(cells).between(shape.ladder.lowest, shape.ladder.highest)
        if len(narrow.cells) >= FEWEST and len(narrow.rates) > 1:
            parts = {(dataset.image_size, network.channels): narrow, **parts}
    rows = []
    for (image_size, channels), surface in parts.items():
        networks, random = len(surface.cells), np.random.default_rng([settings.analysis.seed, 2])
        factors = design.log_factors(settings, surface.cells.tolist())
        under_rule, permutations = surface.curves.by_scalar(factors), max(1, shape.permutations // HALVINGS)
        gains, overs, of_networks = [], [], []
        for _ in range(HALVINGS):
            rules = Rules(surface.curves, Halves.drawn(networks, max(1, shape.draws // HALVINGS), random))
            gains.append(rules.gain(factors))
            overs.append(over_null(gains[-1].value, rules.gains_if_permuted(factors, permutations, random)))
            of_networks.append(rules.halves.judged(under_rule) - rules.halves.judged(rules.one_rate))
        rows.append(
            {
                "image_size": image_size,
                "channels": channels,
                "networks": networks,
                "seeds": surface.accuracy.shape[2],
                **Estimate.pooled(gains).columns("over_one_rate"),
                "median": np.median(np.mean(of_networks, axis=0)),
                **Estimate.pooled(overs).columns("over_permuted"),
            }
        )
    return pd.DataFrame(rows)
