"""A GPU in one go: conformance in full, microbenchmarks, and the benchmark beside PyTorch's LSTM (cuDNN).

``python -m lstmcore_conformance.gpu`` needs CuPy, NumPy, pluggy and PyTorch; docs/benchmarking.md says what it does.
"""
