"""Lists that are written and judged: pointer network, list evaluator, generators, sequence search."""
