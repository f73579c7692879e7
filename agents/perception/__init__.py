"""How agents read the user's behaviour: encoders of histories, attention, live interest."""
