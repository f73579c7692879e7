"""The feed's dynamics: one implementation, batch first."""
