"""How policies are scored: playing, intervals, comparisons, off-policy estimates, speed."""
