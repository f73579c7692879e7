"""Phones that run agents in simulations: who holds them, and what they play."""
