"""Parts of any torch graph that work row by row, as programs: what the torch.compile backend takes."""
