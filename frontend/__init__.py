"""Capture: a checkpoint directory or an `nn.Module` becomes a `Program`."""

from graphwright.frontend.capture import capture_module
from graphwright.frontend.checkpoint import capture_checkpoint

__all__ = ["capture_checkpoint", "capture_module"]
