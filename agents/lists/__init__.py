"""Models that write and judge lists: pointer network, list evaluator, generators, sequence search."""
