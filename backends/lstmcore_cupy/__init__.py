"""The backend ``cupy``: CUDA kernels made for this LSTM, on an NVIDIA GPU."""
