"""Fuzzing: random feeds against a model of their rules, and corrupted files against every reader."""
