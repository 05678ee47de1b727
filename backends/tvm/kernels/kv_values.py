"""What a block of the KV cache holds, and its element types: to float32 in registers, and back when
a token is appended."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.kernel import Expr
from graphwright.backends.tvm.kernels.loops import load, store
from graphwright.backends.tvm.kernels.vector import constant, vector_type
from graphwright.ir.errors import BackendError

__all__ = ["BLOCK_SIZE", "KvBlock", "load_values", "pointer_type", "store_values"]

BLOCK_SIZE = 16  # positions in a block
_POINTERS = {"float32": "float32", "float16": "float16", "bfloat16": "uint16", "int8": "int8"}


@dataclass(frozen=True)
class KvBlock:
    """What a block holds of one cache: keys [kv_heads, dim, 16] and values [kv_heads, 16,
    value_dim] of `dtype`. Blocks lie `block_bytes` apart.

    In int8 two channels of a key lie side by side, and those of two values: keys [kv_heads,
    ceil(dim / 2), 16, 2], values [kv_heads, 8, value_dim, 2], and scales [kv_heads, 16] float32 of
    each. Integer products take both of a pair at once (attention_products.py).

    by_row: where tokens read single keys that they choose, keys are [kv_heads, 16, dim] and values
    [kv_heads, 16, value_dim] in every type.
    """

    kv_heads: int
    dim: int
    value_dim: int
    block_bytes: int
    dtype: str = "float32"
    by_row: bool = False

    def __post_init__(self) -> None:
        pointer_type(self.dtype)
        assert self.block_bytes % 4 == 0

    @property
    def scaled(self) -> bool:
        """Is there a scale for each key and each value?"""
        return self.dtype == "int8"

    @property
    def depth(self) -> int:
        """Channels of a key, or values of a channel, that lie side by side."""
        return 2 if self.scaled and not self.by_row else 1

    @property
    def key_steps(self) -> int:
        """Into how many such groups the channels of a key are put."""
        return -(-self.dim // self.depth)

    @property
    def key_elements(self) -> int:
        """Elements of one head's keys."""
        return self.key_steps * self.depth * BLOCK_SIZE

    @property
    def value_elements(self) -> int:
        """Elements of one head's values."""
        return self.value_dim * BLOCK_SIZE

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return {"float32": 4, "int8": 1}.get(self.dtype, 2)

    @property
    def stride(self) -> int:
        """Elements from a block to the next."""
        return self.block_bytes // self.itemsize

    @property
    def scale_stride(self) -> int:
        """The same in float32 scales."""
        return self.block_bytes // 4

    @property
    def pointers(self) -> list[tuple[str, str]]:
        """The kernel parameters for the cache: k_cache, v_cache, (k_scale, v_scale)."""
        values = [(name, pointer_type(self.dtype)) for name in ("k_cache", "v_cache")]
        return values + [(name, "float32") for name in ("k_scale", "v_scale")] * self.scaled


def pointer_type(dtype: str) -> str:
    """What a kernel's pointer to values of `dtype` points to: bfloat16 are bits to TVM."""
    if dtype not in _POINTERS:
        raise BackendError(
            f"a KV cache of {dtype} has no kernels; there are {', '.join(_POINTERS)}."
        )
    return _POINTERS[dtype]


def load_values(buffer: Expr, first: Expr, lanes: int, dtype: str) -> Expr:
    """buffer[first : first + lanes] as float32, without the scale."""
    value, real = load(buffer, first, lanes), vector_type("float32", lanes)
    if dtype == "float32":
        return value
    if dtype == "bfloat16":
        bits = tirx.Cast(vector_type("uint32", lanes), value)
        return tirx.reinterpret(real, T.shift_left(bits, constant(16, lanes, "uint32")))
    return tirx.Cast(real, value)


def store_values(buffer: Expr, first: Expr, value: Expr, lanes: int, dtype: str) -> None:
    """buffer[first : first + lanes] = the float32 `value` (of int8: over its scale), rounded to
    nearest even."""
    if dtype == "bfloat16":
        value = _bfloat16(value, lanes)
    elif dtype == "float16":
        value = tirx.Cast(vector_type("float16", lanes), value)
    elif dtype == "int8":
        real = vector_type("float32", lanes)
        nearest = T.call_llvm_pure_intrin(real, "llvm.roundeven", value)
        value = tirx.Cast(vector_type("int8", lanes), nearest)
    store(buffer, first, value, lanes)


def _bfloat16(value: Expr, lanes: int) -> Expr:
    """The upper half of each float32, rounded; NaN stays one."""
    integer = vector_type("uint32", lanes)

    def all_lanes(number: int) -> Expr:
        return constant(number, lanes, "uint32")

    bits = T.bind(tirx.reinterpret(integer, value))
    last = T.shift_right(bits, all_lanes(16)) & all_lanes(1)
    rounded = T.shift_right(bits + last + all_lanes(0x7FFF), all_lanes(16))
    infinite = (bits & all_lanes(0x7FFFFFFF)) > all_lanes(0x7F800000)
    kept = tirx.Select(infinite, all_lanes(0x7FC0), rounded)
    return tirx.Cast(vector_type("uint16", lanes), kept)
