"""Which card goes to which slot: the constrained knapsack of insertions, exact and approximate."""
