"""Training tools shared by all agents: epochs over a log, rollouts, parameters on disk."""
