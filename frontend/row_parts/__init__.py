"""Parts of any torch graph that work row by row, as programs, for the torch.compile backend."""
