"""The EdgeRec agent: the three decisions together, from one perception."""
