"""How true learned users are: held-out sessions, rollouts, effects of decisions, two-sample tests."""
