"""The command line; see the package."""

from __future__ import annotations

import argparse
import secrets
import sys

from tests.fuzz.harness import found_targets, fuzz, run_case


def main() -> None:
    """Fuzz, print what was tried and every fault; exits with 1 if there is one."""
    targets = found_targets()
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="for all targets together")
    parser.add_argument("--seed", type=int, default=None, help="by default another one each time")
    parser.add_argument("--only", nargs="+", choices=sorted(targets), default=sorted(targets), help="these targets")
    parser.add_argument("--case", type=int, help="this case alone, in this process: for a debugger")
    given = parser.parse_args()
    seed = secrets.randbelow(10**6) if given.seed is None else given.seed
    if given.case is not None:
        for name in given.only:
            run_case(name, targets[name], seed, given.case)
        return
    tried, faults = fuzz(given.only, seed, given.seconds)
    for name, cases in tried.items():
        print(f"{name:<24} {cases:>8,} cases")
    print(f"seed {seed}, {len(faults)} fault(s)")
    for fault in faults:
        print(f"\n{fault}")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
