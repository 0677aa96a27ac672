"""Engine files (TensorRT's plans): building, recording and caching them."""
