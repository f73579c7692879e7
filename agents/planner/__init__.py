"""Which card stands at which slot: the constrained knapsack of insertions, exact and approximate."""
