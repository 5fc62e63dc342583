"""make verify through its script: a miniature of each space, resumed, against a recomputation from its records."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nas_retrain.store import read_runs
from tests.test_pipeline import run

MINI = ["cells=sample:3", "base_rate.points=4", "base_rate.seeds=[1,2]", "base_rate.epochs=1", "training.batch_size=32"]


@pytest.mark.parametrize("bench", ["mlp", "cnn", "201"])
def test_a_verification_runs_resumes_and_is_what_the_records_say(tmp_path: Path, bench: str) -> None:
    overrides = [f"bench='{bench}'", "recipe=[grid_he,grid_target]", "network.channels=4", *MINI]
    overrides.append("launcher.together=1")  # to the last bit only then: what is left makes other groups
    first = run("verify", tmp_path, *overrides)
    assert first.returncode == 0, first.stderr
    records = read_runs(tmp_path).records
    assert len(records) == 4 * 2 * 4 * 2  # networks with the base network, initialisations, rates, seeds
    losses: dict[tuple[str, int], dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        assert record.learning_rate is not None
        loss = np.inf if record.train_loss is None else record.train_loss
        losses[record.recipe, record.cell][record.learning_rate].append(loss)
    rates = pd.read_csv(tmp_path / "tables" / "rates.csv")
    assert len(rates) == 6  # the base network is what the predictions start from
    for _, row in rates.iterrows():
        means = {rate: np.mean(found) for rate, found in losses[f"grid_{row['initialisation']}", row["cell"]].items()}
        assert row["searched_rate"] == pytest.approx(min(means, key=lambda rate: (means[rate], -rate)), rel=1e-5)
    assert (tmp_path / "figures" / "predicted_rates.png").stat().st_size > 10_000
    assert (tmp_path / "tables" / "coordinates.csv").exists() == (bench != "201")
    report = (tmp_path / "report.md").read_text()

    torn = sorted((tmp_path / "runs").glob("*.jsonl"))[0]
    torn.write_bytes(torn.read_bytes()[:-300])  # killed in the middle of a line: the last trainings are gone
    again = run("verify", tmp_path, *overrides)
    assert again.returncode == 0, again.stderr
    kept = {record.key: record.train_loss for record in records}
    assert {record.key: record.train_loss for record in read_runs(tmp_path).records} == kept
    assert (tmp_path / "report.md").read_text() == report
