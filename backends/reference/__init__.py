"""The op references as a backend: slow, exact, and what every other backend is compared with."""

from graphwright.backends.reference.engine import ReferenceEngine

__all__ = ["ReferenceEngine"]
