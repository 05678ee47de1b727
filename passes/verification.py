"""Checking passes by numbers: the program before and after them must give the same logits."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from graphwright.ir import Level, PassError, Program
from graphwright.ir.interpreter import Interpreter, WeightCache, WeightSource
from graphwright.ir.paging import PagedCache
from graphwright.ir.tolerance import TOLERANCES, error_ratio
from graphwright.passes.adapter_probes import AdaptedWeights, batches, dealt_adapters
from graphwright.passes.base import Exactness

__all__ = [
    "BUDGETS",
    "CHECK_LIMIT_BYTES",
    "NumericCheck",
    "numeric_check",
    "promise_ratio",
    "should_check",
]

_CHOOSE = torch.ops.gw.cached_choose_keys.default
_TOP_K = torch.ops.gw.top_k.default

CHECK_LIMIT_BYTES = 100 * 2**20
"""Models with more weights are only checked on request: a check runs them several times."""

BUDGETS = {Exactness.APPROXIMATE: 0.1, Exactness.COARSE: 0.6}
"""Root mean square change of the logits, as a share of their standard deviation, that a pass which
approximates may make. Measured for int8 weights and activations: 0.01 on the trained demo model, up
to 0.05 on random tiny models. For 4-bit weights in groups of 32: under 0.1 on a trained model of
260,000 parameters, 0.31 on a random one of 15 million. Logits that have nothing to do with each
other differ by 1.4. Keys and experts that tokens choose (gw.cached_choose_keys, gw.top_k) are those
that they chose before the pass: of scores that are nearly equal any rounding may turn the order,
and what that changes does not say how good the rounding is."""

# Tokens that each sequence takes in each step: prefill of 1, 7 and 33, decoding on the cache of the
# last, and a ragged step in which one sequence goes on, one decodes and one begins. Before there
# are caches, each sequence is evaluated whole.
_STEPS: tuple[tuple[int, ...], ...] = (
    (1, 0, 0, 0),
    (0, 7, 0, 0),
    (0, 0, 33, 0),
    (0, 0, 1, 0),
    (0, 5, 1, 10),
)


def should_check(program: Program, limit_bytes: int = CHECK_LIMIT_BYTES) -> bool:
    """Check after each pass? Yes for small programs, unless GRAPHWRIGHT_CHECK is 0 or 1."""
    setting = os.environ.get("GRAPHWRIGHT_CHECK", "")
    if setting not in ("", "0", "1"):
        raise PassError(f"GRAPHWRIGHT_CHECK must be 0 or 1, not '{setting}'.")
    return setting == "1" if setting else program.weights.nbytes <= limit_bytes


class NumericCheck:
    """Use as PassContext.check: probes each program once and compares its logits with the last's.

    One instance serves one run of a pipeline.
    """

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._weights = WeightCache()
        self._want: list[torch.Tensor] = []
        self._chosen: list[torch.Tensor] = []

    def remember(self, program: Program) -> None:
        """What the next program's logits must be."""
        self._want = self._run(program)

    def compare(self, program: Program, exactness: Exactness) -> float:
        """The largest error as a share of what `exactness` allows. Raises PassError above 1."""
        keeps_choices = exactness in BUDGETS and bool(self._chosen)
        want = self._want
        got = self._run(program, list(self._chosen)) if keeps_choices else self._run(program)
        worst, sequence = 0.0, 0
        for i, (left, right) in enumerate(zip(got, want, strict=True)):
            ratio = promise_ratio(left, right, exactness)
            if not ratio <= worst:
                worst, sequence = ratio, i
        if not worst <= 1:
            changed = self._changed(got[sequence], want[sequence])
            raise PassError(
                f"the pass changed {changed} {worst:.3g} times what '{exactness.value}' allows."
            )
        self._want = self._run(program) if keeps_choices else got
        return worst

    def _changed(self, got: torch.Tensor, want: torch.Tensor) -> str:
        difference = float((got - want).abs().max())
        return f"the logits of a sequence of {len(want)} tokens by up to {difference:.3g},"

    def _run(
        self, program: Program, chosen: list[torch.Tensor] | None = None
    ) -> list[torch.Tensor]:
        """Logits of all sequences; `chosen`: what tokens choose, call by call, not their own."""
        steps, choices = _steps(program), _Choices(chosen)
        instead: dict[Any, Any] = {_CHOOSE: choices.of_keys, _TOP_K: choices.of_largest}
        interpreter = Interpreter(program, instead=instead)
        if chosen is None:
            self._chosen = choices.made
        generator = torch.Generator().manual_seed(self._seed)
        sequences = [
            torch.randint(program.info.vocab_size, (sum(counts),), generator=generator)
            for counts in zip(*steps, strict=True)
        ]
        found = []
        for adapters in dealt_adapters(program, len(sequences)):
            if program.level < Level.CACHED:
                found += [
                    self._stateless(interpreter, tokens, adapter)
                    for tokens, adapter in zip(sequences, adapters, strict=True)
                    if len(tokens)
                ]
            else:
                found += self._cached(program, interpreter, sequences, steps, adapters)
        return found

    def _stateless(
        self, interpreter: Interpreter, tokens: torch.Tensor, adapter: int | None
    ) -> torch.Tensor:
        inputs = {"tokens": tokens, "positions": torch.arange(len(tokens))}
        return interpreter.run(inputs, self._source(adapter))

    def _source(self, adapter: int | None) -> WeightSource:
        """Weights as an adapter changes them, for a program that it is not attached to yet."""
        return self._weights if adapter is None else AdaptedWeights(self._weights, adapter)

    def _cached(
        self,
        program: Program,
        interpreter: Interpreter,
        sequences: Sequence[torch.Tensor],
        steps: Sequence[Sequence[int]],
        adapters: Sequence[int | None],
    ) -> list[torch.Tensor]:
        """Logits of every token, asked for from the last of each step to the first. Sequences of
        different adapters are in one step if these are attached."""
        cache = PagedCache(program, slots=len(sequences))
        numbers = [cache.start() for _ in sequences]
        parts: list[list[torch.Tensor]] = [[] for _ in sequences]
        inputs = {node.target for node in program.graph.nodes if node.op == "placeholder"}
        attached = "adapters" in inputs or "row_adapters" in inputs
        for counts, members in batches(steps, None if attached else adapters):
            batch = []
            for i in members:
                begin = cache.length(numbers[i])
                batch.append((numbers[i], sequences[i][begin : begin + counts[i]]))
            rows = range(sum(counts[i] for i in members))[::-1]
            chosen = [adapters[i] for i in members]
            source = self._source(None if attached else chosen[0])
            logits = interpreter.run(cache.inputs(batch, rows, chosen), source)
            if "sample_rows" in inputs:
                logits = logits.flip(0)
            split = logits.split([counts[i] for i in members])
            for i, part in zip(members, split, strict=True):
                parts[i].append(part)
        return [torch.cat(part) for part in parts if part]


@dataclass
class _Choices:
    """What tokens choose: notes it, or has them choose what is `given` call by call."""

    given: list[torch.Tensor] | None
    made: list[torch.Tensor] = field(default_factory=list)

    def of_keys(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """In place of gw.cached_choose_keys."""
        return self._noted(_CHOOSE(*args, **kwargs))

    def of_largest(self, x: torch.Tensor, *, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """In place of gw.top_k."""
        indices = self._noted(_TOP_K(x, k=k)[1])
        return x.gather(-1, indices), indices

    def _noted(self, own: torch.Tensor) -> torch.Tensor:
        self.made.append(own)
        return own if self.given is None else self.given.pop(0)


def numeric_check(before: Program, after: Program, exactness: Exactness) -> float:
    """The largest error between two programs as a share of what `exactness` allows.

    Raises PassError above 1.
    """
    check = NumericCheck()
    check.remember(before)
    return check.compare(after, exactness)


def _steps(program: Program) -> list[tuple[int, ...]]:
    """The probe's steps, cut to sequences within the model's context."""
    limit = program.info.max_context
    done = [0] * len(_STEPS[0])
    steps = []
    for counts in _STEPS:
        step = [
            count if limit is None else max(0, min(count, limit - have))
            for count, have in zip(counts, done, strict=True)
        ]
        done = [have + count for have, count in zip(done, step, strict=True)]
        if any(step):
            steps.append(tuple(step))
    return steps


def promise_ratio(got: torch.Tensor, want: torch.Tensor, exactness: Exactness) -> float:
    """The error of `got` as a share of what `exactness` allows around `want`."""
    if exactness not in BUDGETS:
        return error_ratio(got, want, TOLERANCES[exactness.value, want.dtype])
    if got.shape != want.shape:
        raise PassError(f"shapes differ: got {tuple(got.shape)}, expected {tuple(want.shape)}.")
    got, want = got.double(), want.double()
    same = (got == want) | (got.isnan() & want.isnan())  # as of the logarithm of a random number
    error = torch.where(same, 0.0, got - want).square().mean().sqrt()
    if error == 0:  # also where all are the same, and have no deviation
        return 0.0
    ratio = error / (BUDGETS[exactness] * want[want.isfinite()].std())
    return float(torch.nan_to_num(ratio, nan=float("inf")))
