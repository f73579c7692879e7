"""The track mix: insertion policies at equal share of the page views."""
