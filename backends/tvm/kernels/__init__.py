"""Kernels as private TIR functions, one idea a file. `kernel.py` says what a kernel is."""
