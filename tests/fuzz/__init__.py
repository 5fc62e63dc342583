"""Fuzzing of what is read from outside: `python -m tests.fuzz --seconds 60 [--seed N] [--only NAME ...]`.

A target is a function `fuzz_<name>(random, folder) -> None` in a module of tests/fuzz/targets. Each call tries one
case: it makes a file in `folder` (empty at each call) with what `random` draws, has it read, and returns if that gave a
value or a NasRetrainError. Any other exception, a crash, more than `SECONDS_A_CASE` or more than `MEMORY_A_TARGET` is
a fault. A target that has to check more than that asserts it.
"""
