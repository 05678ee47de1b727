"""numeric_check: what it lets pass and what it stops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_decoders import Masks, small_decoder

from graphwright.ir import ConstantTensor, PassError, Program
from graphwright.passes.base import Exactness
from graphwright.passes.insert_kv_cache import InsertKvCache
from graphwright.passes.quantize_weights import QuantizeWeights
from graphwright.passes.recipe import Recipe
from graphwright.passes.recognize_attention import RecognizeAttention
from graphwright.passes.running import run_passes
from graphwright.passes.select_sampled_rows import SelectSampledRows
from graphwright.passes.verification import numeric_check, promise_ratio, should_check

aten = torch.ops.aten


def decoder() -> Program:
    def attend(q: Any, k: Any, v: Any, m: Masks) -> Any:
        return aten.scaled_dot_product_attention.default(q, k, v, m.window(8))

    return small_decoder(attend)


def cached() -> Program:
    passes = (RecognizeAttention(), InsertKvCache(), SelectSampledRows())
    return run_passes(decoder(), passes)


def change(program: Program, weight: str, factor: float) -> Program:
    other = program.copy()
    old = other.weights[weight].load()
    noise = torch.randn(old.shape, generator=torch.Generator().manual_seed(0))
    other.weights[weight] = ConstantTensor.of(old * (1 + factor * noise))
    return other


def test_across_the_border_to_the_cache_and_to_sampled_rows() -> None:
    assert numeric_check(decoder(), cached(), Exactness.REASSOCIATING) < 0.5


@pytest.mark.parametrize("program", [decoder, cached])
def test_a_changed_weight_is_noticed(program: Any) -> None:
    before = program()
    assert numeric_check(before, before, Exactness.EXACT) == 0
    after = change(before, "q_w", 1e-2)
    for exactness in (Exactness.EXACT, Exactness.REASSOCIATING):
        with pytest.raises(PassError, match="times what"):
            numeric_check(before, after, exactness)
    assert 0 < numeric_check(before, after, Exactness.APPROXIMATE) < 0.5


def test_an_approximate_pass_has_a_budget() -> None:
    before = cached()
    with pytest.raises(PassError, match="'approximate' allows"):
        numeric_check(before, change(before, "head", 1.0), Exactness.APPROXIMATE)


def test_logits_that_are_all_the_same_may_stay_so() -> None:
    """A model of zeros: without a deviation there is no share of it."""
    before = cached()
    before.weights["head"] = ConstantTensor.of(0 * before.weights["head"].load())
    assert numeric_check(before, before.copy(), Exactness.APPROXIMATE) == 0


def test_an_approximation_is_judged_by_the_choices_made_before_it() -> None:
    """Scores that are nearly equal: which is larger says nothing of how good a rounding is."""

    def attend(q: Any, k: Any, v: Any, m: Masks, router: Any) -> Any:
        seen = aten.scaled_dot_product_attention.default(q, k, v, m.causal)
        _, chosen = torch.ops.gw.top_k.default(aten.matmul.default(seen, router), k=1)
        return aten.mul.Tensor(seen, aten.add.Tensor(aten.mul.Tensor(chosen, 9.0), 1.0))

    alike = torch.randn(8, 1).expand(8, 2) + 1e-4 * torch.randn(8, 2)
    before = small_decoder(attend, router=alike)
    after = change(before, "router", 1e-2)
    with pytest.raises(PassError, match="times what"):
        numeric_check(before, after, Exactness.REASSOCIATING)
    assert numeric_check(before, after, Exactness.APPROXIMATE) == 0


def test_what_is_no_number_before_may_be_none_after() -> None:
    """Parts of a graph are checked on random rows, also those that a logarithm does not take."""
    want = torch.tensor([1.0, 2.0, float("nan"), float("-inf")])
    approximate = Exactness.APPROXIMATE
    assert 0 < promise_ratio(want + 1e-3, want, approximate) < 1
    for wrong in (float("nan"), 9.0):
        changed = torch.tensor([wrong, 2.0, float("nan"), float("-inf")])
        assert promise_ratio(changed, want, approximate) > 1
    assert promise_ratio(torch.tensor([1.0, 2.0, 3.0, 4.0]), want, approximate) > 1


def test_weights_of_few_bits_have_a_larger_budget() -> None:
    before = cached()
    after = change(before, "head", 0.2)
    with pytest.raises(PassError, match="'approximate' allows"):
        numeric_check(before, after, Exactness.APPROXIMATE)
    assert 0 < numeric_check(before, after, Exactness.COARSE) < 1
    with pytest.raises(PassError, match="'coarse' allows"):
        numeric_check(before, change(before, "head", 2.0), Exactness.COARSE)
    steps = [QuantizeWeights(Recipe.parse(text)) for text in ("w8", "w4g32", "f32:head=w4g32z")]
    coarse, fine = Exactness.COARSE, Exactness.APPROXIMATE
    assert [step.exactness for step in steps] == [fine, coarse, coarse]


@pytest.mark.parametrize(
    ("argument", "value"),
    [("mask", "causal & window(9)"), ("mask", "causal & window(32)"), ("scale", 0.36)],
)
def test_a_wrong_attention_is_noticed(argument: str, value: object) -> None:
    before = cached()
    after = before.copy()
    (node,) = [n for n in after.graph.nodes if "cached_attention" in n.name]
    node.kwargs = {**node.kwargs, argument: value}
    with pytest.raises(PassError, match="changed the logits of a sequence of"):
        numeric_check(before, after, Exactness.REASSOCIATING)


def test_a_cache_that_is_not_written_is_noticed() -> None:
    before = cached()
    after = before.copy()
    (node,) = [n for n in after.graph.nodes if "cached_attention" in n.name]
    node.args = (node.args[0], None, None, *node.args[3:])
    with pytest.raises(PassError, match="times what"):
        numeric_check(before, after, Exactness.APPROXIMATE)


def test_small_programs_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    program = decoder()
    monkeypatch.delenv("GRAPHWRIGHT_CHECK", raising=False)
    assert should_check(program) and not should_check(program, limit_bytes=100)
    monkeypatch.setenv("GRAPHWRIGHT_CHECK", "0")
    assert not should_check(program)
    monkeypatch.setenv("GRAPHWRIGHT_CHECK", "1")
    assert should_check(program, limit_bytes=100)
    monkeypatch.setenv("GRAPHWRIGHT_CHECK", "yes")
    with pytest.raises(PassError, match="must be 0 or 1, not 'yes'"):
        should_check(program)
