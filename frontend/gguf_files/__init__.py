"""GGUF files: their tensors as lazy weights of the model that transformers builds for them."""
