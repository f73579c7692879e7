"""The EdgeRec agent: all three decisions together, from one perception."""
