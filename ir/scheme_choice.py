"""Which scheme was chosen for each weight of a program, and on what evidence."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["SchemeChoice", "SchemeOption", "Trial", "WeightChoice", "WayPoint"]


@dataclass(frozen=True)
class SchemeOption:
    """A scheme that a weight could have, the bytes that it would take and a decoded token read of
    it. kl: nats a token that the model loses if this weight alone is in that scheme; how: `exact`
    (the numbers stay), `measured`, or `estimated` from another scheme's.
    """

    scheme: str
    kl: float
    how: str
    bytes: int
    read: int


@dataclass(frozen=True)
class WeightChoice:
    """What was chosen for a weight. fixed: the recipe said so."""

    name: str
    roles: tuple[str, ...]
    elements: int
    scheme: str
    fixed: bool
    options: tuple[SchemeOption, ...]


@dataclass(frozen=True)
class Trial:
    """A choice as a whole. predicted: the sum of what its weights lose one by one, in nats a token;
    measured: what the model loses, on held-out tokens, with its standard error.
    """

    predicted: float
    measured: float
    error: float
    bits: float
    bytes: int
    read: int
    accepted: bool


@dataclass(frozen=True)
class WayPoint:
    """One of the best choices: bits a weight in the mean, bytes, and the predicted loss."""

    bits: float
    bytes: int
    read: int
    kl: float


@dataclass(frozen=True)
class SchemeChoice:
    """All that is to be known of a choice of schemes.

    budget: what it kept to, as text. tokens: how many the losses of single weights were measured
    on; held_out: how many others the whole was; origin: where both are from. bits: of a weight in
    the mean, over all weights that are listed; bytes, read: of these weights, stored and read for a
    decoded token. trials: in the order they were made, one of them accepted. line: from few bits to
    many.
    """

    budget: str
    candidates: tuple[str, ...]
    tokens: int
    held_out: int
    origin: str
    bits: float
    bytes: int
    read: int
    predicted: float
    measured: float
    error: float
    weights: tuple[WeightChoice, ...]
    trials: tuple[Trial, ...]
    line: tuple[WayPoint, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)
