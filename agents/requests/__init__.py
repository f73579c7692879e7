"""When to request a page: uplift estimators, planners, waiting, deep Q-learning, true effects."""
