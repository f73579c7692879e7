"""How users are learned from logs (torch); users/learned.py plays what is fitted here."""
