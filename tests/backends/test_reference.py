"""The reference engine against eager transformers: ragged batches, chunked prefill and decoding.

These are the models as they come out of the attention passes, before anything is fused.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from tiny_models import TINY_MODELS, random_tokens, tiny_model
from torch import nn

from graphwright.backends.reference import ReferenceEngine
from graphwright.frontend.capture import capture_module
from graphwright.ir import BackendError, KVState, PassError, Program
from graphwright.ir.tolerance import check_close
from graphwright.passes.canonicalize_ops import CanonicalizeOps
from graphwright.passes.drop_no_ops import DropNoOps
from graphwright.passes.eliminate_common_subexpressions import EliminateCommonSubexpressions
from graphwright.passes.fold_constants import FoldConstants
from graphwright.passes.insert_kv_cache import InsertKvCache
from graphwright.passes.recognize_attention import RecognizeAttention
from graphwright.passes.recognize_rope import RecognizeRope
from graphwright.passes.rewrite_positions import RewritePositions
from graphwright.passes.running import run_passes
from graphwright.passes.select_sampled_rows import SelectSampledRows

PASSES = (
    DropNoOps(),
    CanonicalizeOps(),
    FoldConstants(),
    EliminateCommonSubexpressions(),
    RewritePositions(),
    RecognizeRope(),
    RecognizeAttention(),
    InsertKvCache(),
    SelectSampledRows(),
)
# A prefill in two chunks beside a decode beside a prefill, and then 32 steps that decode all three.
CHUNKS = [(8, 0, 1), (0, 9, 0), (1, 4, 0), *[(1, 1, 1)] * 32]


@cache
def model_of(name: str) -> nn.Module:
    return tiny_model(name)


@cache
def program_of(name: str) -> Program:
    return run_passes(capture_module(model_of(name)), PASSES)


def eager(name: str, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model_of(name)(tokens[None], use_cache=False).logits[0]
    return logits


@pytest.mark.parametrize("name", TINY_MODELS)
def test_a_ragged_batch_equals_separate_eager_runs(name: str) -> None:
    lengths = [sum(counts) for counts in zip(*CHUNKS, strict=True)]
    sequences = [random_tokens(length, seed=length) for length in lengths]
    got = ReferenceEngine(program_of(name)).logits_of(sequences, CHUNKS)
    for tokens, logits in zip(sequences, got, strict=True):
        check_close(logits, eager(name, tokens))


@pytest.mark.parametrize(
    ("name", "masks", "heads"),
    [
        ("llama", ["causal"] * 2, 2),
        ("mistral", ["causal & window(8)"] * 2, 2),
        ("gemma2", ["causal & window(8)", "causal"], 2),
        ("falcon", ["causal"] * 2, 2),
        ("falcon-old", ["causal"] * 2, 1),
        ("bloom", ["causal"] * 2, 4),
    ],
)
def test_the_caches_of_known_models(name: str, masks: list[str], heads: int) -> None:
    states = [s for s in program_of(name).states if isinstance(s, KVState)]
    assert [str(state.mask) for state in states] == masks
    assert {state.heads for state in states} == {heads}


def test_blocks_are_used_again() -> None:
    engine = ReferenceEngine(program_of("llama"), num_blocks=3)
    tokens = random_tokens(40)
    want = eager("llama", tokens)
    for chunks in ([(40,)], [(17,), (23,)], [(1,)] * 40):
        check_close(engine.logits_of([tokens], chunks)[0], want)
    with pytest.raises(PassError, match="the 3 blocks of 16 positions are all taken"):
        engine.logits_of([random_tokens(49)], [(49,)])


def test_only_the_sampled_rows() -> None:
    engine = ReferenceEngine(program_of("gpt2"))
    tokens = random_tokens(9)
    logits = engine.step([(engine.cache.start(), tokens)], rows=[8, 2])
    check_close(logits, eager("gpt2", tokens)[[8, 2]])


def test_a_program_without_a_cache_is_refused() -> None:
    program = capture_module(model_of("llama"))
    with pytest.raises(BackendError, match="level 'captured' and has no KV cache yet"):
        ReferenceEngine(program)


def test_chunks_must_add_up() -> None:
    engine = ReferenceEngine(program_of("gpt2"))
    with pytest.raises(BackendError, match=r"take \[3\] tokens of sequences of \[4\]"):
        engine.logits_of([random_tokens(4)], [(1,), (2,)])
