"""The runtime: an artifact, memory, a scheduler and a sampler around one native step function.

Needs numpy, tokenizers and apache-tvm-ffi; never torch, nor any room of the compiler.
"""
