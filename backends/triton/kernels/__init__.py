"""The kernels, one idea a file: a Triton function, and a builder that fixes its parameters."""
