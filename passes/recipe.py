"""Quantization recipes: which scheme each weight gets, read from text such as `w8g32:head=f32`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from graphwright.ir.errors import PassError
from graphwright.ir.float_scheme import AnyScheme, FloatScheme
from graphwright.ir.schemes import Scheme
from graphwright.passes.weight_roles import Role

__all__ = ["Recipe", "parse_scheme"]

_ROLES: dict[str, tuple[Role, ...]] = {
    "linear": ("linear", "experts"),
    "experts": ("experts",),
    "head": ("head",),
    "embed": ("embedding",),
}


@dataclass(frozen=True)
class Recipe:
    """`default` for every weight but those an override names; None keeps float32.

    overrides: (pattern, scheme). A pattern is a role (`linear`, `experts` for those of them that
    tokens are routed to, `head` for the matrix that makes the logits, `embed` for the token table)
    or a regular expression searched in the weight's name. The first that fits decides; expressions
    go before roles. A merged projection has the joined
    name of its parts (`layers_0_self_attn_q_k_v_proj_weight`).
    """

    default: AnyScheme | None = None
    overrides: tuple[tuple[str, AnyScheme | None], ...] = ()

    @staticmethod
    def parse(text: str) -> Recipe:
        """Reads `SCHEME[:PATTERN=SCHEME,…]`; SCHEME is `f32`, `bf16`, `f16` or for Scheme.parse.

        Raises PassError for an unknown scheme or a pattern that is no regular expression.
        """
        default, _, rest = text.partition(":")
        overrides = []
        for item in rest.split(",") if rest else ():
            pattern, equals, scheme = item.rpartition("=")
            if not equals or not pattern:
                raise PassError(f"'{item}' in recipe '{text}' is not PATTERN=SCHEME.")
            try:
                re.compile(pattern)
            except re.error as error:
                raise PassError(f"'{pattern}' in recipe '{text}': {error}.") from error
            overrides.append((pattern, parse_scheme(scheme)))
        return Recipe(parse_scheme(default), tuple(overrides))

    @property
    def bits(self) -> int:
        """The fewest bits that an integer weight may get; 32 where none is one."""
        schemes = (self.default, *(scheme for _, scheme in self.overrides))
        return min((each.bits for each in schemes if isinstance(each, Scheme)), default=32)

    def check(self, names: Iterable[str]) -> None:
        """Raises PassError for an expression that is in none of the `names` of a program's weights:
        a slip, which would leave weights as the default says.
        """
        known = list(names)
        for pattern, _ in self.overrides:
            if pattern not in _ROLES and not any(re.search(pattern, name) for name in known):
                kinds = dict.fromkeys(re.sub(r"\d+", "N", name) for name in known)
                raise PassError(
                    f"'{pattern}' in recipe '{self}' is in the name of no weight; there are "
                    f"{', '.join(kinds)} (N: numbers), and {', '.join(_ROLES)} for roles."
                )

    def scheme_for(self, name: str, role: Role) -> AnyScheme | None:
        """The scheme of the weight `name` in this role; None: it stays float32."""
        found = self.override_for(name, role)
        return self.default if found is None else found[1]

    def override_for(self, name: str, role: Role) -> tuple[str, AnyScheme | None] | None:
        """The override that decides; None where the default does."""
        for pattern, scheme in self.overrides:
            if pattern not in _ROLES and re.search(pattern, name):
                return pattern, scheme
        for pattern, scheme in self.overrides:
            if role in _ROLES.get(pattern, ()):
                return pattern, scheme
        return None

    def __str__(self) -> str:
        rest = ",".join(f"{pattern}={scheme or 'f32'}" for pattern, scheme in self.overrides)
        return f"{self.default or 'f32'}" + (f":{rest}" if rest else "")


def parse_scheme(text: str) -> AnyScheme | None:
    """The scheme called `text`; None for float32. Raises PassError."""
    if text in ("f32", "none"):
        return None
    return FloatScheme(text) if text in FloatScheme.NAMES else Scheme.parse(text)
