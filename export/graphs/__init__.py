"""From PyTorch modules to ONNX files: FP32, FP16 and int8 variants."""
