"""Which function computes an operator: declared where it is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from graphwright.frontend.onnx_models.values import Call, Value

__all__ = ["MICROSOFT", "OPERATORS", "Operator", "Result", "operator"]

MICROSOFT = "com.microsoft"  # onnxruntime's own operators

Result: TypeAlias = Value | tuple[Value, ...]
Operator: TypeAlias = Callable[[Call], Result]

OPERATORS: dict[tuple[str, str], Operator] = {}


def operator(*names: str, domain: str = "") -> Callable[[Operator], Operator]:
    """Registers what computes the operators of these names."""

    def register(function: Operator) -> Operator:
        for name in names:
            assert (domain, name) not in OPERATORS, f"{domain}.{name} is declared twice"
            OPERATORS[domain, name] = function
        return function

    return register
