"""What runs on NVIDIA GPUs only: Triton kernels, staging of what the host knows, CUDA graphs, memory."""
