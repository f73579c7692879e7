"""Benchmarks: each script prints a table and writes results/NAME.json."""
