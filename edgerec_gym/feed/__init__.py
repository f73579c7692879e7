"""The dynamics of the feed: one implementation, batch first."""
