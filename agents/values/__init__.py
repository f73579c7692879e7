"""Greedy on learned values: what each candidate is worth next, distilled from learned users."""
