"""make verify through its script: a miniature of each space, resumed, against a recomputation from its records."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nas_retrain.trainings.store import RunRecord, read_runs
from tests.commands.test_retrain import run

# Alone, since a training ends with the same bits only in the same group, and what is left makes other groups.
MINI = ["cells=sample:3", "base_rate.points=4", "base_rate.seeds=[1,2]", "base_rate.epochs=1", "training.batch_size=32",
    "launcher.together=1"]  # fmt: skip


def verify(results: Path, bench: str) -> list[RunRecord]:
    """Run a miniature; every network's rate is what its records say. Returns the records."""
    overrides = [f"bench='{bench}'", "recipe=[grid_he,grid_target]", "network.channels=4", *MINI]
    finished = run("verify", results, *overrides)
    assert finished.returncode == 0, finished.stderr
    assert "Predicted against searched rates" in finished.stderr
    assert ("The coordinate check" in finished.stderr) == (bench == "mlp")
    records = read_runs(results).records
    assert len(records) == 4 * 2 * 4 * 2  # networks with the base network, initialisations, rates, seeds
    losses: dict[tuple[str, int], dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        assert record.learning_rate is not None
        loss = np.inf if record.train_loss is None else record.train_loss
        losses[record.recipe, record.cell][record.learning_rate].append(loss)
    rates = pd.read_csv(results / "tables" / "rates.csv")
    assert len(rates) == 6  # the base network is what the predictions start from
    for _, row in rates.iterrows():
        means = {rate: np.mean(found) for rate, found in losses[f"grid_{row['initialisation']}", row["cell"]].items()}
        assert row["searched_rate"] == pytest.approx(min(means, key=lambda rate: (means[rate], -rate)), rel=1e-5)
    assert (results / "figures" / "predicted_rates.png").stat().st_size > 10_000
    return records


@pytest.mark.slow
def test_a_verification_of_201_is_what_its_records_say(tmp_path: Path) -> None:
    verify(tmp_path, "201")
    assert not (tmp_path / "tables" / "coordinates.csv").exists()  # vertices there are behind BatchNorm


@pytest.mark.slow
def test_a_verification_of_mlps_is_what_its_records_say_and_resumes(tmp_path: Path) -> None:
    records, report = verify(tmp_path, "mlp"), (tmp_path / "report.md").read_text()
    assert (tmp_path / "tables" / "coordinates.csv").exists()
    torn = sorted((tmp_path / "runs").glob("*.jsonl"))[0]
    torn.write_bytes(torn.read_bytes()[:-300])  # killed in the middle of a line: the last training is gone
    again = verify(tmp_path, "mlp")
    assert {record.key: record.train_loss for record in again} == {record.key: record.train_loss for record in records}
    assert (tmp_path / "report.md").read_text() == report
