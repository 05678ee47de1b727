"""The CPU backend: TVM lowers a planned program to one native library with two entries."""
