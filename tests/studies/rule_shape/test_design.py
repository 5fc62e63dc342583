"""The trainings of the study's stages, and the rates that later ones take from the surface."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from nas_retrain.commands.command_line import compose
from nas_retrain.errors import NasRetrainError
from nas_retrain.execution.cost import estimate
from nas_retrain.plan.plan import groups, make_plan
from nas_retrain.purpose import Trial
from nas_retrain.settings import Settings
from nas_retrain.statistics.response_surface import Curves
from nas_retrain.studies.rule_shape import design
from nas_retrain.studies.rule_shape.design import Design
from nas_retrain.trainings.store import StoredRuns
from nas_retrain.trainings.training import Training
from tests.conftest import MakeSettings
from tests.studies.rule_shape.simulated import miniature, recorded

NOTHING = StoredRuns.of([])


def part_of(training: Training) -> str:
    assert isinstance(training.purpose, Trial)
    return training.purpose.part


@pytest.fixture
def small(make_settings: MakeSettings) -> Settings:
    return miniature(make_settings)


def test_the_study_has_the_trainings_that_its_settings_ask_for() -> None:
    settings = compose("profile=rule_shape", "dataset=fashion_mnist", "launcher=local")
    made = make_plan(settings, NOTHING)
    trials = [training for training in made.everything if isinstance(training.purpose, Trial)]
    assert Counter(map(part_of, trials)) == {
        "surface": 200 * 10 * 2 * 2,
        "plain_surface": 100 * 17 * 2 * 2,
        "base_rate_1": 30 * 13 * 2,
        "base_rate_2": 30 * 13 * 2,
        "base_rate_8": 30 * 13 * 2,
        "confirmation": 400 * 4 * 6,
        "longer_0.0005": 100 * 4 * 2,
        "longer_0.02": 100 * 4 * 2,
        "plain_confirmation": 400 * 4 * 3,
        "ladder_14_8": 40 * 8,
        "ladder_14_16": 40 * 8,
        "ladder_28_16": 40 * 8,
    }
    assert len({training.key for training in made.everything}) == len(made.everything)
    assert len({training.slot for training in made.everything}) == len(made.everything)
    assert {part_of(training) for training in made.search} == {"surface", "plain_surface"}
    networks = design.networks(settings)
    assert not set(networks.surface) & set(networks.confirmation)
    of_surface = {training.cell for training in trials if part_of(training) == "surface"}
    assert of_surface == set(networks.surface)
    assert {training.cell for training in trials if part_of(training) == "longer_0.02"} <= set(networks.confirmation)
    assert all(len({training.setup for training in group}) == 1 for group in groups(made.everything, 12))


def test_without_the_study_nothing_is_asked_for(make_settings: MakeSettings) -> None:
    made = make_plan(make_settings("cells=[0]"), NOTHING)
    assert not [training for training in made.everything if isinstance(training.purpose, Trial)]


def test_a_stage_alone_trains_only_what_it_needs(small: Settings) -> None:
    def parts(*stages: str) -> set[str]:
        assert small.rule_shape is not None
        only = small.model_copy(update={"rule_shape": small.rule_shape.model_copy(update={"stages": stages})})
        return {part_of(training) for training in Design(only).searches() + Design(only).trainings()}

    assert parts("base_rate") == {"base_rate_1", "base_rate_2"}
    assert parts("longer") == {"surface", "longer_0.0005", "longer_0.05"}
    assert parts("plain") == {"plain_surface", "plain_confirmation"}


def test_what_a_training_has_otherwise_decides_its_hash(small: Settings) -> None:
    alike: dict[tuple[object, ...], set[str]] = {}
    for training in Design(small).searches() + Design(small).trainings():
        made_with = training.cell, training.learning_rate, training.initialisation, training.epochs, training.setup
        alike.setdefault((*made_with, training.validated), set()).add(training.config_hash)
    assert all(len(hashes) == 1 for hashes in alike.values())
    by_hash = Counter(next(iter(hashes)) for hashes in alike.values())
    by_what = {(*key[1:], design.has_constants(small, int(str(key[0])))) for key in alike}
    assert len(by_hash) == len(by_what)


def test_rates_of_the_confirmation_wait_for_the_whole_surface(small: Settings) -> None:
    made = make_plan(small, NOTHING)
    assert made.searching
    waiting = [training for training in made.asked if not training.tries_rate and isinstance(training.purpose, Trial)]
    assert {training.learning_rate for training in waiting} == {design.WAITING}
    records = [recorded(training, -abs(np.log2((training.learning_rate or 1) / 0.1))) for training in made.search]
    assert make_plan(small, StoredRuns.of(records[:-1])).searching
    done = make_plan(small, StoredRuns.of(records))
    assert not done.searching
    rates: dict[str, set[float]] = {}
    for training in done.asked:
        if isinstance(training.purpose, Trial) and not training.tries_rate:
            assert training.learning_rate is not None
            rates.setdefault(training.recipe, set()).add(training.learning_rate)
    assert all(len(of_arm) == 1 for name, of_arm in rates.items() if name.endswith(design.ONE_RATE))
    assert rates["confirmation.stock_one_rate"] == {0.1}
    assert len(rates["confirmation.stock_rule"]) > 1
    only = {done.asked[-1].network_class}
    part = make_plan(small, StoredRuns.of(records), only)
    assert {training.key for training in part.everything} == {
        training.key for training in done.everything if training.network_class in only
    }


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("end", ["lowest", "highest"])
def test_rates_at_an_end_of_the_grid_are_not_confirmed(*, plain: bool, end: str) -> None:
    """The error names a longer grid, which has all rates of the old one, and with which the same is no error."""
    classes = "surface", "confirmation", "longer", "ladder", "plain"
    small = [f"rule_shape.{part}.classes=24" for part in classes] + ["rule_shape.plain.confirmation_classes=24"]
    arguments = ["profile=rule_shape", "dataset=fashion_mnist", "launcher=local", *small]
    settings = compose(*arguments)
    assert settings.rule_shape is not None
    grid = settings.rule_shape.plain if plain else settings.rule_shape.surface
    best = np.log2(grid.lowest if end == "lowest" else grid.highest) + (0.2 if end == "lowest" else -0.2)
    part = design.PLAIN_SURFACE if plain else design.SURFACE

    def records(settings: Settings) -> StoredRuns:
        def accuracy(training: Training) -> float:
            assert training.learning_rate is not None
            middle = best if part_of(training) == part else np.log2(0.03)
            return -float((np.log2(training.learning_rate) - middle) ** 2)

        return StoredRuns.of([recorded(one, accuracy(one)) for one in make_plan(settings, NOTHING).search])

    with pytest.raises(NasRetrainError, match=r"_one_rate on the .* Make the grid longer by two rates") as error:
        make_plan(settings, records(settings))
    remedy = str(error.value).rpartition("two rates: ")[2].removesuffix(".").split()
    longer = compose(*arguments, *remedy, "rule_shape.ends.outside=1")
    assert longer.rule_shape is not None
    new = longer.rule_shape.plain if plain else longer.rule_shape.surface
    assert new.grid == ((*new.grid[:2], *grid.grid) if end == "lowest" else (*grid.grid, *new.grid[-2:]))
    assert not make_plan(longer, records(longer)).searching
    # The share of rates beyond the ends is enough by itself: those of the rule lie on both sides of its scalar.
    assert not make_plan(compose(*arguments, "rule_shape.ends={octaves: 0, outside: 1}"), records(settings)).searching
    with pytest.raises(NasRetrainError, match=r"_rule on the .* Make the grid longer"):
        make_plan(compose(*arguments, "rule_shape.ends={octaves: 0, outside: 0.01}"), records(settings))


def test_the_end_that_is_made_longer_is_the_one_beyond_which_rates_lie() -> None:
    grid = [0.1, 0.2, 0.4, 0.8]
    low, high = ([0.05, 0.06, 0.3, 0.9], [0.05, 0.3, 0.9, 0.9])
    for rates, nears_lowest in ((low, True), (high, False)):
        for scalar in (0.15, 0.6):  # whichever end is nearer
            place = design.Place.of("stock", design.RULE, float(np.log2(scalar)), grid, rates)
            assert place.nears_lowest == nears_lowest
            assert place.outside == 0.75
    inside = [design.Place.of("stock", design.RULE, float(np.log2(one)), grid, [0.1, 0.8]) for one in (0.15, 0.6)]
    assert [(place.nears_lowest, place.outside) for place in inside] == [(True, 0.0), (False, 0.0)]


def test_the_scalars_are_where_accuracy_is_best() -> None:
    rates = 0.00625 * 2.0 ** np.arange(9)
    factors = np.array([-3.0, -2.0, -1.0, 0.0])
    best = np.log2(0.05) + factors - factors.mean()  # each network's own best rate is as the rule says
    curves = Curves.of(rates, 70 - (np.log2(rates) - best[:, None]) ** 2)
    found = design.scalars(curves, factors)
    assert found.rates(design.RULE, factors) == pytest.approx(2.0**best, rel=0.03)
    assert found.rates(design.ONE_RATE, factors) == pytest.approx([0.05] * 4, rel=0.03)
    other = np.array([-5.0, 1.0])  # factors of other networks, relative to those of the surface
    assert found.rates(design.RULE, other) == pytest.approx(0.05 * 2.0 ** (other + 1.5), rel=0.03)


def test_permuted_factors_are_the_same_ones() -> None:
    values = np.arange(50.0)
    shuffled = design.permuted(values, 0)
    assert sorted(shuffled) == list(values)
    assert (shuffled != values).sum() > 40
    assert (design.permuted(values, 0) == shuffled).all()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("rule_shape.exponents=[0,2]", "exponents must hold 0"),
        ("rule_shape.surface.seeds=[1]", "surface.seeds"),
        ("rule_shape.confirmation.seeds=[11]", "must be none of the surfaces' seeds"),
        ("rule_shape.longer.classes=1000", "there are 400 networks"),
        ("rule_shape.validation_images=60000", "leaves nothing"),
    ],
)
def test_settings_that_do_not_fit_are_refused(override: str, said: str) -> None:
    with pytest.raises(NasRetrainError, match=said):
        compose("profile=rule_shape", "dataset=fashion_mnist", "launcher=local", override)


def test_the_forecast_knows_that_larger_images_cost_more(small: Settings) -> None:
    design_of = Design(small)
    ladder, surface = design_of.ladder(4, 2), design_of.surface(plain=False)
    records = [replace(recorded(training, 0.0), images_per_second=100.0) for training in surface]
    records += [replace(recorded(training, 0.0), images_per_second=20.0) for training in ladder]
    cost = estimate([*surface, *ladder], StoredRuns.of(records), small, None)
    assert cost is not None
    assert np.mean(cost.seconds[len(surface) :]) > 1.5 * np.mean(cost.seconds[: len(surface)])


def test_a_setup_changes_what_it_names(small: Settings) -> None:
    setup = Design(small).ladder(4, 3)[0].setup
    changed = small.under(replace(setup, weight_decay=0.25, normalisation="none"))
    assert (changed.dataset.image_size, changed.network.channels) == (4, 3)
    assert (changed.training.weight_decay, changed.network.normalisation) == (0.25, "none")
    assert small.under(Design(small).searches()[0].setup) == small
