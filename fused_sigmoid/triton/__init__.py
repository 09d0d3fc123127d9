"""The GPU kernels, for Triton: imported when the first CUDA tensor arrives."""
