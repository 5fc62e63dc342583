"""The scaling rules that ship: a module for each, whose function `rule` has its source, formula and limits."""
