"""Scoring of policies: play, intervals, comparisons, off-policy estimates and speed."""
