"""Targets, found by their names: every function `fuzz_<name>` of every module here."""
