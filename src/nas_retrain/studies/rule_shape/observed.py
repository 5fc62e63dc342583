"""What the records of a part say of its networks: at every rate of a grid, or in every arm."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from nas_retrain.settings import Settings
from nas_retrain.statistics.means import mean_interval
from nas_retrain.statistics.rankings import FEWEST, Floats, Integers
from nas_retrain.statistics.response_surface import Curves, Halves, Rules
from nas_retrain.studies.rule_shape import design
from nas_retrain.studies.rule_shape.design import CONFIRMATION, PLAIN_CONFIRMATION, SURFACE

SURFACES = {"batch": SURFACE, "none": design.PLAIN_SURFACE}
"""The part that is the surface of each normalisation."""


@dataclass(frozen=True)
class Surface:
    """What a part trained at a grid of rates says of networks that have every rate and seed.

    cells: (networks,). rates: rising. accuracy: percent, (networks, rates, seeds). shares: the gradient of the first
    step as a share of the weights, (networks,), the mean over trainings.
    """

    cells: Integers
    rates: Floats
    accuracy: Floats
    shares: Floats

    @classmethod
    def of(cls, records: pd.DataFrame) -> Surface:
        """From the records of one part and arm."""
        table = records.pivot_table(index="cell", columns=["learning_rate", "seed"], values="test_accuracy", sort=True)
        whole = table.dropna()
        rates, seeds = (whole.columns.unique(level) for level in (0, 1))
        shares = records.groupby("cell")["relative_gradient"].mean()
        return cls(
            whole.index.to_numpy(),
            rates.to_numpy(dtype=float),
            whole.to_numpy().reshape(len(whole), len(rates), len(seeds)),
            shares.loc[whole.index].to_numpy(dtype=float),
        )

    @cached_property
    def curves(self) -> Curves:
        """Each network's accuracy by rate, the mean over seeds."""
        return Curves.of(self.rates, self.accuracy.mean(2))

    def rules(self, settings: Settings) -> Rules:
        """What rules are judged with: halves and resamples are the same for as many networks."""
        random = np.random.default_rng(settings.analysis.seed)
        return Rules(self.curves, Halves.drawn(len(self.cells), design.asked_for(settings).draws, random))

    def first(self, cells: Iterable[int]) -> Surface:
        """Those of some networks."""
        chosen = np.isin(self.cells, list(cells))
        return Surface(self.cells[chosen], self.rates, self.accuracy[chosen], self.shares[chosen])

    def between(self, lowest: float, highest: float) -> Surface:
        """Those at some rates, which may be rounded otherwise than these ends."""
        within = (self.rates >= 0.99 * lowest) & (self.rates <= 1.01 * highest)
        return Surface(self.cells, self.rates[within], self.accuracy[:, within], self.shares)


def surfaces_of(frame: pd.DataFrame) -> dict[tuple[str, str], Surface]:
    """By normalisation and initialisation, those with enough networks."""
    found: dict[tuple[str, str], Surface] = {}
    for normalisation, part in SURFACES.items():
        for initialisation in design.initialisations(plain=part == design.PLAIN_SURFACE):
            ours = frame[(frame["part"] == part) & (frame["arm"] == initialisation)]
            if len(ours) and len((surface := Surface.of(ours)).cells) >= FEWEST:
                found[normalisation, initialisation] = surface
    return found


@dataclass(frozen=True)
class Confirmed:
    """A part of the confirmation, by network and arm: of networks that have every arm and seed.

    accuracy: of test images in percent, the mean over seeds. diverged: how many of a network's trainings diverged.
    collapsed: how many diverged or learned next to nothing, see `highest_collapsed`.
    """

    accuracy: pd.DataFrame
    diverged: pd.DataFrame
    collapsed: pd.DataFrame

    def difference(self, first: str, second: str, initialisations: Sequence[str]) -> Floats:
        """By network, how much more accurate it is in one arm than in another, on average over initialisations."""
        both = [self.accuracy[f"{one}_{first}"] - self.accuracy[f"{one}_{second}"] for one in initialisations]
        found: Floats = np.mean(both, axis=0)
        return found


def highest_collapsed(classes: int) -> float:
    """The accuracy in percent up to which a training is said to have collapsed: half as much again as chance."""
    return 1.5 * 100 / classes


def confirmations_of(frame: pd.DataFrame, classes: int) -> Mapping[str, Confirmed]:
    """By part, those with enough networks. classes: of the data set."""
    found = {}
    for part, ours in frame.groupby("part"):
        if not str(part).startswith(("longer_", CONFIRMATION, PLAIN_CONFIRMATION)):
            continue
        table = ours.pivot_table(index="cell", columns=["arm", "seed"], values="test_accuracy").dropna()
        if len(table) < FEWEST:
            continue
        ours = ours.assign(
            diverged=ours["status"] == "diverged", collapsed=ours["test_accuracy"] <= highest_collapsed(classes)
        ).loc[ours["cell"].isin(table.index)]
        diverged, collapsed = (
            ours.pivot_table(index="cell", columns="arm", values=what, aggfunc="sum")
            for what in ("diverged", "collapsed")
        )
        found[str(part)] = Confirmed(table.T.groupby(level=0).mean().T, diverged, collapsed)
    return found


def with_ends(name: str, value: float, ends: Sequence[float]) -> dict[str, float]:
    """A value and the ends of its interval, as tables have them."""
    return {name: value, f"{name}_low": float(ends[0]), f"{name}_high": float(ends[1])}


def mean_of(name: str, values: Floats) -> dict[str, float]:
    """The mean over networks, with the ends of Student's interval; NaN where there is none."""
    mean = float(values.mean()) if len(values) else float("nan")
    return with_ends(name, mean, mean_interval(values, np.arange(len(values))))
