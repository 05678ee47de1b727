"""The runtime's own error types. Their messages are whole sentences with values, for users."""

__all__ = ["ArtifactError", "RequestError"]


class ArtifactError(Exception):
    """An artifact cannot be written, read, trusted or run on this machine."""


class RequestError(Exception):
    """What was asked of the engine cannot be done: the message says which value is wrong."""
