"""Code that begins before the launches in front of it have ended waits before it needs them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import ptx_harness
import test_triton_attention as attention
import test_triton_linear as products
import test_triton_turned_heads as heads
from ptx_memory import PtxError
from test_triton_linear import Product

from graphwright.backends.triton.kernels.few_rows import FewRows

GPU = Path(__file__).parents[3] / "benchmarks" / "gpu"
BF16 = torch.bfloat16
FEW = Product(1, 44, 1024, "w4g128", BF16, few=FewRows(16, 2))


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(GPU))
    yield import_module("waits")
    sys.modules.pop("waits", None)


def compiled(
    monkeypatch: pytest.MonkeyPatch, waits: Any, early: frozenset[str], trigger: bool = False
) -> None:
    """Kernels of the interpreter's tests run as code that waits, which may read `early` before."""
    call = partial(
        ptx_harness.call, capability=90, change=partial(waits.waiting, trigger=trigger), early=early
    )
    for cases in (products, attention, heads):
        monkeypatch.setattr(cases, "call", call)


@pytest.mark.parametrize("trigger", [False, True])
def test_products_and_attention_wait_for_what_others_wrote(
    monkeypatch: pytest.MonkeyPatch, waits: Any, trigger: bool
) -> None:
    compiled(monkeypatch, waits, waits.CONSTANT, trigger)
    FEW.check()
    Product(1, 22, 1160, None, BF16, vector=2, norm=True, gate=(11, 0), activation="silu").check()
    Product(20, 40, 384, "w4g128", BF16, norm=True, gate=(0, 20), activation="silu").check()
    heads.CASES[0].check()
    heads.CASES[3].check()
    attention.test_attention_over_ragged_batches_is_its_op(
        attention.Case(4, 2, 32, 16, dtype=BF16, cache=BF16)
    )


def test_weights_are_on_their_way_before(monkeypatch: pytest.MonkeyPatch, waits: Any) -> None:
    compiled(monkeypatch, waits, frozenset())
    with pytest.raises(PtxError, match="'weight' is read before a wait"):
        FEW.check()


def test_a_wait_that_is_missing_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        products, "call", partial(ptx_harness.call, capability=90, early=frozenset({"weight"}))
    )
    with pytest.raises(PtxError, match="is read before a wait"):
        FEW.check()
