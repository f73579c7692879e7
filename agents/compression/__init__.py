"""Smaller agents for a device: rounded weights and kept state, hidden units removed, and fine-tuning."""
