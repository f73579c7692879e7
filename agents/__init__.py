"""Policies for the feed: baselines, learned agents, and the code that trains them."""

if __name__ != "edgerec_gym.agents":
    raise ImportError("import edgerec_gym.agents, not agents")
