"""Fits users to logs (with torch); users/learned.py runs what is fitted here."""
