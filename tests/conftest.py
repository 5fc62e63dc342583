"""Fixtures: settings composed from the real configuration files, and small data sets in the real file formats."""

from __future__ import annotations

import gc
import pickle
import runpy
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from functools import cache
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings as hypothesis_settings

from nas_retrain.commands.command_line import compose
from nas_retrain.settings import Settings
from tests import cuda_stub as stub

hypothesis_settings.register_profile("project", deadline=None, max_examples=60, derandomize=True)
hypothesis_settings.load_profile("project")

MakeSettings = Callable[..., Settings]

ROOT = Path(__file__).parents[1]

HOSTILE = {
    "SBATCH_ACCOUNT": "nobody", "SBATCH_ARRAY_INX": "0-2", "SBATCH_CLUSTERS": "elsewhere", "SBATCH_CONSTRAINT": "none",
    "SBATCH_DEBUG": "1", "SBATCH_DELAY_BOOT": "5", "SBATCH_ERROR": "/nowhere/x", "SBATCH_EXCLUSIVE": "user",
    "SBATCH_EXPORT": "NONE", "SBATCH_GET_USER_ENV": "1", "SBATCH_GPUS": "8", "SBATCH_GRES": "gpu:9",
    "SBATCH_HINT": "nomultithread", "SBATCH_INPUT": "/nowhere/y", "SBATCH_JOB_NAME": "another",
    "SBATCH_MEM_PER_CPU": "1M", "SBATCH_MEM_PER_NODE": "900G", "SBATCH_NO_REQUEUE": "1", "SBATCH_OPEN_MODE": "truncate",
    "SBATCH_OUTPUT": "/nowhere/z", "SBATCH_OVERCOMMIT": "1", "SBATCH_PARTITION": "nowhere", "SBATCH_QOS": "none",
    "SBATCH_RESERVATION": "none", "SBATCH_SIGNAL": "KILL@30", "SBATCH_THREADS_PER_CORE": "1", "SBATCH_TIMELIMIT": "1",
    "SBATCH_USE_MIN_NODES": "1", "SBATCH_WAIT": "1", "SBATCH_WCKEY": "x", "SCANCEL_INTERACTIVE": "1",
    "SCANCEL_NAME": "another", "SCANCEL_PARTITION": "nowhere", "SCANCEL_STATE": "SUSPENDED", "SCANCEL_USER": "nobody",
    "SCONTROL_ALL": "1", "SCONTROL_FUTURE": "1", "SINFO_FORMAT": "%N", "SINFO_PARTITION": "nowhere",
    "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "7", "SLURM_BITSTR_LEN": "1", "SLURM_CLUSTERS": "elsewhere",
    "SLURM_CPUS_PER_TASK": "64", "SLURM_CPU_BIND": "rank", "SLURM_DISTRIBUTION": "plane=3", "SLURM_EXCLUSIVE": "1",
    "SLURM_EXIT_ERROR": "9", "SLURM_EXPORT_ENV": "NONE", "SLURM_HINT": "nomultithread", "SLURM_JOB_ID": "7",
    "SLURM_JOB_NAME": "another", "SLURM_JOB_NODELIST": "nowhere", "SLURM_LABELIO": "1", "SLURM_MEM_PER_CPU": "1",
    "SLURM_NNODES": "5", "SLURM_NTASKS": "5", "SLURM_OVERCOMMIT": "1", "SLURM_PARTITION": "nowhere",
    "SLURM_RESTART_COUNT": "1000", "SLURM_STEP_ID": "3", "SLURM_THREADS": "9", "SLURM_TIMELIMIT": "1",
    "SLURM_TIME_FORMAT": "relative", "SLURM_UMASK": "0777", "SLURM_WORKING_CLUSTER": "elsewhere:1.2.3.4:1:1",
    "SLURM_WORKING_DIR": "/nowhere", "SQUEUE_ACCOUNT": "nobody", "SQUEUE_FORMAT": "%i", "SQUEUE_FORMAT2": "jobid",
    "SQUEUE_LICENSES": "none", "SQUEUE_NAMES": "another", "SQUEUE_PARTITION": "nowhere", "SQUEUE_QOS": "none",
    "SQUEUE_SORT": "-i", "SQUEUE_STATES": "COMPLETED", "SQUEUE_USERS": "nobody", "SRUN_CPUS_PER_TASK": "64",
    "SRUN_EXPORT_ENV": "NONE", "_SLURM_SPANK_OPTION_x_y": "z",
}  # fmt: skip
"""Variables that SLURM's commands and jobs read, with values that change what they do."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with long tests come first, so that no worker is left alone with one at the end; then those of many."""
    tests, long = Counter(item.path for item in items), Counter[Path]()
    for item in items:
        long[item.path] += item.get_closest_marker("slow") is not None
    items.sort(key=lambda item: (-long[item.path], -tests[item.path], item.path))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was not tested, one line for each reason."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2] for report in skipped if isinstance(report.longrepr, tuple))
    for reason, count in reasons.items():
        told = f"{count} tests SKIPPED: {reason.removeprefix('Skipped: ')}"
        terminalreporter.write_line(told, yellow=True, bold=True)


@pytest.fixture(scope="session")
def cuda_stub(request: pytest.FixtureRequest) -> Path:
    """The library that stands in for CUDA's runtime where there is no GPU (see tests/cuda_stub/README.md)."""
    if missing := stub.missing():
        pytest.skip(missing)
    return stub.build(request.config.cache.mkdir("cuda_stub"))


@pytest.fixture
def make_settings(tmp_path: Path) -> MakeSettings:
    """Settings of a tiny run in `tmp_path`; further overrides come last and win."""

    def make(*overrides: str, config: str = "config") -> Settings:
        folders = {"results_dir": tmp_path / "results", "data_dir": tmp_path / "data"}
        if any("/" in one or one.startswith(tuple(folders)) for one in overrides):  # files may have changed since
            given = [f"{key}={folder}" for key, folder in folders.items()]
            return compose(*TINY, *given, *overrides, config=config)
        return composed_once(*overrides, config=config).model_copy(update=folders)

    return make


TINY = (
    *("dataset=digits", "profile=dry", "launcher=local", "launcher.together=1", "launcher.device=cpu"),
    *("network.channels=4", "training.epochs=2"),
    "dataset.verify=false",  # tests make their files themselves
)


@cache
def composed_once(*overrides: str, config: str = "config") -> Settings:
    """The settings of a tiny run, without folders of its own: composing takes longer than many a test."""
    return compose(*TINY, *overrides, config=config)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute as a worker does, on one thread and reproducibly; afterwards as before."""
    import torch

    from nas_retrain.execution.train import prepare_process

    threads = torch.get_num_threads()
    prepare_process(torch.device("cpu"))
    yield
    torch.use_deterministic_algorithms(mode=False)
    torch.set_num_threads(threads)


def run_script(name: str, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """What a program of scripts/ says and how it ends. It runs in this process, which has loaded all that it imports;
    where that, its streams or its signals are what is asked, start it instead."""
    program = str(ROOT / "scripts" / f"{name}.py")
    output, errors, status, garbage = StringIO(), StringIO(), 0, gc.get_threshold()
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(output),
        redirect_stderr(errors),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("default")
        patch.setattr(sys, "argv", [program, *arguments])
        patch.chdir(cwd)
        try:
            runpy.run_path(program, run_name="__main__")
        except SystemExit as ended:
            status = int(ended.code or 0)
        finally:
            gc.set_threshold(*garbage)
    return subprocess.CompletedProcess([program, *arguments], status, output.getvalue(), errors.getvalue())


def processes_with(variable: str, value: str) -> list[int]:
    """Living processes that have this environment variable: a process that was started with it, and its children."""
    wanted = f"{variable}={value}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if wanted in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
    return found


def write_cifar10(data_dir: Path, images_per_batch: int = 6) -> None:
    """CIFAR-10's six batches as Python 2 wrote them: text keys, one row of 3072 bytes an image."""
    random = np.random.default_rng(10)
    for number, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        batch = {
            "batch_label": f"batch {number}",
            "labels": [int(label) for label in random.integers(0, 10, images_per_batch)],
            "data": random.integers(0, 256, (images_per_batch, 3072), dtype=np.uint8),
            "filenames": [f"{n}.png" for n in range(images_per_batch)],
        }
        _dump(data_dir / "cifar-10-batches-py" / name, batch)


def write_cifar100(data_dir: Path, train: int = 30, test: int = 6) -> None:
    """CIFAR-100's two files, with coarse labels beside the fine ones."""
    random = np.random.default_rng(100)
    for name, number in (("train", train), ("test", test)):
        batch = {
            "filenames": [f"{n}.png" for n in range(number)],
            "fine_labels": [int(label) for label in random.integers(0, 100, number)],
            "coarse_labels": [int(label) for label in random.integers(0, 20, number)],
            "data": random.integers(0, 256, (number, 3072), dtype=np.uint8),
        }
        _dump(data_dir / "cifar-100-python" / name, batch)


def write_imagenet16(data_dir: Path, per_batch: int = 40) -> tuple[int, int]:
    """Downsampled ImageNet's files with labels 1 to 1000; returns how many images are of classes 1 to 120."""
    random = np.random.default_rng(16)
    kept = {"train": 0, "val": 0}
    for name in [*(f"train_data_batch_{n}" for n in range(1, 11)), "val_data"]:
        labels = [int(label) for label in random.integers(1, 241, per_batch)]
        kept[name.split("_")[0]] += sum(label <= 120 for label in labels)
        data = random.integers(0, 256, (per_batch, 768), dtype=np.uint8)
        batch = {"data": data, "labels": labels, "mean": data.mean(0)}
        _dump(data_dir / "ImageNet16" / name, batch, protocol=4)
    return kept["train"], kept["val"]


def _dump(path: Path, batch: object, protocol: int = 2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(batch, protocol=protocol))
