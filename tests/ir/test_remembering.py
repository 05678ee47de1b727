"""Evaluating a pipeline's programs with a memory: the same bits as without, and fewer calls."""

from __future__ import annotations

from functools import lru_cache

import torch
from short_convolutions import GatedConv, SelfAttention, decoder
from tiny_models import tiny_model

from graphwright.frontend.capture import capture_module
from graphwright.ir import Program
from graphwright.ir.call_memory import CallMemory
from graphwright.ir.interpreter import Interpreter, WeightCache
from graphwright.ir.paging import PagedCache
from graphwright.ir.program import Level
from graphwright.ir.remembering import RememberingInterpreter
from graphwright.passes.base import Exactness, PassContext, run_passes
from graphwright.passes.pipeline import pipeline


class _Both:
    """A check that evaluates every program in both ways."""

    def __init__(self, limit_bytes: int = 2**28) -> None:
        self.memory, self.weights = CallMemory(limit_bytes), WeightCache()
        self.made: list[int] = []
        self.calls: list[int] = []

    def remember(self, program: Program, last: int = 0) -> None:
        before = self.memory.made
        plain, remembering = Interpreter(program), RememberingInterpreter(program, self.memory)
        caches = [PagedCache(program), PagedCache(program)]
        tokens = torch.arange(12) * 5 % program.info.vocab_size
        tokens[-1] = last
        steps = ((0, 5), (5, 6), (6, 12)) if program.level >= Level.CACHED else ((0, 12),)
        for cache in caches:
            cache.start()
        for begin, end in steps:
            if program.level >= Level.CACHED:
                inputs = [cache.inputs([(0, tokens[begin:end])]) for cache in caches]
            else:
                inputs = [{"tokens": tokens, "positions": torch.arange(12)}] * 2
            want = plain.run(inputs[0], self.weights)
            got = remembering.run(inputs[1], self.weights)
            assert torch.equal(got, want)
        self.memory.next_program()
        self.made.append(self.memory.made - before)
        self.calls.append(len(steps) * sum(n.op == "call_function" for n in program.graph.nodes))

    def compare(self, program: Program, exactness: Exactness) -> float:
        self.remember(program)
        return 0.0


@lru_cache
def _llama() -> Program:
    return capture_module(tiny_model("llama"))


def _run(program: Program, check: _Both) -> Program:
    return run_passes(program, pipeline(), PassContext(check=check))


def test_every_program_of_a_pipeline_gives_the_same_bits_with_few_calls() -> None:
    check = _Both()
    program = _run(_llama().copy(), check)
    assert sum(check.made) < sum(check.calls) / 3
    before = check.memory.made
    check.remember(program)
    assert check.memory.made == before  # nothing has changed


def test_rolling_states_are_written_before_they_are_read() -> None:
    check = _Both()
    layers = (lambda: GatedConv(4, padding=3), SelfAttention, lambda: GatedConv(3, padding=2))
    _run(capture_module(decoder(*layers)), check)
    assert 0 < sum(check.made) < sum(check.calls)


def test_what_known_calls_would_have_written_is_written_before_an_unknown_one_reads_it() -> None:
    check = _Both()
    program = _run(_llama().copy(), check)
    before = check.memory.made
    check.remember(program, last=1)  # the first steps are known, the last attends over their keys
    assert before < check.memory.made < before + check.calls[-1] / 2


def test_what_does_not_fit_into_the_memory_is_computed_again() -> None:
    check, roomy = _Both(limit_bytes=0), _Both()
    _run(_llama().copy(), check)
    _run(_llama().copy(), roomy)
    assert sum(check.made) > 2 * sum(roomy.made)


def test_a_constant_that_has_changed_is_noticed() -> None:
    check = _Both()
    program = _run(_llama().copy(), check)
    before = check.memory.made
    norm = next(n for n in program.graph.nodes if n.target is torch.ops.gw.rms_norm.default)
    norm.kwargs = {"eps": 0.1}
    check.remember(program)  # compares with the plain interpreter
    assert check.memory.made > before
