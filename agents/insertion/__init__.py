"""Insertion of mix-in cards: the value of a card at a slot (ESAN), and policies that plan with it."""
