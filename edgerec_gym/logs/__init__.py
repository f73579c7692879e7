"""Logs: one schema, its folders on disk, and adapters that convert other data to it."""
