"""Code that begins before the launches in front of it have ended waits before it needs them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
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
from graphwright.backends.triton.kernels.kernel import TritonKernel

GPU = Path(__file__).parents[3] / "benchmarks" / "gpu"
BF16 = torch.bfloat16
FEW = Product(1, 44, 1024, "w4g128", BF16, few=FewRows(16, 2))


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(GPU))
    yield import_module("waits")
    sys.modules.pop("waits", None)


def compiled(
    monkeypatch: pytest.MonkeyPatch, early: Callable[[str], frozenset[str]], trigger: bool = False
) -> None:
    """Kernels of the interpreter's tests run as code that waits before others than early(name)."""
    waiting = import_module("waits").waiting

    def call(kernel: TritonKernel, *tensors: torch.Tensor) -> None:
        own = early(kernel.name)
        change = partial(waiting, trigger=trigger, early=own)
        ptx_harness.call(kernel, *tensors, capability=90, change=change, early=own)

    for cases in (products, attention, heads):
        monkeypatch.setattr(cases, "call", call)


def check_kernels() -> None:
    FEW.check()
    Product(1, 11, 2432, None, BF16, vector=2).check()
    Product(1, 22, 1160, None, BF16, vector=2, norm=True, gate=(11, 0), activation="silu").check()
    Product(20, 40, 384, "w4g128", BF16, norm=True, gate=(0, 20), activation="silu").check()
    heads.CASES[0].check()
    heads.CASES[3].check()
    attention.test_attention_over_ragged_batches_is_its_op(
        attention.Case(4, 2, 32, 16, dtype=BF16, cache=BF16)
    )


@pytest.mark.parametrize("trigger", [False, True])
def test_kernels_wait_for_what_others_wrote(
    monkeypatch: pytest.MonkeyPatch, waits: Any, trigger: bool
) -> None:
    """Nothing else is read or written before."""
    compiled(monkeypatch, lambda name: waits.CONSTANT, trigger)
    check_kernels()


def test_what_is_older_than_the_launch_in_front_is_read_before(
    monkeypatch: pytest.MonkeyPatch, waits: Any
) -> None:
    compiled(monkeypatch, waits.early_of, True)
    check_kernels()
    residual = Product(1, 11, 2432, None, BF16, vector=1)
    for case, name in ((FEW, "weight"), (heads.CASES[0], "weight"), (residual, "residual")):
        for cases in (products, heads):
            monkeypatch.setattr(cases, "call", early_call(waits, name))
        with pytest.raises(PtxError, match=f"'{name}' is read before a wait"):
            case.check()


def early_call(waits: Any, name: str) -> Callable[..., None]:
    """Code that may read `name` early, on a machine that does not know."""

    def call(kernel: TritonKernel, *tensors: torch.Tensor) -> None:
        own = waits.early_of(kernel.name)
        change = partial(waits.waiting, trigger=True, early=own)
        ptx_harness.call(kernel, *tensors, capability=90, change=change, early=own - {name})

    return call


def test_a_wait_that_is_missing_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        products, "call", partial(ptx_harness.call, capability=90, early=frozenset({"weight"}))
    )
    with pytest.raises(PtxError, match="is read before a wait"):
        FEW.check()
