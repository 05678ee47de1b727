"""What can go wrong with a request, as exceptions, and how the OpenAI API says it."""

from __future__ import annotations

from typing import Any

__all__ = ["ApiError", "EngineError", "Unavailable"]


class ApiError(Exception):
    """An answer that is an error: a sentence, with what a program needs to tell it from others."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": error}


class Unavailable(ApiError):
    """Not now: the queue is full, or the server is shutting down."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(503, message, code=code)


class EngineError(ApiError):
    """The model or the engine failed on something that was right to ask."""

    def __init__(self, message: str) -> None:
        super().__init__(500, message, code="engine_error")
