"""TensorRT and TensorRT-RTX as backends: engines on one CUDA stream."""
