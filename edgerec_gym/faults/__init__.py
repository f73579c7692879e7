"""Bad networks on demand."""
