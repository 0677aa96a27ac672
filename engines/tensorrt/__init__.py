"""TensorRT and TensorRT-RTX as backends: engines shared by threads, each with a CUDA stream."""
