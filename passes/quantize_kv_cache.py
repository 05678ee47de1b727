"""Keys and values kept in fewer bits than they are computed in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import fx

from graphwright.ir import IndexState, KVState, PassError, Program
from graphwright.passes.base import Exactness, Pass, Stage
from graphwright.passes.insert_kv_cache import InsertKvCache

__all__ = ["KV_CACHE_DTYPES", "QuantizeKvCache"]

gw = torch.ops.gw
KV_CACHE_DTYPES: dict[str, torch.dtype] = {
    "auto": torch.float32,
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8": torch.float8_e4m3fn,
    "int8": torch.int8,
}


@dataclass(frozen=True)
class QuantizeKvCache(Pass):
    """gw.cached_attention over float32 caches  →  over caches of `dtype`.

    int8 adds an input with the scales of each cache: one for each token and head. Index keys, by
    which tokens choose others, are kept in float16 then, and beside fp8: what is not chosen is lost
    whole. Leaves: rolling states, and caches that are not float32.
    """

    dtype: str = "auto"

    stage: ClassVar[Stage] = Stage.QUANTIZE
    exactness: ClassVar[Exactness] = Exactness.APPROXIMATE
    after: ClassVar = (InsertKvCache,)

    def __post_init__(self) -> None:
        if self.dtype not in KV_CACHE_DTYPES:
            known = ", ".join(KV_CACHE_DTYPES)
            raise PassError(f"'{self.dtype}' is no type of the KV cache; there are {known}.")

    def run(self, program: Program) -> int:
        wanted = KV_CACHE_DTYPES[self.dtype]
        count = 0
        for number, state in enumerate(program.states):
            if not isinstance(state, (KVState, IndexState)):
                continue
            dtype = _of_index_keys(wanted) if isinstance(state, IndexState) else wanted
            if state.dtype is dtype:
                continue
            if state.dtype is not torch.float32:
                self.miss(f"the cache '{state.name}' is {state.dtype} already.")
                continue
            if not self.allowed():
                break
            caches = [program.placeholder(name) for name in state.inputs]
            program.states[number] = new = replace(state, dtype=dtype)
            with program.fake_mode:
                for cache in caches:
                    cache.meta["val"] = cache.meta["val"].to(dtype)
            if isinstance(new, KVState) and new.scaled:
                _add_scales(program, new, caches)
            count += 1
        return count


def _of_index_keys(wanted: torch.dtype) -> torch.dtype:
    return torch.float16 if wanted.itemsize == 1 else wanted


def _add_scales(program: Program, state: KVState, caches: list[fx.Node]) -> None:
    """New inputs for the scales, and every attention over the caches takes them."""
    scales = []
    for name, cache in zip(state.inputs[2:], caches, strict=True):
        block_size = int(cache.meta["val"].shape[1])
        scales.append(program.add_input(name, ["N", block_size, state.heads], torch.float32))
    for node in list(caches[0].users):
        assert node.target is gw.cached_attention.default
        args: Any = (*node.args[:10], *scales, *node.args[12:])
        new = program.call(node, node.target, *args, **node.kwargs)
        new.meta["stack_trace"] = node.meta.get("stack_trace")
        program.replace(node, new)
