"""Triton source for fused regions: generated from their graphs, readable, one kernel a region."""
