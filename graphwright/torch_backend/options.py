"""What `torch.compile(…, options={…})` may say to this backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from graphwright.ir.errors import PassError
from graphwright.passes.recipe import Recipe
from graphwright.runtime.threads import choose_threads

__all__ = ["BackendOptions"]

_UNKNOWN = ("experts", "head", "embed")  # roles


@dataclass(frozen=True)
class BackendOptions:
    """quant: a recipe as for `graphwright compile`, such as ``w8`` or ``w4g32:down_proj=w8``;
    ``auto`` keeps each weight in the type that it has. check: compare the numbers of each part
    after every pass (None: where the weights are small). threads: of the native code (None: as
    GRAPHWRIGHT_NUM_THREADS says, else the cores there are). report: say on stderr what was taken
    of each graph.
    """

    quant: str = "auto"
    check: bool | None = None
    threads: int | None = None
    report: bool = False

    @classmethod
    def of(cls, given: Mapping[str, Any] | None) -> BackendOptions:
        """Raises PassError for an option that does not exist or has another type."""
        given = dict(given or {})
        types = {"quant": str, "check": (bool, type(None)), "threads": (int, type(None)),
                 "report": bool}  # fmt: skip
        for name, value in given.items():
            if name not in types:
                raise PassError(
                    f"the backend 'graphwright' has no option '{name}'; there are "
                    f"{', '.join(each.name for each in fields(cls))}."
                )
            number = name == "threads" and isinstance(value, bool)  # which Python takes for one
            if number or not isinstance(value, types[name]):  # type: ignore[arg-type]
                raise PassError(f"the option '{name}' cannot be {value!r}.")
        options = cls(**given)
        if options.quant != "auto":
            _check_roles(Recipe.parse(options.quant))
        choose_threads(options.threads)
        return options


def _check_roles(recipe: Recipe) -> None:
    for pattern, _ in recipe.overrides:
        if pattern in _UNKNOWN:
            raise PassError(
                f"'{pattern}' in recipe '{recipe}' is a role that only whole decoders have; "
                f"graphs of torch.compile do not: name weights, as in 'w8:lm_head=f32'."
            )
