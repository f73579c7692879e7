"""Re-rankers (one file each), their shared parts, and their training on logs."""
