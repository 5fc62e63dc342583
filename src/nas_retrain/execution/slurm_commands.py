"""SLURM's commands, run in an environment that tells them where the controller is and nothing else.

These commands read options from the environment too: where SQUEUE_PARTITION is set, squeue hides the jobs of other
partitions, and with SBATCH_EXPORT=NONE a task starts without its environment. Such variables may be a user's, a site's,
or those of a job that somebody submits from; they would outrank the settings, so none of them reaches a command. What a
command prints is not trusted to be clean either: banners and lines of another shape are passed over, whatever their
bytes.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from nas_retrain.errors import NasRetrainError

ANSWER_SECONDS = 60
"""How long a command may take."""

LATER = "Run make retrain again later: what SLURM has accepted is known and is not submitted twice."

KEPT = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT")
"""Variables that say where the configuration or the controller is, and who asks."""

_READ_BY_SLURM = re.compile(r"_?(SLURM|SBATCH|SRUN|SALLOC|SQUEUE|SCANCEL|SINFO|SCONTROL|SPANK)[A-Z]*_.*", re.DOTALL)


def clean(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without the variables that SLURM's commands take for options or for the job they run in."""
    return {name: value for name, value in environment.items() if name in KEPT or not _READ_BY_SLURM.fullmatch(name)}


def ask(*command: str, seconds: float | None = None) -> str:
    """What a SLURM command prints; bytes that are no UTF-8 are replaced.

    Raises NasRetrainError if the command is absent or fails, and NoAnswerError if it takes longer than `seconds`, or
    ANSWER_SECONDS if not given.
    """
    limit = ANSWER_SECONDS if seconds is None else seconds
    try:
        done = subprocess.run(  # noqa: S603
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=limit, check=True, env=clean(os.environ)
        )
    except FileNotFoundError as error:
        raise NasRetrainError(
            f"{command[0]} is not on this machine. Work on a login node of the cluster, or here with LAUNCHER=local."
        ) from error
    except OSError as error:
        raise NasRetrainError(f"{command[0]} cannot be run here: {error.strerror}.") from error
    except subprocess.TimeoutExpired as error:
        raise NoAnswerError(f"SLURM's {command[0]} did not answer within {limit:g} seconds.") from error
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").split("\n")
        reason = "; ".join(filter(None, map(str.strip, lines))) or f"it ended with status {error.returncode}"
        raise NasRetrainError(f"SLURM's {command[0]} failed: {reason}.") from error
    return done.stdout.decode(errors="replace")


class NoAnswerError(NasRetrainError):
    """A command took too long: what it was to do may have been done or not."""


@dataclass(frozen=True)
class Listed:
    """A line of squeue: a task of a job (index 0 where the job is no array), its state, and the job's name."""

    job: str
    index: int
    state: str
    name: str


def squeue(names: Collection[str], seconds: float | None = None) -> list[Listed]:
    """The tasks of this user's jobs with these names, also of jobs that ended lately. Raises NasRetrainError if squeue
    does not say."""
    printed = ask(
        *("squeue", f"--user={os.getuid()}", f"--name={','.join(names)}", "--states=all", "--array", "--noheader"),
        "--all",  # else it hides the jobs of hidden partitions
        "--format=%F|%K|%T|%j",
        seconds=seconds,
    )
    return listed(printed, names)


def listed(printed: str, names: Collection[str]) -> list[Listed]:
    """The lines of squeue's answer that have the shape asked for and one of these names; all others say nothing."""
    # Not by splitlines: a job's name may hold any of the other characters that it takes for the end of a line.
    lines = (re.fullmatch(r"([0-9]{1,18})\|([0-9]{1,9}|N/A)\|([A-Z_]+)\|([^|]+)", line) for line in printed.split("\n"))
    return [
        Listed(line[1], 0 if line[2] == "N/A" else int(line[2]), line[3], line[4])
        for line in lines
        if line is not None and line[4] in names
    ]


def sbatch(script: str, name: str, seconds: float | None = None) -> str:
    """Submit a script whose job has the unique `name`, and return the job's number.

    A controller may accept a job though sbatch fails or never answers, so that squeue has the last word. Raises
    NasRetrainError if the job was not accepted, or if nobody says whether it was.
    """
    try:
        printed = ask("sbatch", "--parsable", script, seconds=seconds)
    except NasRetrainError as error:
        refusal = error
    else:
        numbers = [found[1] for line in printed.split("\n") if (found := re.fullmatch(r"([0-9]+)(;.*)?\s*", line))]
        if numbers:
            return numbers[-1]
        refusal = NasRetrainError(f"sbatch printed no job number, but {printed.strip()!r}.")
    try:
        accepted = squeue([name], seconds)
    except NasRetrainError as error:
        raise NasRetrainError(
            f"{refusal} Whether SLURM accepted the job all the same is unknown: {error} {LATER}"
        ) from refusal
    if accepted:
        return accepted[0].job
    if isinstance(refusal, NoAnswerError):
        raise NasRetrainError(f"{refusal} {LATER}") from refusal
    raise NasRetrainError(
        f"sbatch refused: {refusal} Check partition, account, qos and limits in the launcher's settings (variables "
        "such as SBATCH_ACCOUNT are not heeded); run make retrain again to submit the rest."
    ) from refusal


def sbatch_command(name: str) -> list[str]:
    """A command that submits the script named after it as `sbatch` does, for a caller that runs commands itself."""
    return [sys.executable, "-P", "-m", "nas_retrain.execution.slurm_commands", name, str(ANSWER_SECONDS)]


def _main(name: str, seconds: str, script: str) -> int:
    try:
        print(f"Submitted batch job {sbatch(script, name, float(seconds))}")  # noqa: T201 - as sbatch says it
    except NasRetrainError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
