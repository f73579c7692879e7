"""Re-rankers: one file each, what they share, and their training from logs."""
