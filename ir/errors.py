"""The compiler's exception types. Their messages are sentences with values, meant for a user."""

__all__ = ["BackendError", "BudgetError", "FrontendError", "GraphwrightError", "PassError"]


class GraphwrightError(Exception):
    """Base class: the command line prints the message of any of these and exits with 1."""


class FrontendError(GraphwrightError):
    """A model could not be captured: the message names the node or module, and what was tried."""


class PassError(GraphwrightError):
    """A pass refused the graph, or its result failed verification."""


class BudgetError(PassError):
    """What was asked for cannot be had, whatever a pass does: nothing went wrong in one."""


class BackendError(GraphwrightError):
    """A program could not be lowered or compiled for the target."""
