"""Trained agents as ONNX graphs for a device; edgerec_gym.device runs them."""
