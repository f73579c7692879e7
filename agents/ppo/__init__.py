"""MaskablePPO with the pointer policy."""
