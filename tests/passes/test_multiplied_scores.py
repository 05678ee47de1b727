"""Masks that multiply scores by 0 or 1, and add what hides those that became zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from graphs import fire
from small_decoders import SIZE, Masks, check_decoder, small_decoder

from graphwright.ir import PassError
from graphwright.passes.recognize_attention import RecognizeAttention

aten = torch.ops.aten
mul, add = aten.mul.Tensor, aten.add.Tensor


def marks(condition: Any) -> Any:
    return aten._to_copy.default(condition, dtype=torch.float32)


def others(ones: Any) -> Any:
    return add(aten.neg.default(ones), 1)


def decoder(scores: Callable[[Any, Masks], Any]) -> Any:
    def core(q: Any, k: Any, v: Any, m: Masks) -> Any:
        products = aten.matmul.default(q, aten.permute.default(k, [0, 1, 3, 2]))
        products = aten.div.Tensor(products, SIZE**0.5)
        return aten.matmul.default(aten.softmax.int(scores(products, m), -1), v)

    return small_decoder(core)


def plain(x: Any, m: Masks) -> Any:
    ones = marks(m.causal)
    return add(mul(x, ones), mul(others(ones), -1e4))


def windowed(x: Any, m: Masks) -> Any:
    ones = marks(m.window(5))
    return aten.sub.Tensor(mul(ones, x), mul(others(ones), 1e9))


def scaled_later(x: Any, m: Masks) -> Any:
    return mul(windowed(x, m), 0.5)


def biased_before(x: Any, m: Masks) -> Any:
    """ALiBi is multiplied, too."""
    return plain(add(x, mul(aten.sub.Tensor(m.key, m.query), 0.25)), m)


def hidden_twice(x: Any, m: Masks) -> Any:
    return plain(aten.masked_fill.Scalar(x, aten.logical_not.default(m.window(7)), -1e30), m)


SOUND: dict[str, tuple[Callable[[Any, Masks], Any], str]] = {
    "plain": (plain, "causal"),
    "windowed": (windowed, "causal & window(5)"),
    "scaled later": (scaled_later, "causal & window(5)"),
    "biased before": (biased_before, "causal"),
    "hidden twice": (hidden_twice, "causal & window(7)"),
}


@pytest.mark.parametrize("name", SOUND)
def test_scores_that_become_zero_are_hidden(name: str) -> None:
    scores, mask = SOUND[name]
    program = decoder(scores)
    assert check_decoder(program, RecognizeAttention()) == [1]
    (node,) = [n for n in program.graph.nodes if n.target is torch.ops.gw.attention.default]
    assert node.kwargs["mask"] == mask
    assert node.kwargs["scale"] == pytest.approx(SIZE**-0.5 * (0.5 if "later" in name else 1))


def not_added(x: Any, m: Masks) -> Any:
    return mul(x, marks(m.causal))


def too_little(x: Any, m: Masks) -> Any:
    ones = marks(m.causal)
    return add(mul(x, ones), mul(others(ones), -100.0))


def hidden_before(x: Any, m: Masks) -> Any:
    """What is added first is multiplied, too."""
    ones = marks(m.causal)
    return mul(add(x, mul(others(ones), -1e4)), ones)


def too_little_of_it(x: Any, m: Masks) -> Any:
    """The scale makes it less."""
    return mul(plain(x, m), 0.125)


def halves(x: Any, m: Masks) -> Any:
    ones = marks(m.causal)
    return add(mul(x, mul(ones, 0.5)), mul(others(ones), -1e4))


def added_to_all(x: Any, m: Masks) -> Any:
    """Beside scores that are as low themselves, a score of zero is seen."""
    ones = marks(m.causal)
    return add(mul(x, ones), mul(add(mul(ones, 0), 1), -1e4))


def near(x: Any, m: Masks) -> Any:
    """Hidden is less than what is multiplied by zero."""
    hidden = aten.masked_fill.Scalar(marks(m.causal), aten.logical_not.default(m.causal), -1e9)
    return add(mul(x, marks(m.window(9))), hidden)


def falling(x: Any, m: Masks) -> Any:
    return plain(mul(x, aten.mul.Tensor(marks(m.causal), marks(m.key))), m)


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        (not_added, "what is added to them does not hide these keys"),
        (too_little, "what is added to them does not hide these keys"),
        (hidden_before, "what is added to them does not hide these keys"),
        (too_little_of_it, "what is added to them does not hide these keys"),
        (added_to_all, "zero, such as that of query 0 and key 1, .* does not hide these keys"),
        (near, "zero, such as that of query 9 and key 0, .* does not hide these keys"),
        (halves, r"multiplies scores by other numbers than 0 and 1, such as 0\.5"),
        (falling, "multiplies scores by other numbers than 0 and 1, such as 2"),
    ],
)
def test_near_misses_are_refused(scores: Callable[[Any, Masks], Any], reason: str) -> None:
    with pytest.raises(PassError, match=reason):
        fire(decoder(scores), RecognizeAttention())


def test_a_factor_for_each_head_or_by_content_is_left() -> None:
    def by_head(x: Any, m: Masks) -> Any:
        heads = aten.reshape.default(aten.arange.default(4), [1, 4, 1, 1])
        return plain(mul(x, heads), m)

    def by_content(x: Any, m: Masks) -> Any:
        return plain(mul(x, aten.unsqueeze.default(aten.ne.Scalar(m.tokens, 1), 0)), m)

    for scores in (by_head, by_content):
        counts, misses = fire(decoder(scores), RecognizeAttention())
        assert counts == [0]
        assert "multiplies the scores by something that is no constant" in misses[0]
