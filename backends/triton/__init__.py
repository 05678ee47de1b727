"""Triton for NVIDIA GPUs: lowerings, kernels, generated regions, cubins ahead of time."""
