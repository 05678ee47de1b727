"""ONNX models: an nn.Module that runs a graph, and the decoder in it that can be traced."""
