"""Triton source for recurrences: one kernel, made from the graph of a token."""
