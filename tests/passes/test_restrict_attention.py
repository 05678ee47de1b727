"""restrict-attention: layers see what a user says, of what the model shows them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import fire
from hypothesis import given
from hypothesis import strategies as st
from small_decoders import SIZE, Masks, small_decoder

from graphwright.ir import Mask, PassError, Program, format_graph
from graphwright.ir.interpreter import run_program
from graphwright.ir.tolerance import check_close
from graphwright.passes.base import PassContext
from graphwright.passes.insert_kv_cache import InsertKvCache
from graphwright.passes.recognize_attention import RecognizeAttention
from graphwright.passes.restrict_attention import RestrictAttention, Restriction
from graphwright.passes.running import run_passes
from graphwright.passes.verification import NumericCheck

aten, gw = torch.ops.aten, torch.ops.gw


def layers(*masks: Any) -> Program:
    """Layers of attention, each with one of the masks (functions of Masks)."""

    def attend(q: Any, k: Any, v: Any, m: Masks) -> Any:
        for mask in masks:
            q = aten.scaled_dot_product_attention.default(q, k, v, mask(m))
        return q

    return small_decoder(attend)


def causal(m: Masks) -> Any:
    return m.causal


def window(m: Masks) -> Any:
    return m.window(6)


def shortest(m: Masks) -> Any:
    return m.window(3)


def sinks(m: Masks) -> Any:
    first = aten.bitwise_and.Tensor(m.causal, aten.lt.Scalar(m.key, 2))
    return aten.bitwise_or.Tensor(m.window(4), first)


def restrict(text: str) -> RestrictAttention:
    return RestrictAttention(Restriction.parse(text))


def masks_of(program: Program) -> list[str]:
    return [
        str(node.kwargs["mask"])
        for node in program.graph.nodes
        if node.target is gw.attention.default
    ]


def logits(program: Program, length: int) -> torch.Tensor:
    tokens = torch.arange(length) * 5 % 32
    return run_program(program, {"tokens": tokens, "positions": torch.arange(length)})


def test_it_is_the_model_with_that_mask() -> None:
    """Of as many tokens as the window holds it is the same model, and of more another one: that
    which a dense mask of positions makes."""
    program, whole = layers(causal, window), layers(causal, window)
    counts, _ = fire(program, RecognizeAttention(), restrict("window(4) | first(2) @ 0"))
    assert counts == [2, 1]
    assert masks_of(program) == ["causal & (window(4) | first(2))", "causal & window(6)"]
    assert (
        "%attention_1 : f32[T, 4, 8] = gw.attention(%reshape_1, %reshape_2, %reshape_3, "
        '%positions, None, None, mask="causal & (window(4) | first(2))", '
        f"scale={SIZE**-0.5}, softcap=0.0)"
    ) in format_graph(program)
    check_close(logits(program, 4), logits(whole, 4), "reassociating")
    assert not torch.allclose(logits(program, 20), logits(whole, 20), atol=1e-3)
    check_close(logits(program, 20), logits(layers(sinks, window), 20), "reassociating")


def test_caches_know_what_is_read() -> None:
    program = layers(causal)
    counts, _ = fire(program, RecognizeAttention(), restrict("window(4)|first(2)"), InsertKvCache())
    assert counts == [1, 1, 1]
    (state,) = program.states
    assert getattr(state, "mask", None) == Mask(window=4, first=2)


def test_layers_that_are_not_meant_or_see_no_more_stay() -> None:
    program = layers(causal, window, shortest)
    counts, misses = fire(program, RecognizeAttention(), restrict("window(4) @ 1-2"))
    assert counts == [3, 1]
    assert masks_of(program) == ["causal", "causal & window(4)", "causal & window(3)"]
    assert [miss.partition(" of layer ")[2] for miss in misses] == [
        "2 sees no more: 'causal & window(3)'."
    ]
    counts, misses = fire(program, restrict("window(4) @ 1-2"))
    assert counts == [0] and len(misses) == 2
    assert fire(program, RestrictAttention())[0] == [0]


def test_what_follows_is_compared_with_what_it_made() -> None:
    program = layers(causal)
    steps = (RecognizeAttention(), restrict("window(3)"), InsertKvCache())
    run_passes(program, steps, PassContext(check=NumericCheck()))
    verified = {record.name: record.verified for record in program.log}
    assert verified["restrict-attention"] is None
    assert verified["recognize-attention"] is not None and verified["insert-kv-cache"] is not None
    assert program.log[-2].notes == [
        "1 of 1 attention layers see 'causal & window(3)' only, as was asked: this is another model"
    ]


def test_what_cannot_be() -> None:
    with pytest.raises(PassError, match=r"of layer 0 has the mask 'causal & window\(6\)', and no"):
        fire(layers(window), RecognizeAttention(), restrict("window(4) | first(2)"))
    with pytest.raises(PassError, match=r"attention of layer 3 .* there are 1 layers of attention"):
        fire(layers(causal), RecognizeAttention(), restrict("window(4) @ 0,2-3"))


@pytest.mark.parametrize(
    ("text", "mask", "means"),
    [
        ("window(1024)", Mask(window=1024), range(9)),
        ("window(8) | first(4)", Mask(window=8, first=4), range(9)),
        ("causal & (window(8)|first(4))@0-3,5", Mask(window=8, first=4), [0, 1, 2, 3, 5]),
        (" chunk(16) @ 7 ", Mask(chunk=16), [7]),
    ],
)
def test_what_is_asked(text: str, mask: Mask, means: list[int]) -> None:
    found = Restriction.parse(text)
    assert found.mask == mask and [i for i in range(9) if found.means(i)] == list(means)


@given(st.integers(1, 99), st.integers(0, 9))
def test_a_mask_as_the_graph_prints_it_is_read(window: int, first: int) -> None:
    mask = Mask(window=window, first=first)
    assert Restriction.parse(str(mask)).mask == mask


@pytest.mark.parametrize(
    "text",
    ["", "causal", "window", "window(0)", "window(-1)", "first(4)", "chunk(0)", "window(4) @",
     "window(4) @ x", "window(4) & chunk(8)", "4"],
)  # fmt: skip
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(PassError, match="is nothing that attention can be restricted to: say 'win"):
        Restriction.parse(text)


@pytest.mark.parametrize("text", ["3-1", ",", "1,-", "--", "1-2-3"])
def test_layers_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(
        PassError, match=r"is no layer and no range of layers|nothing that attention"
    ):
        Restriction.parse(f"window(4) @ {text}")
