"""Rendering of the feed: the phone, the screen in plain values, windows."""
