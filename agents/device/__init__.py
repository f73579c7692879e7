"""Exported agents at play: the agents' own decisions, with graphs of a device model in place of torch."""
