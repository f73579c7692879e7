"""How agents learn, whatever they learn: epochs over a log, rollouts, parameters on disk."""
