"""The codec: photos to streams and back. Runs on engines and bitstream, without PyTorch or ONNX."""
