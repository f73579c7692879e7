"""Engines that run the graphs of a device model: ONNX Runtime, the reference, and MNN."""
