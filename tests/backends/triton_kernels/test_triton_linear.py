"""Matrix products by weights of every format, in Triton's interpreter, against their ops."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graphwright.ir.op import get_op
from graphwright.ir.schemes import dequantize, quantize_activation, quantize_weight
from graphwright.ir.tolerance import check_close

triton = pytest.importorskip("triton")

from triton_harness import batch_header, call, untouched  # noqa: E402

from graphwright.backends.triton.kernels.gemv import gemv, gemv_splits  # noqa: E402
from graphwright.backends.triton.kernels.linear import (  # noqa: E402
    Tiles,
    combine_products,
    linear,
    tiles_for,
)
from graphwright.backends.triton.kernels.quantize_rows import quantize_rows  # noqa: E402
from graphwright.backends.triton.kernels.weight_format import (  # noqa: E402
    WeightFormat,
    pack_nibbles,
)

SCHEMES = ["w8", "w8g32", "w8g128", "w4g32", "w4g64", "w4g128", "w4g32z", "w4g128z"]


@dataclass(frozen=True)
class Product:
    """A product with bias and residual; scheme None for dense weights of the activations' type."""

    rows: int
    n: int
    k: int
    scheme: str | None = None
    dtype: torch.dtype = torch.float32
    integer: bool = False
    tiles: Tiles | None = None
    vector: int = 0  # splits of a product of one row, 0: not by the kernel for one
    activation: str = "none"

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
        out = untouched((rows + 1, n), self.dtype)
        ends = {"bias": "float32", "residual_stride": n, "activation": self.activation}
        if self.vector:
            tiles = replace(tiles, splits=self.vector)
            kernel = gemv(
                n, k, format, self.vector, bias="float32", residual=True,
                activation=self.activation, dtype=name, most=rows + 3,
            )  # fmt: skip
        else:
            kernel = linear(
                n, k, format, tiles, x_stride=k, integer=self.integer, dtype=name, most=rows + 3,
                **ends,  # type: ignore[arg-type]
            )  # fmt: skip
        batch = batch_header(rows)
        if tiles.splits == 1:
            call(kernel, batch, *inputs, *operands, bias, residual, out)
        else:
            partial = untouched((tiles.splits, rows + 3, n))
            call(kernel, batch, *inputs, *operands, partial)
            kernel = combine_products(
                n,
                tiles.splits,
                most=rows + 3,
                dtype=name,
                **ends,  # type: ignore[arg-type]
            )
            call(kernel, batch, partial, bias, residual, out)
        if self.integer and self.scheme is not None:
            zero = operands[2] if format.zero else None
            want = get_op("quantized_linear").reference(
                x, values, operands[1], bias, residual, zero, scheme=self.scheme,
                activation=self.activation,
            )  # fmt: skip
        else:
            op = get_op("linear").reference
            want = op(x, real, bias, residual, activation=self.activation)
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


@pytest.mark.parametrize("scheme", [None, *SCHEMES])
@pytest.mark.parametrize("splits", [1, 2])
def test_products_of_one_row_are_those_by_the_dequantized_weight(
    scheme: str | None, splits: int
) -> None:
    k = 160 if scheme and "g32" in scheme else 192 if scheme == "w4g64" else 384
    k = k + 2048 * (splits - 1)
    dtype = torch.float32 if scheme else torch.bfloat16
    Product(1, 11, k, scheme, dtype, vector=splits, activation="silu").check()


def test_narrow_products_are_split_and_wide_ones_are_not() -> None:
    format = WeightFormat.of("w4g128")
    assert gemv_splits(1024, 4096, format) == 1
    assert gemv_splits(512, 8192, format) == 2
    assert gemv_splits(4096, 4096, format) == 1


def test_nibbles_lie_where_their_halves_are_consecutive_inputs() -> None:
    values = torch.arange(-8, 8, dtype=torch.int8).repeat(12)[None]  # 192 inputs: padded to 256
    packed = pack_nibbles(values, "w4g64")
    assert packed.shape == (1, 128)
    low, high = (packed & 15).int() - 8, (packed >> 4).int() - 8
    assert torch.equal(low[0, :64], values[0, :64].int())
    assert torch.equal(high[0, :64], values[0, 64:128].int())
    assert torch.equal(low[0, 64:], values[0, 128:].int())
    assert not high[0, 64:].any()
