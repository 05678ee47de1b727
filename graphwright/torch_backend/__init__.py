"""`torch.compile(model, backend="graphwright")`: parts of any torch graph as native code."""
