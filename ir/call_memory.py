"""What calls returned, so that programs which share most of their calls are evaluated once.

After each pass the program is evaluated on the same inputs as before it. Most of its calls are
those of the last program on the very same numbers. Values are numbered by their content; a call is
the same when function, constants and the numbers of its operands are. Nothing is assumed of a
rewrite: a call that any bit of its operands sets apart from all known ones is made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeAlias

import torch
from torch import fx

__all__ = ["CallMemory", "Known", "call_parts"]

LIMIT_BYTES = 256 * 2**20
"""Once more bytes of results than this are kept, those that a program did not use are dropped after
it; more than twice as many are never kept."""

_Parts: TypeAlias = tuple[Hashable, list[fx.Node]] | None
_OPERAND = "operand"
_NOT_IN_NUMPY = {torch.bfloat16, torch.complex32}
_CONSTANTS = (int, float, str, torch.dtype, torch.device, torch.layout, torch.memory_format,
              type(None))  # fmt: skip


@dataclass(slots=True)
class Known:
    """What a call returned, its number, and the numbers of the states that it wrote.

    contents: what the numbers of `value` stand for. program: the last one that made the call.
    """

    value: Any
    number: Any
    after: tuple[int, ...]
    contents: list[Hashable]
    program: int


class CallMemory:
    """Results of the calls of the program that is evaluated, and of those before it.

    A number stands for one content (dtype, sizes, strides, bytes) and is never given twice.
    made: how many calls were not known.
    """

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self._limit = limit_bytes
        self._bytes = 0
        self._program = 0
        self._count = count()
        self._calls: dict[Hashable, Known] = {}
        self._numbers: dict[Hashable, int] = {}
        self._seen: list[Hashable] = []  # contents that this program's evaluation came across
        self._names: dict[Hashable, int] = {}
        self._weights: dict[int, tuple[torch.Tensor, int]] = {}
        self._parts: dict[fx.Node, tuple[tuple[Any, Any, Any], _Parts]] = {}
        self.made = 0

    def next_program(self) -> None:
        """The evaluation of a program has ended: where much is kept, what it did not use goes."""
        if self._bytes > self._limit:
            used = {key: call for key, call in self._calls.items() if call.program == self._program}
            contents = set(self._seen).union(*(call.contents for call in used.values()))
            self._numbers = {each: self._numbers[each] for each in contents}
            self._calls = used
            self._bytes = sum(_nbytes(call.value) for call in used.values())
        self._seen = []
        self._program += 1

    def name(self, parts: Hashable) -> int:
        """A short name for what a call is besides its operands."""
        return self._names.setdefault(parts, len(self._names))

    def parts(self, node: fx.Node, function: Any, args: Any, kwargs: Any) -> _Parts:
        """`call_parts` of the call that `node` makes, which passes leave as it is more often than
        not."""
        known = self._parts.get(node)
        now = function, args, kwargs
        if known is None or any(x is not y for x, y in zip(known[0], now, strict=True)):
            known = self._parts[node] = now, call_parts(*now)
        return known[1]

    def fresh(self) -> int:
        """The number of a content that was not looked at."""
        return next(self._count)

    def weight(self, tensor: torch.Tensor) -> int:
        """The number of a weight: known by identity and not read, for it can be large."""
        if id(tensor) not in self._weights:
            self._weights[id(tensor)] = (tensor, next(self._count))
        return self._weights[id(tensor)][1]

    def number(self, value: Any) -> Any:
        """Of a tensor its number, of several theirs, of a constant what tells it from others."""
        if isinstance(value, torch.Tensor):
            content = _content(value)
            self._seen.append(content)
            number = self._numbers.get(content)
            if number is None:
                number = self._numbers[content] = next(self._count)
            return number
        if isinstance(value, (tuple, list)):
            return tuple(map(self.number, value))
        return type(value), repr(value)

    def find(self, key: Hashable) -> Known | None:
        """What was kept of this call, if it was made before."""
        known = self._calls.get(key)
        if known is not None:
            known.program = self._program
        return known

    def keep(self, key: Hashable, value: Any, after: tuple[int, ...]) -> Known:
        """Remembers what a call returned."""
        self.made += 1
        before = len(self._seen)
        number = self.number(value)
        known = Known(value, number, after, self._seen[before:], self._program)
        more = _nbytes(value)
        if self._bytes + more <= 2 * self._limit:
            self._calls[key] = known
            self._bytes += more
        return known


def _content(tensor: torch.Tensor) -> Hashable:
    """Equal for tensors of the same dtype, sizes, strides (where they mean something) and bytes."""
    strides = None
    if not tensor.is_contiguous():
        strides = tuple(
            step for size, step in zip(tensor.shape, tensor.stride(), strict=True) if size != 1
        )
        tensor = tensor.contiguous()
    flat = tensor.detach().view(-1)
    if tensor.dtype in _NOT_IN_NUMPY:
        flat = flat.view(torch.uint8)
    content: Any = flat.numpy()
    return tensor.dtype, tensor.shape, strides, hashlib.sha256(content).digest()


def _nbytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.nbytes
    return sum(map(_nbytes, value)) if isinstance(value, (tuple, list)) else 0


def call_parts(function: Any, args: Any, kwargs: Any) -> _Parts:
    """What a call is besides its operands, and the operands.

    None when it may return something else the next time, or has arguments that cannot be compared.
    """
    if not isinstance(function, torch._ops.OpOverload):
        return None
    if torch.Tag.nondeterministic_seeded in function.tags:
        return None
    operands: list[fx.Node] = []
    parts: list[Hashable] = [function]
    try:
        _flatten(args, parts, operands)
        _flatten(kwargs, parts, operands)
    except TypeError:
        return None
    return tuple(parts), operands


def _flatten(value: Any, parts: list[Hashable], operands: list[fx.Node]) -> None:
    """Raises TypeError for what is neither a constant, a node, nor made of such."""
    if isinstance(value, fx.Node):
        operands.append(value)
        parts.append(_OPERAND)
    elif isinstance(value, (list, tuple)):
        parts.append(len(value))
        for item in value:
            _flatten(item, parts, operands)
    elif isinstance(value, dict):
        parts.append(tuple(value))
        for item in value.values():
            _flatten(item, parts, operands)
    elif isinstance(value, _CONSTANTS):
        parts.append((type(value), repr(value)))  # tells -0.0 from 0.0
    else:
        raise TypeError(f"{type(value).__name__} is no constant")
