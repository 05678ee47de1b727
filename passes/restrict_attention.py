"""Attention that sees less than the model's, where a user asks for it: windows and first tokens."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

import torch

from graphwright.ir import Mask, PassError, Program
from graphwright.passes.base import Exactness, Pass, Stage
from graphwright.passes.recognize_attention import RecognizeAttention

__all__ = ["Restriction", "RestrictAttention"]

gw = torch.ops.gw
_TEXT = re.compile(
    r"(?:causal&)?"
    r"(?:\(?window\((?P<window>[1-9]\d*)\)(?:\|first\((?P<first>\d+)\))?\)?"
    r"|chunk\((?P<chunk>[1-9]\d*)\))"
    r"(?:@(?P<layers>\d[\d,-]*))?"
)


@dataclass(frozen=True)
class Restriction:
    """What attention may see of what the model's own mask shows it.

    mask: in the algebra of ir/masks.py. layers: ranges (first, last) of the numbers of attention
    layers that it is for, counted from 0; empty: all of them.
    """

    mask: Mask
    layers: tuple[tuple[int, int], ...] = ()

    @staticmethod
    def parse(text: str) -> Restriction:
        """Reads ``window(1024)``, ``window(1024) | first(4)`` (sinks: the first tokens stay
        visible) or ``chunk(1024)``, and behind it, as in ``window(1024) @ 0-3,5``, the layers that
        are meant. Raises PassError.
        """
        match = _TEXT.fullmatch(re.sub(r"\s", "", text))
        if match is None:
            raise PassError(
                f"'{text}' is nothing that attention can be restricted to: say 'window(1024)', "
                "'window(1024) | first(4)' or 'chunk(1024)', and behind it, if not all layers are "
                "meant, '@ 0-3,5'."
            )
        number = {name: int(match[name]) for name in ("window", "first", "chunk") if match[name]}
        mask = Mask(number.get("window"), number.get("first", 0), number.get("chunk"))
        layers = tuple(_range(each) for each in (match["layers"] or "").split(",") if each)
        return Restriction(mask, layers)

    def means(self, layer: int) -> bool:
        """Is it for the attention layer of this number?"""
        return not self.layers or any(first <= layer <= last for first, last in self.layers)


def _range(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if last < first:
        raise PassError(f"'{text}' is no layer and no range of layers such as 0-3.")
    return first, last


@dataclass(frozen=True)
class RestrictAttention(Pass):
    """gw.attention(mask=M)  →  gw.attention(mask=M & restriction).

    Only where a user asks for it, as it makes another model of it: what is beyond the restriction
    is never read (StreamingLLM, arXiv 2309.17453, for windows with first tokens). Leaves: layers
    that are not meant, and masks that show no more as it is. A mask that cannot be restricted so,
    as no mask of the algebra is the rest, is an error.
    """

    restriction: Restriction | None = None

    stage: ClassVar[Stage] = Stage.ATTENTION
    exactness: ClassVar[Exactness] = Exactness.ASKED
    after: ClassVar = (RecognizeAttention,)

    def run(self, program: Program) -> int:
        asked = self.restriction
        if asked is None:
            return 0
        nodes = [node for node in program.graph.nodes if node.target is gw.attention.default]
        last = max((last for _, last in asked.layers), default=-1)
        if not nodes or last >= len(nodes):
            raise PassError(
                f"attention of layer {max(last, 0)} is to be restricted, but there are "
                f"{len(nodes)} layers of attention, counted from 0."
            )
        count = 0
        for number, node in enumerate(nodes):
            own = Mask.parse(str(node.kwargs["mask"]))
            left = own.within(asked.mask)
            if not asked.means(number):
                continue
            if left is None:
                raise PassError(
                    f"attention '{node.name}' of layer {number} has the mask '{own}', and no mask "
                    f"is what it and '{asked.mask}' have in common."
                )
            if left == own:
                self.miss(f"attention '{node.name}' of layer {number} sees no more: '{own}'.")
            elif self.allowed():
                node.update_kwarg("mask", str(left))
                count += 1
        if count:
            self.note(
                f"{count} of {len(nodes)} attention layers see '{asked.mask}' only, as was asked: "
                "this is another model"
            )
        return count
