"""Shared by generators of code for regions: a normal form of indices, and shape ops on it."""
