"""Logs: one schema, its folders on disk, and adapters that bring other data into it."""
