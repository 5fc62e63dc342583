"""SLURM's commands as one script, for tests: they note how they are called, and heed options and environment as real
ones do. Run as: fake_slurm.py <command> <folder that holds their state> <the command's arguments>.

In the folder, jobs.json is the queue, calls.jsonl notes every call, and a file named after a command says how it
misbehaves: "hang", "fail", or for sbatch and scancel "hang after" and "fail after" having done as they were told. The
bytes of the file noise are printed around squeue's answer.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import stat
import sys
import time
from pathlib import Path
from typing import Any

COMMANDS = ("sbatch", "squeue", "scancel", "scontrol", "sinfo", "srun")


def install(folder: Path) -> None:
    """Make an executable of each command in a folder, to be put on the PATH."""
    folder.mkdir()
    for command in COMMANDS:
        script = folder / command
        script.write_text(f'#!/bin/sh\nexec {sys.executable} -IS {__file__} {command} {folder}/state "$@"\n')
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
    (folder / "state").mkdir()


def calls(folder: Path, command: str) -> list[dict[str, Any]]:
    """The calls of a command so far: its arguments, and the variables of its environment that have to do with SLURM."""
    lines = (folder / "state" / "calls.jsonl").read_text().splitlines()
    return [call for line in lines if (call := json.loads(line))["command"] == command]


def jobs(folder: Path) -> list[dict[str, Any]]:
    """The queue: number, name, options and script of each job."""
    path = folder / "state" / "jobs.json"
    return json.loads(path.read_text()) if path.exists() else []


def _main(command: str, state: Path, *arguments: str) -> None:
    heeded = {
        name: value
        for name, value in os.environ.items()
        if re.match("_?S(LURM|BATCH|RUN|QUEUE|CANCEL|INFO|CONTROL)_", name)
    }
    with (state / "calls.jsonl").open("a") as file:
        file.write(json.dumps({"command": command, "arguments": arguments, "environment": heeded}) + "\n")
    how = (state / command).read_text() if (state / command).exists() else ""
    known = jobs(state.parent)
    answer = ""
    if how in ("", "hang after", "fail after", "banner"):
        answer = {"sbatch": _sbatch, "squeue": _squeue, "scancel": _scancel}.get(command, _other)(
            arguments, heeded, known
        )
        (state / "jobs.json").write_text(json.dumps(known))
    if "hang" in how:
        time.sleep(30)
    if "fail" in how:
        sys.exit(f"{command}: error: Socket timed out on send/recv operation")
    noise = (state / "noise").read_bytes() if command == "squeue" and (state / "noise").exists() else b""
    banner = b"Welcome! In maintenance: job 99999\n" if how == "banner" else b""
    sys.stdout.buffer.write(banner + noise + answer.encode() + noise)


def _sbatch(arguments: tuple[str, ...], heeded: dict[str, str], known: list[dict[str, Any]]) -> str:
    script = Path(arguments[-1]).read_text()
    lines = [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH --")]
    options = dict(shlex.split(line)[0].partition("=")[::2] for line in lines)
    # What the environment says outranks the script's own options.
    options |= {name.removeprefix("SBATCH_"): value for name, value in heeded.items() if name.startswith("SBATCH_")}
    if "--test-only" in arguments:
        wanted = options.get("partition", "")
        return sys.exit("sbatch: error: invalid partition specified: " + wanted) if wanted == "nowhere" else ""
    number = 100 + len(known)
    known.append({"job": number, "options": options, "script": script, "environment": heeded})
    return f"{number}\n" if "--parsable" in arguments else f"Submitted batch job {number}\n"


def _squeue(arguments: tuple[str, ...], heeded: dict[str, str], known: list[dict[str, Any]]) -> str:
    if "SLURM_CLUSTERS" in heeded:
        return f"CLUSTER: {heeded['SLURM_CLUSTERS']}\n"
    asked = {name.removeprefix("SQUEUE_").lower().rstrip("s"): value for name, value in heeded.items()}
    asked |= {name.lstrip("-").rstrip("s"): value for name, _, value in (one.partition("=") for one in arguments)}
    lines = []
    for job in known:
        options = job["options"]
        hidden = options.get("partition") == "hidden" and "all" not in asked
        others = [key for key in ("partition", "qo", "account") if key in asked and asked[key] != options.get(key)]
        if hidden or others or options["job-name"] not in asked.get("name", options["job-name"]).split(","):
            continue
        if asked["user"] != str(os.getuid()) or asked.get("state") not in ("all", "PENDING"):
            continue
        array = re.match(r"0-(\d+)", options.get("array", ""))
        for index in range(int(array[1]) + 1) if array else ["N/A"]:
            values = {"%F": job["job"], "%K": index, "%T": "PENDING", "%j": options["job-name"], "%i": job["job"]}
            lines.append(re.sub("%[FKTji]", lambda found, values=values: str(values[found[0]]), asked["format"]))
    return "".join(f"{line}\n" for line in lines)


def _scancel(arguments: tuple[str, ...], heeded: dict[str, str], known: list[dict[str, Any]]) -> str:
    if not any(name.startswith("SCANCEL_") for name in heeded):
        known[:] = [job for job in known if str(job["job"]) not in arguments]
    return ""


def _other(_arguments: tuple[str, ...], heeded: dict[str, str], _known: list[dict[str, Any]]) -> str:
    return "" if "SLURM_CLUSTERS" in heeded else "MaxArraySize            = 3\n"


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
