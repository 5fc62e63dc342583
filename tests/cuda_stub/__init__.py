"""A CUDA runtime without a GPU (see README.md here): building it, and running programs on it."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
COUNTERS = ("launches", "replays", "graphs", "syncs", "h2d", "d2h", "d2d", "memsets")


def missing() -> str:
    """What is missing to build the stub, as a sentence; empty if nothing is."""
    if compiler() is None:
        return "The CUDA stub was not built: there is no C compiler (cc)."
    if headers() is None:
        return "The CUDA stub was not built: there are no CUDA headers (they come with triton)."
    return ""


def compiler() -> str | None:
    return shutil.which(os.environ.get("CC", "cc"))


def headers() -> Path | None:
    found = importlib.util.find_spec("triton")
    folders = (found.submodule_search_locations or []) if found else []
    return next((Path(folder) / "backends/nvidia/include" for folder in folders), None)


def build(folder: Path) -> Path:
    """The stub's library, in a folder of `folder`, compiled unless the same source was before."""
    source = HERE / "runtime.c"
    library = folder / hashlib.blake2b(source.read_bytes(), digest_size=8).hexdigest() / "libcuda.so.1"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        made = library.with_suffix(f".{os.getpid()}")
        options = ["-O1", "-shared", "-fPIC", "-Wall", "-Werror", "-pthread", f"-I{headers()}"]
        subprocess.run([compiler() or "cc", *options, source, "-o", made], check=True)
        made.replace(library)  # whole, whoever else builds it at the same time
    return library


def environment(library: Path, *, zeros: bool = False, **faults: object) -> dict[str, str]:
    """This process's environment with the stub in place of a GPU. zeros: new tensors hold zeros, since torch keeps no
    memory for them. faults: of README.md, without their prefix and in small letters, such as devices=2."""
    kept = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    kept |= {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if zeros else {}
    return kept | {
        "LD_PRELOAD": str(library),
        "LD_LIBRARY_PATH": _first(library.parent, "LD_LIBRARY_PATH"),
        "CUDA_STUB": str(library),
        "PYTHONPATH": _first(HERE / "site", "PYTHONPATH"),
        "PYTORCH_NVML_BASED_CUDA_CHECK": "0",
        "OMP_NUM_THREADS": "1",
        **{f"CUDA_STUB_{name.upper()}": str(value) for name, value in faults.items()},
    }


def _first(folder: Path, variable: str) -> str:
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get(variable)])])


def run(
    library: Path,
    *arguments: object,
    timeout: float = 100,
    zeros: bool = False,
    folder: Path = HERE.parents[1],
    **faults: object,
) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments on the stub, in a folder."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=environment(library, zeros=zeros, **faults),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def counts() -> dict[str, int]:
    """In a program on the stub: the counters so far."""
    library = ctypes.CDLL(os.environ["CUDA_STUB"])
    return {name: ctypes.c_long.in_dll(library, f"stub_{name}").value for name in COUNTERS}


def of_devices(what: str) -> list[int]:
    """In a program on the stub: bytes "used" on each device, or how often it was "touched"."""
    return list((ctypes.c_long * 8).in_dll(ctypes.CDLL(os.environ["CUDA_STUB"]), f"stub_{what}"))
