"""Training data for agents: logs as the device saw them, re-ranking moments, decisions, exposed lists."""
