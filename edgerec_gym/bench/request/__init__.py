"""The track request: when to request a page."""
