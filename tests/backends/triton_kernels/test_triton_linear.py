"""Matrix products by weights of every format, in Triton's interpreter, against their ops."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graphwright.ir.op import get_op
from graphwright.ir.schemes import Scheme, dequantize, quantize_activation, quantize_weight
from graphwright.ir.tolerance import check_close

triton = pytest.importorskip("triton")

from triton_harness import batch_header, call, untouched  # noqa: E402

from graphwright.backends.triton.kernels.few_rows import FewRows, few_rows  # noqa: E402
from graphwright.backends.triton.kernels.gemv import (  # noqa: E402
    gemv,
    gemv_scratch,
)
from graphwright.backends.triton.kernels.linear import Tiles, linear, tiles_for  # noqa: E402
from graphwright.backends.triton.kernels.one_row import OneRow, one_row  # noqa: E402
from graphwright.backends.triton.kernels.quantize_rows import quantize_rows  # noqa: E402
from graphwright.backends.triton.kernels.weight_format import (  # noqa: E402
    WeightFormat,
    pack_nibbles,
)
from graphwright.backends.triton.weights import nibbles  # noqa: E402

SCHEMES = ["w8", "w8g32", "w8g128", "w4g32", "w4g64", "w4g128", "w4g32z", "w4g128z"]


@dataclass(frozen=True)
class Product:
    """A product with bias and residual; scheme None for dense weights of the activations' type.

    gate: it is of a gate and what that gates, which begin there, and has no residual. norm: its
    input goes through an RMS norm.
    """

    rows: int
    n: int
    k: int
    scheme: str | None = None
    dtype: torch.dtype = torch.float32
    integer: bool = False
    tiles: Tiles | None = None
    vector: int = 0  # splits of a product of one row, 0: not by the kernel for one
    few: FewRows | OneRow | None = None  # by the kernels for few rows and w4
    activation: str = "none"
    gate: tuple[int, int] | None = None
    norm: bool = False

    def check(self) -> None:
        torch.manual_seed(self.rows)
        rows, n, k = self.rows, self.n, self.k
        name = str(self.dtype).removeprefix("torch.")
        x, residual = (torch.randn(rows, size).to(self.dtype) for size in (k, n))
        weight, bias = torch.randn(n, k) * k**-0.5, torch.randn(n)
        if self.scheme is None:
            format = WeightFormat.dense(name)
            operands = [weight.to(self.dtype)]
            real = operands[0]
        else:
            format = WeightFormat.of(self.scheme)
            values, *rest = quantize_weight(weight, self.scheme)
            packed = pack_nibbles(values, self.scheme) if format.kind == "w4" else values
            operands = [packed, *rest]
            real = dequantize(values, *rest)
        tiles = self.tiles or tiles_for(rows, n, k, format, name)
        inputs = [x]
        if self.integer:
            groups = operands[1].shape[1]
            inputs = [untouched((rows, k), torch.int8), untouched((rows, groups))]
            kernel = quantize_rows(k, x_stride=k, groups=groups, dtype=name)
            call(kernel, batch_header(rows), x, *inputs)
            for got, want in zip(inputs, quantize_activation(x, groups), strict=True):
                assert torch.equal(got, want)
        width = n // 2 if self.gate else n
        out = untouched((rows + 1, width), self.dtype)
        scales = torch.rand(k).to(self.dtype) + 0.5
        ends: dict[str, Any] = {
            "bias": "float32", "activation": self.activation, "gate": self.gate, "dtype": name,
            "norm": name if self.norm else None, "eps": 1e-3,
        }  # fmt: skip
        extra = [scales] * self.norm + [bias] + [residual] * (self.gate is None)
        if isinstance(self.few, OneRow):
            kernel = one_row(n, k, format, self.few, residual=self.gate is None, **ends)
            sizes = (0, 0)
        elif self.few:
            assert not self.norm
            del ends["norm"], ends["eps"]
            kernel = few_rows(
                n, k, format, self.few, rows, x_stride=k,
                residual_stride=None if self.gate else n, **ends,
            )  # fmt: skip
            sizes = (0, 0)
        elif self.vector:
            kernel = gemv(n, k, format, self.vector, residual=self.gate is None, **ends)
            sizes = gemv_scratch(n, format, self.vector, name)
        else:
            stride = None if self.gate else n
            kernel = linear(
                n, k, format, tiles, x_stride=k, integer=self.integer, residual_stride=stride,
                **ends,
            )  # fmt: skip
            sizes = tiles.scratch_bytes(rows + 3, n)
        counters = torch.zeros(sizes[1] // 4, dtype=torch.int32)
        scratch = [untouched((sizes[0] // 4,)), counters] if sizes[1] else []
        call(kernel, batch_header(rows), *inputs, *operands, *extra, *scratch, out)
        assert not counters.any()
        source = x
        if self.norm:
            rms = (x.float().square().mean(-1, keepdim=True) + 1e-3).rsqrt()
            source = (x.float() * rms * scales.float()).to(self.dtype)
        last = "none" if self.gate else self.activation
        added = None if self.gate else residual
        if self.integer and self.scheme is not None:
            zero = operands[2] if format.zero else None
            want = get_op("quantized_linear").reference(
                source, values, operands[1], bias, added, zero, scheme=self.scheme, activation=last
            )
        else:
            want = get_op("linear").reference(source, real, bias, added, activation=last)
        if self.gate:
            gate, up = (want[:, start : start + width] for start in self.gate)
            want = get_op("gated_act").reference(gate, up, activation=self.activation)
        check_close(out[:rows], want)
        assert out[rows].isnan().all()


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 33), st.integers(1, 70), st.integers(1, 130),
       st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
       st.sampled_from(["none", "silu", "gelu_tanh"]))  # fmt: skip
def test_dense_products_are_their_op(
    rows: int, n: int, k: int, dtype: torch.dtype, activation: str
) -> None:
    Product(rows, n, k, dtype=dtype, activation=activation).check()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_products_by_integers_are_those_by_the_dequantized_weight(scheme: str) -> None:
    k = 384 if "g128" in scheme or scheme == "w8" else 160 if "g32" in scheme else 192
    Product(3, 37, k, scheme).check()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_products_of_integers_are_the_op_to_the_last_sum(scheme: str) -> None:
    k = 384 if "g128" in scheme or scheme == "w8" else 160 if "g32" in scheme else 192
    Product(3, 37, k, scheme, integer=True).check()


@pytest.mark.parametrize(
    "product",
    [
        Product(2, 40, 300, tiles=Tiles(32, 16, 32, 3)),
        Product(3, 20, 1024, "w4g128", torch.bfloat16, tiles=Tiles(16, 16, 64, 3)),
        Product(3, 20, 512, "w4g128z", torch.float16, integer=True, tiles=Tiles(16, 16, 64, 2)),
        Product(3, 20, 256, "w8", integer=True, tiles=Tiles(16, 16, 64, 2)),
        Product(19, 40, 300, tiles=Tiles(32, 16, 32, 3), gate=(0, 20), norm=True),
    ],
    ids=str,
)
def test_split_products_are_added_up(product: Product) -> None:
    product.check()


@pytest.mark.parametrize(
    "product",
    [
        Product(70, 37, 256, "w4g128z", torch.bfloat16),
        Product(65, 37, 96, "w4g32", torch.float16),
        Product(70, 37, 128, "w8g32", torch.bfloat16),
        Product(130, 130, 72, None, torch.bfloat16),
    ],
    ids=str,
)
def test_many_rows_take_weights_rounded_to_their_own_type(product: Product) -> None:
    product.check()


@pytest.mark.parametrize(
    "product",
    [
        Product(3, 44, 72, None, torch.bfloat16, gate=(0, 22), norm=True, activation="silu"),
        Product(2, 70, 96, "w4g32z", gate=(35, 0), activation="gelu", norm=True),
        Product(2, 44, 128, "w8g32", torch.bfloat16, norm=True),
        Product(2, 44, 64, "w8", integer=True, gate=(0, 22), activation="relu"),
        Product(
            1, 44, 384, "w4g128", torch.bfloat16, norm=True, gate=(0, 22), few=OneRow(32, 2, 1, 1)
        ),
        Product(1, 44, 96, "w4g32z", torch.bfloat16, norm=True, gate=(22, 0), few=OneRow(16, 2)),
        Product(5, 44, 96, "w4g32z", torch.bfloat16, gate=(22, 0), few=FewRows(16, 2)),
        Product(1, 22, 160, "w8g32", norm=True, gate=(11, 0), vector=1, activation="silu"),
        Product(1, 12, 1400, None, torch.bfloat16, norm=True, vector=2),
    ],
    ids=str,
)
def test_products_norm_what_they_read_and_gate_what_they_write(product: Product) -> None:
    product.check()


@settings(max_examples=8, deadline=None)
@given(
    st.integers(1, 16), st.integers(1, 140), st.integers(1, 12),
    st.sampled_from([name for name in SCHEMES if name.startswith("w4")]),
    st.sampled_from([torch.bfloat16, torch.float16]),
    st.sampled_from([FewRows(16, 4, 2), FewRows(32, 2), FewRows(64, 4)]),
    st.sampled_from(["none", "silu"]),
)  # fmt: skip
def test_few_rows_times_nibbles_are_those_times_the_dequantized_weight(
    rows: int, n: int, groups: int, scheme: str, dtype: torch.dtype, few: FewRows, activation: str
) -> None:
    k = groups * WeightFormat.of(scheme).group
    Product(rows, n, k, scheme, dtype, few=few, activation=activation).check()


@settings(max_examples=8, deadline=None)
@given(
    st.integers(1, 140), st.integers(1, 12),
    st.sampled_from([name for name in SCHEMES if name.startswith("w4")]),
    st.sampled_from([torch.bfloat16, torch.float16]),
    st.sampled_from([OneRow(16, 4), OneRow(32, 2, 1, 3), OneRow(64, 4, 1, 2)]), st.booleans(),
)  # fmt: skip
def test_a_row_times_nibbles_is_that_times_the_dequantized_weight(
    n: int, groups: int, scheme: str, dtype: torch.dtype, one: OneRow, norm: bool
) -> None:
    k = groups * WeightFormat.of(scheme).group
    Product(1, n, k, scheme, dtype, few=one, activation="silu", norm=norm).check()


def test_inputs_of_a_step_have_one_scale() -> None:
    format = WeightFormat.of("w8g32")
    with pytest.raises(AssertionError, match="one scale for a step's inputs"):
        linear(64, 256, format, Tiles(16, 16, 64), x_stride=256)


def test_buckets_of_few_rows_share_kernels() -> None:
    format, shape = WeightFormat.of("w4g128"), FewRows(32, 4)
    made = [few_rows(64, 256, format, shape, most, x_stride=256).name for most in (2, 8, 16)]
    assert made[0] == made[1] != made[2]


@pytest.mark.parametrize("scheme", [None, *(name for name in SCHEMES if name.startswith("w8"))])
@pytest.mark.parametrize("splits", [1, 2])
def test_products_of_one_row_are_those_by_the_dequantized_weight(
    scheme: str | None, splits: int
) -> None:
    k = 160 if scheme == "w8g32" else 384
    k = k + 2048 * (splits - 1)
    dtype = torch.float32 if scheme else torch.bfloat16
    Product(1, 11, k, scheme, dtype, vector=splits, activation="silu").check()


def test_threads_hold_what_tensor_cores_want_of_them() -> None:
    """m16n8k16 takes inputs 2t, 2t+1, 2t+8, 2t+9 of its 16 from lane t of a row's four: of words
    4t..4t+3 each holds two neighbours of four runs of 16 inputs, 16 bits apart.
    """
    torch.manual_seed(0)
    values = torch.randint(-8, 8, (3, 192), dtype=torch.int8)  # padded to 8 rows of 256
    packed = pack_nibbles(values, "w4g64")
    assert packed.shape == (1, 2, 8, 64)
    words = packed.view(torch.int32).reshape(2, 8, 4, 2, 2)[:, :3]  # chunk, row, lane, its words
    padded = torch.nn.functional.pad(values, (0, 64)).int()
    for run in range(8):
        found = words[..., run // 4]
        pair = torch.stack([(found >> 4 * (run % 4) + shift) & 15 for shift in (0, 16)], -1) - 8
        for lane in range(4):
            at = 16 * run + 2 * lane
            inputs = [at, at + 1, at + 8, at + 9]
            assert torch.equal(pair[0, :, lane].reshape(3, 4), padded[:, inputs])
            assert torch.equal(pair[1, :, lane].reshape(3, 4), padded[:, [128 + i for i in inputs]])


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from([(), (1,), (3,)]), st.integers(1, 40), st.integers(1, 9),
    st.sampled_from([name for name in SCHEMES if name.startswith("w4")]), st.integers(0, 9),
)  # fmt: skip
def test_rows_lie_in_octets(
    experts: tuple[int, ...], n: int, groups: int, scheme: str, seed: int
) -> None:
    format = WeightFormat.of(scheme)
    k, low = groups * format.group, 0 if format.zero else -8
    random = torch.Generator().manual_seed(seed)
    values = torch.randint(low, low + 16, (*experts, n, k), generator=random).to(torch.int8)
    packed = pack_nibbles(values, scheme)
    octets, chunks = -(-n // 8), -(-k // 128)
    assert packed.shape == (*experts, octets, chunks, 8, 64)
    size = format.weight_bytes(n, k)
    layout = nibbles(Scheme.parse(scheme), experts=bool(experts))
    assert packed.numel() == math.prod(experts) * size == layout.size(tuple(values.shape))
    pieces = [layout.pack(each).flatten() for each in values.split(layout.rows_multiple)]
    assert packed.flatten().tolist() == [byte for piece in pieces for byte in piece.tolist()]
    data = packed.flatten().tolist()
    for number, matrix in enumerate(values.reshape(-1, n, k).tolist()):
        for row in range(8 * octets):
            start = number * size + row // 8 * 8 * format.row_bytes(k) + row % 8 * 64
            for i in range(128 * chunks):
                run, w, t, v = i % 128 // 16, i // 8 % 2, i // 2 % 4, i % 2
                byte = 4 * (4 * t + 2 * w + run // 4) + 2 * v + run % 4 // 2
                found = data[start + i // 128 * 512 + byte] >> 4 * (run % 2) & 15
                want = matrix[row][i] - low if row < n and i < k else -low
                assert found == want, (number, row, i)
