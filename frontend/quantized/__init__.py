"""Checkpoints whose weights are quantized already: each method's tensors as float weights."""
