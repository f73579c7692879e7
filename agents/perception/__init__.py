"""Models of user behaviour: encoders of histories, attention, live interest."""
