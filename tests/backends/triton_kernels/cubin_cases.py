"""The kernels that are compiled to cubins by test_triton_cubins.py, by name, in real shapes.

Imported by a process that compiles, without TRITON_INTERPRET.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import scan_steps

from graphwright.backends.triton.kernels.argmax import argmax
from graphwright.backends.triton.kernels.attention_decode import decode_attention
from graphwright.backends.triton.kernels.attention_prefill import (
    prefill_attention,
    prefill_sizes,
)
from graphwright.backends.triton.kernels.attention_tile import AttentionShape
from graphwright.backends.triton.kernels.causal_conv import causal_conv, roll_state
from graphwright.backends.triton.kernels.choose_keys import choose_keys
from graphwright.backends.triton.kernels.draw import draw
from graphwright.backends.triton.kernels.embedding import quantized_embedding
from graphwright.backends.triton.kernels.few_rows import FewRows, few_rows
from graphwright.backends.triton.kernels.float8 import FLOAT8
from graphwright.backends.triton.kernels.gated_act import gated_act
from graphwright.backends.triton.kernels.gemv import gemv
from graphwright.backends.triton.kernels.index_scores import index_scores
from graphwright.backends.triton.kernels.kernel import TritonKernel
from graphwright.backends.triton.kernels.linear import Tiles, linear, tiles_for
from graphwright.backends.triton.kernels.norms import norm
from graphwright.backends.triton.kernels.one_row import OneRow, one_row
from graphwright.backends.triton.kernels.quantize_rows import quantize_rows
from graphwright.backends.triton.kernels.rope import append_keys, rope_append
from graphwright.backends.triton.kernels.routed_groups import routed_groups
from graphwright.backends.triton.kernels.routed_linear import routed_linear, routed_tiles
from graphwright.backends.triton.kernels.select_rows import select_rows
from graphwright.backends.triton.kernels.take_inputs import take_inputs
from graphwright.backends.triton.kernels.token_slots import token_slots
from graphwright.backends.triton.kernels.top_k import top_k
from graphwright.backends.triton.kernels.turned_heads import TurnedHeads
from graphwright.backends.triton.kernels.weight_format import WeightFormat
from graphwright.backends.triton.kernels.weighted_sum import weighted_sum
from graphwright.backends.triton.scans.scan import scan
from graphwright.ir.masks import Mask
from graphwright.ir.scan_step import ScanStep

__all__ = ["CASES", "EVERY", "HOPPER", "kernel_of"]

HALF = "bfloat16"


def attention(
    dim: int, value_dim: int, dtype: str = HALF, cache: str = HALF, **extra: Any
) -> AttentionShape:
    return AttentionShape(
        32, 8, dim, value_dim, q_stride=32 * dim, block_stride=1 << 17, scale=dim**-0.5,
        dtype=dtype, cache=cache, **extra,
    )  # fmt: skip


def make(kernel: Any, dim: int, dtype: str, cache: str) -> TritonKernel:
    shape = attention(dim, dim, dtype, cache)
    made: TritonKernel = kernel(shape, *([16] if kernel is decode_attention else []))
    return made


def product(
    scheme: str | None, rows: int, dtype: str = HALF, integer: bool = False,
    tiles: Tiles | None = None,
) -> TritonKernel:  # fmt: skip
    format = WeightFormat.of(scheme) if scheme else WeightFormat.dense(dtype)
    tiles = tiles or tiles_for(rows, 4096, 4096, format, dtype, integer=integer)
    return linear(4096, 4096, format, tiles, x_stride=4096, integer=integer, bias="float32",
                  residual_stride=4096, activation="silu", dtype=dtype)  # fmt: skip


def gated(scheme: str | None, rows: int) -> TritonKernel:
    """The input normed, as decode does, in parts of which the last program makes one."""
    format = WeightFormat.of(scheme) if scheme else WeightFormat.dense(HALF)
    if rows == 1:
        return gemv(28672, 4096, format, 2, norm=HALF, eps=1e-5, activation="silu",
                    gate=(0, 14336), dtype=HALF)  # fmt: skip
    tiles = replace(tiles_for(rows, 28672, 4096, format, HALF), splits=2)
    return linear(28672, 4096, format, tiles, x_stride=4096, norm=HALF, eps=1e-5,
                  activation="silu", gate=(0, 14336), dtype=HALF)  # fmt: skip


ROW = OneRow(16, 8, 2, 264, 2)


def turning(scheme: str | None, rows: int, shape: FewRows | OneRow | None = None) -> TritonKernel:
    """Queries, keys and values, of a normed input."""
    format = WeightFormat.of(scheme) if scheme else WeightFormat.dense(HALF)
    turn = TurnedHeads(32, 8, 128, 128, 128, False, 128, 16, 1 << 17, cache=HALF)
    ends: dict[str, Any] = {"norm": HALF, "eps": 1e-5, "turn": turn, "dtype": HALF}
    if isinstance(shape, OneRow):
        return one_row(6144, 4096, format, shape, **ends)
    if shape is not None:
        del ends["norm"], ends["eps"]
        return few_rows(6144, 4096, format, shape, rows, x_stride=4096, **ends)
    if rows == 1:
        return gemv(6144, 4096, format, 2, **ends)
    tiles = replace(tiles_for(rows, 6144, 4096, format, HALF), splits=2)
    return linear(6144, 4096, format, tiles, x_stride=4096, **ends)


def few(
    scheme: str, rows: int, shape: FewRows, dtype: str = HALF, merged: bool = False
) -> TritonKernel:
    """With a residual, or merged: a gate and what it gates."""
    ends: dict[str, Any] = {"residual_stride": 4096}
    if merged:
        ends = {"activation": "silu", "gate": (0, 14336)}
    n = 28672 if merged else 4096
    format = WeightFormat.of(scheme)
    return few_rows(n, 4096, format, shape, rows, x_stride=4096, dtype=dtype, **ends)


def one(
    scheme: str, shape: OneRow, k: int = 4096, dtype: str = HALF, merged: bool = False
) -> TritonKernel:
    """With a residual, or merged: a gate and what it gates, the input normed."""
    ends: dict[str, Any] = {"residual": True}
    if merged:
        ends = {"norm": dtype, "eps": 1e-5, "activation": "silu", "gate": (0, 14336)}
    n = 28672 if merged else 4096
    return one_row(n, k, WeightFormat.of(scheme), shape, dtype=dtype, **ends)


def adapters(n: int, k: int, *, residual: bool) -> TritonKernel:
    """A product with one of three adapters or none."""
    format = WeightFormat.dense(HALF)
    return routed_linear(
        4, 1, n, k, format, routed_tiles(8, 3, k, format, HALF), x_stride=k, shared=True,
        dtype=HALF, residual=n if residual else None, optional=True,
    )  # fmt: skip


def routed(scheme: str | None, pairs: int) -> TritonKernel:
    format = WeightFormat.of(scheme) if scheme else WeightFormat.dense(HALF)
    tiles = routed_tiles(pairs, 64, 2048, format, HALF)
    return routed_linear(64, 8, 1024, 2048, format, tiles, x_stride=2048, shared=True, dtype=HALF)


def rope_to(cache: str, norm: str | None = None) -> TritonKernel:
    return rope_append(
        32, 8, 128, 128, 128, q_stride=6144, k_stride=6144, v_stride=6144, angle_stride=128,
        interleaved=False, block_stride=1 << 17, dtype=HALF, cache=cache, q_norm=norm,
        k_norm=norm, eps=(1e-6, 1e-6),
    )  # fmt: skip


def scored(dtype: str = HALF) -> TritonKernel:
    return index_scores(
        64, 1, 128, q_stride=8192, w_stride=64, block_stride=1 << 17, mask=Mask(),
        context=1 << 17, dtype=dtype, weights=dtype, cache=dtype,
    )  # fmt: skip


def recurrence(step: str, dtype: str = HALF) -> TritonKernel:
    """Rows and results of `dtype`, weights and states float32, as in a step."""
    parsed = ScanStep.parse(step)
    given = parsed.placeholders[len(parsed.states) :]
    strides = tuple(node.meta["val"].numel() for node in given[: parsed.rows])
    dtypes = (dtype,) * parsed.rows + ("float32",) * (len(given) - parsed.rows)
    return scan(step, strides, dtypes, slot_stride=1 << 22, out=dtype).kernel


SMALL: dict[str, Callable[[], TritonKernel]] = {
    "take_inputs": take_inputs,
    "take_inputs, with adapters": lambda: take_inputs(adapters=True),
    "token_slots": token_slots,
    "take_inputs, two pools": lambda: take_inputs(pools=2),
    "token_slots, two pools": lambda: token_slots(pools=2, most=8),
    "add_rms_norm 4096, a sandwich": lambda: norm(
        "rms_norm",
        4096,
        x_stride=4096,
        residual_stride=4096,
        before=HALF,
        weight=HALF,
        eps=1e-5,
        dtype=HALF,
    ),
    "layer_norm 5000 float32": lambda: norm(
        "layer_norm", 5000, x_stride=5000, weight="float32", bias="float32", eps=1e-5
    ),
    "rms_norm 32 x 128": lambda: norm(
        "rms_norm", 128, groups=32, x_stride=4096, weight=HALF, eps=1e-5, dtype=HALF
    ),
    "rope_append": lambda: rope_to(HALF),
    "rope_append int8, norms of heads": lambda: rope_to("int8", "float32"),
    "gated_act": lambda: gated_act(
        14336, gate_stride=28672, up_stride=28672, activation="gelu_tanh", dtype=HALF
    ),
    "quantized_embedding w4g128": lambda: quantized_embedding(4096, "w4g128", dtype=HALF),
    "select_rows": lambda: select_rows(4096, x_stride=4096, dtype=HALF),
    "top_k 256, 8": lambda: top_k(256, 8, x_stride=256),
    "weighted_sum": lambda: weighted_sum(8, 2048, y_stride=16384, weights_stride=8, dtype=HALF),
    "argmax": lambda: argmax(128256, stride=128256),
    "draw, 128256 tokens": lambda: draw(128256, stride=128256),
    "draw, 262208 tokens": lambda: draw(262208, stride=262208),
    "causal_conv": lambda: causal_conv(2048, 2048, 4, x_stride=6144, block_stride=1 << 17),
    "roll_state": lambda: roll_state(2048, 4, x_stride=6144, block_stride=1 << 17),
    "quantize_rows g32": lambda: quantize_rows(4096, x_stride=4096, groups=128, dtype=HALF),
    "routed_groups": lambda: routed_groups(128, 8, experts_stride=8),
    "append_keys": lambda: append_keys(
        1, 128, k_stride=128, block_stride=1 << 17, dtype=HALF, cache=HALF
    ),
    "choose_keys 2048": lambda: choose_keys(2048, context=1 << 17),
}
RECURRENCES: dict[str, Callable[[], TritonKernel]] = {
    "scan, delta rule 32 x 128 x 128": lambda: recurrence(scan_steps.delta_rule(32, 128, 128)),
    "scan, delta rule 32 x 128 x 128 float32": lambda: recurrence(
        scan_steps.delta_rule(32, 128, 128), "float32"
    ),
    "scan, delta rule 10 x 256 x 512": lambda: recurrence(scan_steps.delta_rule(10, 256, 512)),
    "scan, mamba 5120 x 16": lambda: recurrence(scan_steps.mamba_step(5120, 16)),
    "scan, mamba-2 80 x 64 x 128": lambda: recurrence(scan_steps.mamba2(80, 64, 128, 1)),
    "scan, mLSTM 8 x 128 x 128": lambda: recurrence(scan_steps.mlstm(8, 128, 128)),
    "scan, window 8192 x 4": lambda: recurrence(scan_steps.last_values(8192, 4)),
    "scan, window 100 x 9": lambda: recurrence(scan_steps.last_values(100, 9)),
    "scan, linear unit 2560": lambda: recurrence(scan_steps.linear_unit(2560)),
}
ATTENTION: dict[str, Callable[[], TritonKernel]] = {
    "prefill 64 float16": lambda: prefill_attention(attention(64, 64, "float16", "float16")),
    "prefill 128": lambda: prefill_attention(attention(128, 128)),
    "prefill 128 int8": lambda: prefill_attention(attention(128, 128, cache="int8")),
    "prefill 128 float8": lambda: prefill_attention(attention(128, 128, cache=FLOAT8)),
    "prefill 80 window": lambda: prefill_attention(attention(80, 80, mask=Mask(window=4096))),
    "prefill 256": lambda: prefill_attention(attention(256, 256)),
    "prefill 32 float32": lambda: prefill_attention(attention(32, 32, "float32", "float32")),
    "decode 64 float16": lambda: decode_attention(attention(64, 64, "float16", "float16"), 16),
    "decode 128": lambda: decode_attention(attention(128, 128), 16),
    "decode 128 int8": lambda: decode_attention(attention(128, 128, cache="int8"), 16),
    "decode 128 float8": lambda: decode_attention(attention(128, 128, cache=FLOAT8), 16),
    "decode 256": lambda: decode_attention(attention(256, 256), 16),
    "decode 576, 512": lambda: decode_attention(attention(576, 512), 16),
    "decode 576, 512, 128 heads on 1": lambda: decode_attention(
        replace(attention(576, 512), heads=128, kv_heads=1, q_stride=128 * 576), 16
    ),
    "decode 128, deep": lambda: decode_attention(attention(128, 128), 16, deep=True),
    "decode 128, alone": lambda: decode_attention(attention(128, 128), 16, deep=True, alone=True),
    "decode 128 int8, deep": lambda: decode_attention(
        attention(128, 128, cache="int8"), 16, deep=True
    ),
    "decode 576, 512, deep": lambda: decode_attention(attention(576, 512), 16, deep=True),
    "decode 32 float32": lambda: decode_attention(attention(32, 32, "float32", "float32"), 16),
    "decode 192, 128, of 2048 chosen": lambda: decode_attention(
        attention(192, 128, chosen=2048), 16
    ),
    "decode 128 int8, of 2048 chosen": lambda: decode_attention(
        attention(128, 128, cache="int8", chosen=2048), 16
    ),
    "index_scores 64 x 128": lambda: scored(),
    "index_scores 64 x 128 float32": lambda: scored("float32"),
}
PRODUCTS: dict[str, Callable[[], TritonKernel]] = {
    "gemv": lambda: gemv(4096, 4096, WeightFormat.dense(HALF), 1, residual=True, dtype=HALF),
    "gemv w8": lambda: gemv(4096, 4096, WeightFormat.of("w8"), 1, dtype=HALF),
    "gemv, normed and gated": lambda: gated(None, 1),
    "one_row w4g128": lambda: one("w4g128", ROW),
    "one_row w4g128, 2048 inputs": lambda: one("w4g128", ROW, 2048),
    "one_row w4g128, 16384 inputs": lambda: one("w4g128", ROW, 16384),
    "one_row w4g128, normed and gated": lambda: one("w4g128", ROW, merged=True),
    "one_row w4g128, 16 warps": lambda: one("w4g128", OneRow(16, 16, 2, 264), 14336),
    "one_row w4g128, 32 outputs": lambda: one("w4g128", OneRow(32, 8, 2, 264), merged=True),
    "one_row w4g32z float16": lambda: one("w4g32z", OneRow(16, 8, 2, 264), dtype="float16"),
    "few_rows w4g128, 8 rows": lambda: few("w4g128", 8, FewRows(32, 2), merged=True),
    "few_rows w4g128, 16 rows": lambda: few("w4g128", 16, FewRows(32, 8)),
    "few_rows w4g128, 16 rows, gated": lambda: few("w4g128", 16, FewRows(64, 2), merged=True),
    "few_rows w4g32z float16": lambda: few("w4g32z", 8, FewRows(16, 8), "float16"),
    "gemv, heads that turn": lambda: turning(None, 1),
    "gemv w8, heads that turn": lambda: turning("w8", 1),
    "one_row w4g128, heads that turn": lambda: turning("w4g128", 1, OneRow(16, 8, 3, 396, 2)),
    "few_rows w4g128, 16 rows of heads": lambda: turning("w4g128", 16, FewRows(16, 4)),
    "linear, 16 rows of heads": lambda: turning(None, 16),
    "linear, 64 rows of heads": lambda: turning(None, 64),
    "w4g128, 64 rows of heads": lambda: turning("w4g128", 64),
    "linear, 16 rows": lambda: product(None, 16),
    "linear, 16 rows, normed and gated": lambda: gated(None, 16),
    "linear, 64 rows, normed and gated": lambda: gated(None, 64),
    "w4g128, 32 rows, normed and gated": lambda: gated("w4g128", 32),
    "w4g128, 64 rows, normed and gated": lambda: gated("w4g128", 64),
    "linear, 2048 rows": lambda: product(None, 2048),
    "linear float32, 64 rows": lambda: product(None, 64, "float32"),
    "w8, 16 rows": lambda: product("w8", 16),
    "w8g32, 2048 rows": lambda: product("w8g32", 2048),
    "w8 int8, 64 rows": lambda: product("w8", 64, integer=True),
    "w4g128, 32 rows": lambda: product("w4g128", 32),
    "w4g128, 2048 rows": lambda: product("w4g128", 2048),
    "w4g32z, 32 rows": lambda: product("w4g32z", 32),
    "w4g128 int8, 2048 rows": lambda: product("w4g128", 2048, integer=True),
    "routed, 8 pairs": lambda: routed(None, 8),
    "adapters, down": lambda: adapters(16, 4096, residual=False),
    "adapters, up": lambda: adapters(4096, 16, residual=True),
    "routed w4g128, 16384 pairs": lambda: routed("w4g128", 16384),
}
WIDE = Tiles(128, 256, 64, num_warps=8)
# What only chips take whose every member has 227 KB of shared memory
LARGE: dict[str, Callable[[], TritonKernel]] = {
    "prefill 128, 64 keys": lambda: prefill_attention(
        attention(128, 128), **prefill_sizes(attention(128, 128), 90)
    ),
    "linear, 16 rows, 128 outputs": lambda: product(
        None, 16, tiles=Tiles(128, 16, 128, num_warps=8, num_stages=6)
    ),
    "linear, tiles of 256 rows": lambda: product(None, 2048, tiles=WIDE),
    "w8, tiles of 256 rows": lambda: product("w8", 2048, tiles=WIDE),
    "w4g128, tiles of 256 rows": lambda: product("w4g128", 2048, tiles=WIDE),
}
# Every head dim with every type of activations and cache
EVERY: dict[str, Callable[[], TritonKernel]] = {
    f"{kernel.__name__} {dim} {dtype} {cache}": partial(make, kernel, dim, dtype, cache)
    for dim in (32, 64, 80, 96, 128, 192, 256)
    for dtype, cache in ((HALF, HALF), (HALF, "int8"), (HALF, FLOAT8), ("float16", "float16"),
                         ("float32", "float32"))
    for kernel in (prefill_attention, decode_attention)
}  # fmt: skip
CASES = SMALL | RECURRENCES | ATTENTION | PRODUCTS
HOPPER = (
    *LARGE,
    "one_row w4g128, normed and gated", "linear, 16 rows, normed and gated", "linear, 2048 rows",
    "one_row w4g128, heads that turn", "few_rows w4g128, 16 rows of heads",
    "linear, 64 rows of heads", "w4g128, 2048 rows", "routed w4g128, 16384 pairs", "decode 128",
    "decode 128, deep", "decode 128, alone",
    "decode 576, 512",
    "prefill 128", "prefill 256",
    "scan, delta rule 32 x 128 x 128", "scan, mamba 5120 x 16", "scan, mamba-2 80 x 64 x 128",
)  # fmt: skip


def kernel_of(argument: list[Any]) -> tuple[TritonKernel, int]:
    """The kernel and the capability of [name, capability]."""
    name, capability = argument
    return (CASES | LARGE | EVERY)[name](), capability
