"""What agents learn from: logs as the device saw them, moments of re-ranking, decisions, exposed lists."""
