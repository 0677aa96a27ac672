"""ONNX Runtime as a backend: CPU, and its providers for NVIDIA GPUs."""
