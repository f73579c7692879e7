"""Self-contained HTML pages: the report of a run and the replay of a session."""
