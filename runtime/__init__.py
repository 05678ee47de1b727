"""The runtime: an artifact, memory, a scheduler and a sampler around one native step function.

Needs numpy and tokenizers; never torch, nor any room of the compiler.
"""
