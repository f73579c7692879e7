"""Fidelity of learned users: held-out sessions, rollouts, effects of decisions, two-sample tests."""
