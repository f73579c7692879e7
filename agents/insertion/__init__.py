"""Insertion of mix-in cards: what a card is worth at a slot (ESAN), and policies that plan by it."""
