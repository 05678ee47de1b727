"""One-layer decoders written over torch.ops, whose attention a test spells as it likes.

program = small_decoder(lambda q, k, v, m: aten.scaled_dot_product_attention.default(q, k, v, m.le))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from graphs import build_program, rows

from graphwright.ir import Level, Program
from graphwright.passes.base import Pass, PassContext
from graphwright.passes.running import run_passes
from graphwright.passes.verification import NumericCheck

__all__ = ["HEADS", "KV_HEADS", "SIZE", "Masks", "check_decoder", "small_decoder"]

aten = torch.ops.aten
HEADS, KV_HEADS, SIZE = 4, 2, 8
_WIDTH = HEADS * SIZE
_VOCAB = 32  # what build_program says


@dataclass
class Masks:
    """Ingredients of masks, as proxies: the number of tokens, query positions [T, 1], keys [T]."""

    tokens: Any
    length: Any
    query: Any
    key: Any
    hidden: Any  # the residual stream, [1, T, width]

    @property
    def causal(self) -> Any:
        """bool [T, T]: the key is not later than the query."""
        return aten.le.Tensor(self.key, self.query)

    def window(self, size: int) -> Any:
        """bool [T, T]: causal and at most `size` keys."""
        near = aten.lt.Scalar(aten.sub.Tensor(self.query, self.key), size)
        return aten.bitwise_and.Tensor(self.causal, near)


Attention = Callable[..., Any]


def small_decoder(
    attention: Attention,
    *,
    kv_heads: int = HEADS,
    from_positions: bool = True,
    max_context: int | None = 256,
    after: Callable[[Any], Any] = lambda x: x,
    level: Level = Level.NORMALIZED,
    **weights: torch.Tensor,
) -> Program:
    """embedding → q, k, v [1, H, T, D] → `attention` → + residual → `after` → logits [T, 32].

    attention gets q, k, v (k and v with `kv_heads`), the masks, and `weights` by name if it wants
    them; it returns [1, H, T, D]. `from_positions`: masks are made of positions, not of arange.
    """
    torch.manual_seed(0)

    def function(tokens, positions, table, q_w, k_w, v_w, o_w, head, **extra):  # type: ignore[no-untyped-def]
        x = aten.unsqueeze.default(aten.embedding.default(table, tokens), 0)
        length = aten.sym_size.int(tokens, 0)
        places = positions if from_positions else aten.arange.default(length)
        masks = Masks(tokens, length, aten.unsqueeze.default(places, 1), places, x)
        operands = []
        for weight, heads in ((q_w, HEADS), (k_w, kv_heads), (v_w, kv_heads)):
            y = aten.linear.default(x, weight)
            y = aten.reshape.default(y, [1, -1, heads, SIZE])
            operands.append(aten.permute.default(y, [0, 2, 1, 3]))
        y = attention(*operands, masks, **extra)
        y = aten.reshape.default(aten.permute.default(y, [0, 2, 1, 3]), [1, -1, _WIDTH])
        x = after(aten.add.Tensor(x, aten.linear.default(y, o_w)))
        return aten.squeeze.dim(aten.linear.default(x, head), 0)

    parameters = {
        "tokens": rows(dtype=torch.int64, batch=False),
        "positions": rows(dtype=torch.int64, batch=False),
        "table": torch.randn(_VOCAB, _WIDTH),
        "q_w": torch.randn(_WIDTH, _WIDTH) / _WIDTH**0.5,
        "k_w": torch.randn(kv_heads * SIZE, _WIDTH) / _WIDTH**0.5,
        "v_w": torch.randn(kv_heads * SIZE, _WIDTH) / _WIDTH**0.5,
        "o_w": torch.randn(_WIDTH, _WIDTH) / _WIDTH**0.5,
        "head": torch.randn(_VOCAB, _WIDTH) / _WIDTH**0.5,
    }
    names = ", ".join([*parameters, *weights])
    values = ", ".join([*parameters, *(f"{name}={name}" for name in weights)])
    flat = eval(f"lambda {names}: function({values})", {"function": function})
    program = build_program(flat, level, **parameters, **weights)
    program.info = replace(program.info, max_context=max_context)
    program.clean()
    return program


def check_decoder(program: Program, *passes: Pass) -> list[int]:
    """Runs `passes`, comparing the numbers after each, then once more, when nothing may fire.

    Returns how many rewrites each made.
    """
    known = len(program.log)
    run_passes(program, passes, PassContext(check=NumericCheck()))
    counts = [record.rewrites for record in program.log[known:]]
    again = len(program.log)
    run_passes(program, passes, PassContext())
    assert not any(record.rewrites for record in program.log[again:])
    return counts
