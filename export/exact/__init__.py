"""The exact entropy model in integers: reference, bounds, and its ONNX graphs."""
