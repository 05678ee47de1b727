"""Golden tokens: what the final graph says to a fixed prompt, computed by the reference, not by the
compiled code. An artifact carries them so that it can test itself anywhere."""

from __future__ import annotations

import ctypes
from typing import Any

import torch

from graphwright.ir.ahead import ahead
from graphwright.ir.interpreter import run_program
from graphwright.ir.paging import PagedCache
from graphwright.ir.program import Program

__all__ = ["GOLDEN_LENGTH", "golden_tokens"]

GOLDEN_LENGTH = 12  # fits into one block of the cache
_TRIM_EVERY = 256 * 2**20  # bytes of loaded weights


class _Ahead:
    """Each weight when its node runs; threads load the next ones meanwhile, and none is kept."""

    def __init__(self, program: Program) -> None:
        self._order = [str(n.target) for n in program.graph.nodes if n.op == "get_attr"]
        self._loaded = ahead(lambda name: program.weights[name].load(), self._order)
        self._next = iter(self._order)
        self._bytes = 0  # loaded since memory was given back

    def load(self, program: Program, name: str) -> torch.Tensor:
        expected = next(self._next, None)
        if name != expected:
            raise RuntimeError(f"weight '{name}' is read where '{expected}' was expected.")
        loaded = next(self._loaded)
        self._bytes += loaded.nbytes
        if self._bytes > _TRIM_EVERY:
            _give_back_memory()
            self._bytes = 0
        return loaded


def _give_back_memory() -> None:
    """What threads have freed goes back to the system: glibc keeps it for each of them, which
    comes to some hundred MB with weights of a billion."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # another C library has none
        trim(0)


def golden_tokens(program: Program) -> dict[str, Any]:
    """One prefill of a fixed pseudo-random prompt through the reference.

    Returns {"prompt": ids, "greedy": the most likely next id after each position, "top": its logit,
    "gap": its lead over the second}, and the last three of each adapter by its name in "adapters",
    where there are any. A position whose gap is small need not agree elsewhere.
    """
    length = min(GOLDEN_LENGTH, program.info.max_context or GOLDEN_LENGTH)
    vocab = program.info.vocab_size
    prompt = [(7919 * (i + 1) + 13) % vocab for i in range(length)]
    choices: list[int | None] = [None, *range(len(program.adapters))]
    cache = PagedCache(program, num_blocks=len(choices))
    batch = [(cache.start(), torch.tensor(prompt)) for _ in choices]
    logits = run_program(program, cache.inputs(batch, adapters=choices), _Ahead(program))
    base, *adapted = (_greedy(part) for part in logits.split(length))
    names = [each.name for each in program.adapters]
    extra = {"adapters": dict(zip(names, adapted, strict=True))} if names else {}
    return {"prompt": prompt, **base, **extra}


def _greedy(logits: torch.Tensor) -> dict[str, list[float]]:
    top = logits.topk(2, dim=-1)
    return {
        "greedy": top.indices[:, 0].tolist(),
        "top": [round(value, 5) for value in top.values[:, 0].tolist()],
        "gap": [round(value, 5) for value in (top.values[:, 0] - top.values[:, 1]).tolist()],
    }
