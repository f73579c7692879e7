"""The benchmark: tracks, their policies and rows, comparisons, the leaderboard."""
