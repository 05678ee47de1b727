"""Masks recognised by what they evaluate to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import fire
from small_decoders import HEADS, Masks, check_decoder, small_decoder

from graphwright.ir import PassError
from graphwright.passes.recognize_attention import RecognizeAttention

aten = torch.ops.aten
both = aten.bitwise_and.Tensor


def decoder(mask: Any, **options: Any) -> Any:
    return small_decoder(
        lambda q, k, v, m, **extra: aten.scaled_dot_product_attention.default(
            q, k, v, mask(m, **extra)
        ),
        **options,
    )


def recognised(mask: Any, **options: Any) -> str:
    program = decoder(mask, **options)
    assert check_decoder(program, RecognizeAttention()) == [1]
    (node,) = [n for n in program.graph.nodes if n.target is torch.ops.gw.attention.default]
    return str(node.kwargs["mask"])


def refusal(mask: Any, **options: Any) -> str:
    with pytest.raises(PassError) as error:
        fire(decoder(mask, **options), RecognizeAttention())
    return str(error.value)


def chunk(m: Masks, size: int) -> Any:
    blocks = [aten.floor_divide.default(x, size) for x in (m.query, m.key)]
    return aten.eq.Tensor(*blocks)


@pytest.mark.parametrize("from_positions", [True, False])
@pytest.mark.parametrize("size", [1, 5, 8, 63, 64, 65, 200])
def test_windows(size: int, from_positions: bool) -> None:
    found = recognised(lambda m: m.window(size), from_positions=from_positions)
    assert found == f"causal & window({size})"


def test_a_window_longer_than_the_context_is_none() -> None:
    assert recognised(lambda m: m.window(256), max_context=256) == "causal"


def test_long_windows_are_found_without_square_matrices() -> None:
    assert recognised(lambda m: m.window(4096), max_context=131072) == "causal & window(4096)"
    assert recognised(lambda m: m.window(32768), max_context=131072) == "causal & window(32768)"


def test_a_window_that_no_constant_gives_away() -> None:
    """The window is in a table of the model, as older decoders have it."""
    table = torch.ones(512, 512, dtype=torch.bool).tril() & torch.ones(512, 512).triu(-99).bool()

    def mask(m: Masks, bias: Any) -> Any:
        return aten.slice.Tensor(aten.slice.Tensor(bias, 0, 0, m.length), 1, 0, m.length)

    assert recognised(mask, bias=table, max_context=512) == "causal & window(100)"


def test_a_table_that_is_shorter_than_the_context_is_an_error() -> None:
    def mask(m: Masks, bias: Any) -> Any:
        return aten.slice.Tensor(aten.slice.Tensor(bias, 0, 0, m.length), 1, 0, m.length)

    table = torch.ones(512, 512, dtype=torch.bool).tril()
    reason = refusal(lambda m, bias: both(m.causal, mask(m, bias)), bias=table, max_context=None)
    assert "cannot be evaluated for 8192 tokens" in reason and "max_context" in reason


def test_triangles() -> None:
    def mask(m: Masks) -> Any:
        ones = aten.new_ones.default(m.key, [m.length, m.length], dtype=torch.bool)
        return aten.tril.default(ones)

    assert recognised(mask) == "causal"


@pytest.mark.parametrize("size", [3, 64, 100])
def test_chunks(size: int) -> None:
    assert recognised(lambda m: both(m.causal, chunk(m, size))) == f"causal & chunk({size})"


def test_combinations() -> None:
    def keeping_first(m: Masks) -> Any:
        first = aten.bitwise_or.Tensor(m.window(6), aten.lt.Scalar(m.key, 3))
        return both(m.causal, first)

    assert recognised(keeping_first) == "causal & (window(6) | first(3))"
    assert recognised(lambda m: both(m.window(6), chunk(m, 16))) == "causal & window(6) & chunk(16)"


def alibi(m: Masks, slopes: Any, dtype: torch.dtype = torch.float32) -> Any:
    bias = aten.mul.Tensor(
        aten._to_copy.default(aten.reshape.default(slopes, [HEADS, 1, 1]), dtype=dtype), m.key
    )
    bias = aten._to_copy.default(bias, dtype=torch.float32)
    return aten.masked_fill.Scalar(bias, aten.logical_not.default(m.causal), float("-inf"))


def test_alibi_slopes_become_a_weight() -> None:
    slopes = torch.tensor([0.5, 0.3, 0.125, 0.01])
    program = decoder(alibi, slopes=slopes)
    assert check_decoder(program, RecognizeAttention()) == [1]
    (node,) = [n for n in program.graph.nodes if n.target is torch.ops.gw.attention.default]
    torch.testing.assert_close(program.weights[node.args[4].target].load(), slopes)


def test_a_rounded_bias_is_refused_where_the_rounding_shows() -> None:
    slopes = torch.tensor([0.5, 0.25, 0.125, 0.0625])

    def rounded(m: Masks, slopes: Any) -> Any:
        return alibi(m, slopes, torch.bfloat16)

    assert recognised(rounded, slopes=slopes, max_context=256) == "causal"
    reason = refusal(rounded, slopes=slopes, max_context=1024)
    assert "(rounded to torch.bfloat16 at" in reason and "is no ALiBi bias" in reason


def added(m: Masks, keep: Any, lowest: float, steep: float = 0.0) -> Any:
    """`lowest` where hidden, and elsewhere `steep` times the distance."""
    bias = aten._to_copy.default(aten.sub.Tensor(m.key, m.query), dtype=torch.float32)
    return aten.masked_fill.Scalar(
        aten.mul.Tensor(bias, steep), aten.logical_not.default(keep), lowest
    )


@pytest.mark.parametrize("lowest", [-1e4, -1e9])
def test_a_finite_bias_hides_keys(lowest: float) -> None:
    assert recognised(lambda m: added(m, m.causal, lowest)) == "causal"
    assert recognised(lambda m: added(m, m.window(5), lowest)) == "causal & window(5)"
    assert recognised(lambda m: added(m, m.causal, lowest, 0.5), max_context=256) == "causal"


def test_a_slope_may_fall_below_what_hides() -> None:
    """10,000 tokens back such a key has no weight either: 5,000 lower than the query's own."""
    steep = 0.5
    far = recognised(lambda m: added(m, m.causal, -1e9, steep), max_context=32768)
    assert far == "causal"
    near = recognised(lambda m: added(m, m.causal, -1e4, steep), max_context=32768)
    assert near == "causal & window(10001)"


def test_a_bias_that_hides_too_little_is_refused() -> None:
    text = refusal(lambda m: added(m, m.causal, -5e3))
    assert "is not causal: query 0 sees key 1" in text


def test_a_mask_that_sees_later_tokens_is_refused() -> None:
    near = refusal(lambda m: aten.lt.Scalar(aten.abs.default(aten.sub.Tensor(m.query, m.key)), 3))
    assert "is not causal: query 0 sees key 1, a later token" in near
    assert "\n    111.......\n    1111......\n" in near


def test_a_mask_that_shows_no_key_is_refused() -> None:
    """A window of no width: configurations that halve a window of one have it."""
    text = refusal(lambda m: m.window(0))
    assert "shows no key at all to query 0" in text
    assert "\n    ..........\n" in text


def test_a_mask_that_hides_its_own_key_is_refused() -> None:
    first = refusal(lambda m: aten.lt.Tensor(m.key, m.query))
    assert "shows no key at all to query 0" in first
    later = refusal(lambda m: both(m.causal, aten.bitwise_or.Tensor(
        aten.eq.Scalar(m.query, 0), aten.lt.Tensor(m.key, m.query))))  # fmt: skip
    assert "is not in the mask algebra" in later


def test_a_mask_outside_the_algebra_is_shown() -> None:
    def dilated(m: Masks) -> Any:
        distance = aten.remainder.Scalar(aten.sub.Tensor(m.query, m.key), 2)
        return both(m.causal, aten.eq.Scalar(distance, 0))

    text = refusal(dilated)
    assert "is not in the mask algebra (causal, window, first, chunk)" in text
    assert "\n    1.........\n    .1........\n    1.1.......\n" in text


def test_a_mask_that_changes_beyond_its_first_tokens_is_refused() -> None:
    """A second window, from position 150 on."""

    def mask(m: Masks) -> Any:
        early = aten.lt.Scalar(m.query, 150)
        return both(m.causal, aten.bitwise_or.Tensor(early, m.window(20)))

    assert "the attention mask" in refusal(mask)


def test_a_bias_that_is_not_linear_is_refused() -> None:
    def mask(m: Masks) -> Any:
        squared = aten.mul.Tensor(m.key, m.key)
        bias = aten._to_copy.default(squared, dtype=torch.float32)
        return aten.masked_fill.Scalar(bias, aten.logical_not.default(m.causal), float("-inf"))

    assert "is no ALiBi bias" in refusal(mask)
