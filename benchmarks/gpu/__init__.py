"""Everything worth knowing of percoedge on an NVIDIA GPU, with one command.

record        what a part finds, written as it goes
worker        one part in a process of its own
backends      the backends that work on this GPU, with the engine files that they need
hardware      part "device": the GPU, its driver, its pools and clocks
driver        part "cuda": engines/tensorrt/cuda.py alone
rtx           part "rtx": whether TensorRT-RTX builds for this GPU, and runs
cuda_provider part "onnxruntime": ONNX Runtime's CUDA provider
rivals        part "torch": the backends against PyTorch
tiles         part "entropy": the entropy graph on few and on many tiles
programs      parts "tests" and "throughput": pytest -m gpu, percoedge bench
"""
