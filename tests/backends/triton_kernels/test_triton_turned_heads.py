"""Products that rotate their queries and keys and append to the cache, in Triton's interpreter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graphwright.ir.op import get_op
from graphwright.ir.schemes import dequantize, quantize_activation, quantize_weight
from graphwright.ir.tolerance import check_close

pytest.importorskip("triton")

from triton_harness import batch_header, call, untouched

from graphwright.backends.triton.kernels.few_rows import FewRows, few_rows
from graphwright.backends.triton.kernels.gemv import gemv, gemv_scratch
from graphwright.backends.triton.kernels.linear import Tiles, linear
from graphwright.backends.triton.kernels.one_row import OneRow, one_row
from graphwright.backends.triton.kernels.turned_heads import TurnedHeads
from graphwright.backends.triton.kernels.weight_format import (
    WeightFormat,
    pack_nibbles,
)

BLOCK = 4  # places of a block of the cache
BF16, F16 = torch.bfloat16, torch.float16


@dataclass(frozen=True)
class Heads:
    """by: the kernel's sizes, for one row the parts of the inputs of `gemv`. one_angle: all rows
    have the same cos and sin.
    """

    rows: int
    heads: int
    kv_heads: int
    dim: int
    value_dim: int
    rotary: int
    by: Tiles | FewRows | OneRow | int
    interleaved: bool = False
    inputs: int = 64
    scheme: str | None = None
    dtype: torch.dtype = torch.float32
    cache: torch.dtype = torch.float32
    norm: bool = False
    bias: bool = True
    integer: bool = False
    one_angle: bool = False

    def check(self) -> None:
        torch.manual_seed(self.rows + self.dim)
        rows, k = self.rows, self.inputs
        name = str(self.dtype).removeprefix("torch.")
        room = self.kv_heads * BLOCK * (self.dim + self.value_dim) + 8
        turn = TurnedHeads(
            self.heads, self.kv_heads, self.dim, self.value_dim, self.rotary, self.interleaved,
            0 if self.one_angle else self.rotary + 1, BLOCK, room,
            cache=str(self.cache).removeprefix("torch."),
        )  # fmt: skip
        n = turn.sums
        x, weight = torch.randn(rows, k).to(self.dtype), torch.randn(n, k) * k**-0.5
        format, operands = WeightFormat.dense(name), [weight.to(self.dtype)]
        real = operands[0].float()
        if self.scheme is not None:
            format = WeightFormat.of(self.scheme)
            values, *rest = quantize_weight(weight, self.scheme)
            packed = pack_nibbles(values, self.scheme) if format.kind == "w4" else values
            operands, real = [packed, *rest], dequantize(values, *rest)
        bias, scales = torch.randn(n), torch.rand(k).to(self.dtype) + 0.5
        angle = torch.randn(1 if self.one_angle else rows, self.rotary + 1)
        slots = torch.randperm(6 * BLOCK)[:rows].to(torch.int32)
        inputs, source = [x], x.float()
        if self.norm:
            source = get_op("rms_norm").reference(source, scales.float(), eps=1e-3)
        if self.integer:
            inputs = list(quantize_activation(x, operands[1].shape[1]))
            source = dequantize(*inputs)
        sums = get_op("linear").reference(
            source, real, bias if self.bias else None, None, activation="none"
        )
        parts = sums.split([n - (turn.sums - self.heads * self.dim), self.kv_heads * self.dim,
                            self.kv_heads * self.value_dim], dim=1)  # fmt: skip
        q, key, value = (
            part.view(rows, -1, dim)
            for part, dim in zip(parts, (self.dim, self.dim, self.value_dim), strict=True)
        )
        turns = [made[:, : self.rotary].expand(rows, -1) for made in (angle.cos(), angle.sin())]
        q, key = (
            get_op("rope").reference(each, *turns, interleaved=self.interleaved)
            for each in (q, key)
        )
        memory = untouched((6 * room,), self.cache)
        want = memory.clone().view(6, room)
        end = self.kv_heads * BLOCK * self.dim
        for part, start in ((key, 0), (value, end)):
            size = self.kv_heads * BLOCK * part.shape[2]
            kept = want[:, start : start + size].view(6, self.kv_heads, BLOCK, part.shape[2])
            kept[(slots // BLOCK).long(), :, (slots % BLOCK).long()] = part.to(self.cache)
        out = untouched((rows + 1, self.heads, self.dim), self.dtype)
        kernel, sizes = self._kernel(turn, format, k, name)
        counters = torch.zeros(sizes[1] // 4, dtype=torch.int32)
        scratch = [untouched((sizes[0] // 4,)), counters] if sizes[1] else []
        call(
            kernel, batch_header(rows), *inputs, *operands, *([scales] * self.norm),
            *([bias] * self.bias), angle.cos(), angle.sin(), slots, *scratch, out, memory,
            memory[end:],
        )  # fmt: skip
        assert not counters.any()
        check_close(out[:rows], q.to(self.dtype))
        assert out[rows].isnan().all()
        found = memory.view(6, room)
        assert torch.equal(found.isnan(), want.isnan())  # nothing else was written
        narrow = self.dtype if self.cache == torch.float32 else self.cache
        check_close(found.nan_to_num().to(narrow), want.nan_to_num().to(narrow))

    def _kernel(
        self, turn: TurnedHeads, format: WeightFormat, k: int, name: str
    ) -> tuple[Any, tuple[int, int]]:
        ends: dict[str, Any] = {
            "turn": turn, "dtype": name, "norm": name if self.norm else None, "eps": 1e-3,
            "bias": "float32" if self.bias else None,
        }  # fmt: skip
        if isinstance(self.by, OneRow):
            return one_row(turn.sums, k, format, self.by, **ends), (0, 0)
        if isinstance(self.by, FewRows):
            assert not self.norm
            del ends["norm"], ends["eps"]
            made = few_rows(turn.sums, k, format, self.by, self.rows, x_stride=k, **ends)
            return made, (0, 0)
        if isinstance(self.by, Tiles):
            made = linear(turn.sums, k, format, self.by, x_stride=k, integer=self.integer, **ends)
            return made, self.by.scratch_bytes(self.rows + 3, turn.sums)
        made = gemv(turn.sums, k, format, self.by, **ends)
        return made, gemv_scratch(turn.sums, format, self.by, name)


SMALL = Tiles(16, 16, 32, num_stages=1)
CASES = [
    Heads(1, 4, 2, 16, 16, 16, 1, dtype=BF16, cache=BF16),
    Heads(1, 3, 1, 24, 10, 16, 2, inputs=4160, dtype=BF16, norm=True),
    Heads(1, 2, 2, 80, 80, 32, 1, scheme="w8g32", inputs=160, interleaved=True),
    Heads(1, 4, 1, 64, 32, 64, OneRow(32, 4, 1, 2), scheme="w4g128", inputs=640, dtype=BF16,
          cache=F16, norm=True),
    Heads(1, 2, 1, 24, 8, 8, OneRow(16, 8), scheme="w4g32z", inputs=96, dtype=F16, bias=False),
    Heads(7, 2, 1, 40, 40, 40, FewRows(64, 4), scheme="w4g128", inputs=256, dtype=BF16, cache=BF16),
    Heads(13, 1, 1, 32, 32, 16, FewRows(16, 2), scheme="w4g64", inputs=128, dtype=BF16,
          interleaved=True),
    Heads(5, 2, 1, 16, 24, 16, SMALL, one_angle=True),
    Heads(18, 2, 1, 24, 16, 12, Tiles(32, 32, 32, 3, num_stages=1), inputs=384, norm=True,
          dtype=BF16, cache=BF16),
    Heads(3, 2, 1, 16, 16, 16, Tiles(16, 16, 32, 2, num_stages=1), inputs=256, scheme="w8g32",
          integer=True),
    Heads(20, 2, 1, 64, 64, 64, Tiles(64, 64, 64, num_stages=1), scheme="w8", dtype=BF16,
          cache=BF16, norm=True),
    Heads(9, 1, 1, 64, 32, 64, Tiles(128, 64, 64, 2, num_stages=1), inputs=512, scheme="w4g128",
          dtype=BF16),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_heads_turn_and_are_where_attention_reads_them(case: Heads) -> None:
    case.check()


@settings(max_examples=8, deadline=None)
@given(
    st.integers(1, 17), st.integers(1, 3), st.integers(1, 2), st.integers(1, 20),
    st.integers(1, 20), st.integers(0, 20), st.booleans(), st.booleans(),
)  # fmt: skip
def test_heads_of_any_size(
    rows: int, heads: int, kv_heads: int, dim: int, value_dim: int, rotary: int,
    interleaved: bool, norm: bool,
) -> None:  # fmt: skip
    sizes = (2 * dim, 2 * value_dim, 2 * min(rotary, dim))
    Heads(rows, heads, kv_heads, *sizes, SMALL, interleaved, norm=norm).check()
    Heads(1, heads, kv_heads, *sizes, 1, interleaved, norm=norm).check()


def test_a_product_holds_nothing_but_heads() -> None:
    turn = TurnedHeads(2, 1, 16, 16, 16, False, 16, 16, 1024)
    format = WeightFormat.dense("bfloat16")
    with pytest.raises(AssertionError):
        linear(80, 64, format, SMALL, x_stride=64, turn=turn)
    with pytest.raises(AssertionError):
        linear(64, 64, format, SMALL, x_stride=64, turn=turn, activation="silu")
    with pytest.raises(AssertionError):  # whose scales are of whole heads
        TurnedHeads(2, 1, 16, 16, 16, False, 16, 16, 1024, cache="int8")
