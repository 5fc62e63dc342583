"""The commands of studies that look at tables of accuracies, and only if they are asked to: one line each."""

from __future__ import annotations

from functools import partial

from nas_retrain.commands.retrain import conclude
from nas_retrain.plan.study import Records, studies
from nas_retrain.settings import Settings
from nas_retrain.trainings.store import StoredRuns


def _ask(name: str, settings: Settings) -> None:
    """Have a study look at the tables that the settings name; raises NasRetrainError for one that cannot be used."""
    conclude(studies()[name], Records((), StoredRuns.of([])), settings)


algorithms = partial(_ask, "search_algorithms")
own_rates = partial(_ask, "rate_table")
proxies = partial(_ask, "proxies")
