"""`auto`: which schemes may be chosen for a weight, and what the choice must keep to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from graphwright.ir.errors import PassError
from graphwright.ir.float_scheme import AnyScheme
from graphwright.ir.schemes import Scheme
from graphwright.passes.recipe import Recipe, parse_scheme
from graphwright.passes.weight_roles import Role

__all__ = ["AUTO", "DEFAULT_CANDIDATES", "AutoRecipe", "Budget", "ChosenRecipe", "is_auto"]

AUTO = "auto"
DEFAULT_CANDIDATES = ("w4g128", "w4g64", "w4g32", "w8", "bf16")


def is_auto(quant: str) -> bool:
    """Does `quant` leave the schemes to the compiler?"""
    return quant.partition(":")[0] == AUTO


@dataclass(frozen=True)
class AutoRecipe:
    """The schemes to choose from, and recipes for what is not to be chosen.

    candidates: None is float32. named: the user gave them, so that no others are taken. fixed: the
    overrides of a Recipe; what they are about keeps to them.
    """

    candidates: tuple[AnyScheme | None, ...]
    named: bool = False
    fixed: tuple[tuple[str, AnyScheme | None], ...] = ()

    @staticmethod
    def parse(text: str) -> AutoRecipe:
        """Reads `auto[:SCHEME|PATTERN=SCHEME,…]`. Raises PassError as Recipe.parse does."""
        name, _, rest = text.partition(":")
        assert name == AUTO, text
        items = [item.strip() for item in rest.split(",") if item.strip()]
        overrides = [item for item in items if "=" in item]
        named = [item for item in items if "=" not in item]
        fixed = Recipe.parse(f"f32:{','.join(overrides)}" if overrides else "f32").overrides
        schemes = dict.fromkeys(parse_scheme(each) for each in named or DEFAULT_CANDIDATES)
        return AutoRecipe(tuple(schemes), bool(named), fixed)

    @property
    def bits(self) -> int:
        """The fewest bits that an integer weight may get; 32 where none is one."""
        schemes = (*self.candidates, *(scheme for _, scheme in self.fixed))
        return min((each.bits for each in schemes if isinstance(each, Scheme)), default=32)

    def fixed_for(self, name: str, role: Role) -> tuple[str, AnyScheme | None] | None:
        """The override that says the scheme of the weight `name` in this role already."""
        return Recipe(None, self.fixed).override_for(name, role)

    def __str__(self) -> str:
        return ", ".join(str(each or "f32") for each in self.candidates)


@dataclass(frozen=True)
class ChosenRecipe(Recipe):
    """What was chosen for each weight by name, behind the overrides; others stay float32."""

    chosen: Mapping[str, AnyScheme | None] = field(default_factory=dict)

    def scheme_for(self, name: str, role: Role) -> AnyScheme | None:
        said = self.override_for(name, role)
        return self.chosen.get(name) if said is None else said[1]

    @property
    def bits(self) -> int:
        found = [each.bits for each in self.chosen.values() if isinstance(each, Scheme)]
        return min([super().bits, *found])


@dataclass(frozen=True)
class Budget:
    """One of three, the others None.

    max_kl: nats a token that the model's distributions may change by; the fastest within it. bits:
    of a weight in the mean, scales counted, over all that may be quantized; max_size: bytes that
    all weights may take; the nearest to the model within them.
    """

    max_kl: float | None = None
    bits: float | None = None
    max_size: int | None = None

    def check(self, quant: str) -> None:
        """Raises PassError unless this goes with the recipe `quant`."""
        given = {
            name: value
            for name, value in (
                ("max_kl", self.max_kl), ("bits", self.bits), ("max_size", self.max_size),
            )
            if value is not None
        }  # fmt: skip
        if not is_auto(quant):
            if given:
                raise PassError(
                    f"{', '.join(given)} says what the choice of schemes must keep to, and "
                    f"quant='{quant}' leaves no choice: use quant='auto'."
                )
            return
        if len(given) != 1:
            raise PassError(
                f"quant='{quant}' needs one of three: max_kl, the nats a token that may be lost, "
                "bits, of a weight in the mean, or max_size, the bytes of all weights; "
                f"{'none is' if not given else 'several are'} given."
            )
        ((name, value),) = given.items()
        if not math.isfinite(value) or value < 0 or (value == 0 and name != "max_kl"):
            raise PassError(f"{name}={value:g} is no budget: give a number above 0.")

    def __str__(self) -> str:
        if self.max_kl is not None:
            return f"at most {self.max_kl:g} nats a token"
        if self.bits is not None:
            return f"at most {self.bits:g} bits a weight"
        return f"at most {self.max_size} bytes of weights"
