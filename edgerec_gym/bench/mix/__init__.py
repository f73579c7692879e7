"""The track mix: insertion policies at an equal share of cards."""
