"""Rope, the append to the paged cache and attention over it, in Triton's interpreter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graphwright.ir.masks import Mask
from graphwright.ir.op import get_op
from graphwright.ir.tolerance import check_close

triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402
from triton_harness import SPARE, batch_header, call, untouched  # noqa: E402

from graphwright.backends.triton.interpret import prepare  # noqa: E402
from graphwright.backends.triton.kernels.attention_decode import (  # noqa: E402
    decode_attention,
    decode_scratch,
    default_splits,
)
from graphwright.backends.triton.kernels.attention_prefill import prefill_attention  # noqa: E402
from graphwright.backends.triton.kernels.attention_tile import AttentionShape  # noqa: E402
from graphwright.backends.triton.kernels.float8 import narrowed as to_cache  # noqa: E402
from graphwright.backends.triton.kernels.float8 import widened as from_cache  # noqa: E402
from graphwright.backends.triton.kernels.rope import append_kv, rope, rope_append  # noqa: E402
from graphwright.backends.triton.kernels.token_slots import token_slots  # noqa: E402

BLOCK = 16  # positions of a block
FLOAT8 = torch.float8_e4m3fn


@dataclass(frozen=True)
class Case:
    """Heads and dims, then a ragged batch: (positions in the cache, new tokens) by sequence."""

    heads: int
    kv_heads: int
    dim: int
    value_dim: int
    mask: str = "causal"
    softcap: float = 0.0
    slopes: bool = False
    sinks: bool = False
    lengths: tuple[tuple[int, int], ...] = ((18, 1), (0, 2), (5, 0), (30, 2))
    dtype: torch.dtype = torch.float32
    cache: torch.dtype = torch.float32
    splits: int = 2


class Step:
    """A step over caches full of NaN but for the positions that its sequences have."""

    def __init__(self, case: Case) -> None:
        torch.manual_seed(0)
        self.case = case
        used = [-(-(past + new) // BLOCK) for past, new in case.lengths]
        self.blocks = sum(used) + 2
        order = torch.randperm(self.blocks).int()
        self.table = torch.full((len(used), max(used) + 1), -(10**6), dtype=torch.int32)
        taken = 0
        for row, count in zip(self.table, used, strict=True):
            row[:count] = order[taken : taken + count]
            taken += count
        new = [new for _, new in case.lengths]
        self.query_start = torch.tensor([0, *new]).cumsum(0).int()
        self.positions = torch.cat([torch.arange(p, p + n) for p, n in case.lengths])
        self.tokens = sum(new)
        self.batch = batch_header(self.tokens, len(new), self.table.shape[1])
        self.k_cache, self.v_cache = (
            torch.full((self.blocks, BLOCK, case.kv_heads, dim), torch.nan)
            for dim in (case.dim, case.value_dim)
        )
        for row, (past, _) in zip(self.table, case.lengths, strict=True):
            for cache in (self.k_cache, self.v_cache):
                for p in range(past):
                    cache[row[p // BLOCK], p % BLOCK] = torch.randn(cache.shape[2:])
        shape = (self.tokens, case.kv_heads)
        self.q = torch.randn(self.tokens, case.heads, case.dim).to(case.dtype)
        self.k = torch.randn(*shape, case.dim).to(case.dtype)
        self.v = torch.randn(*shape, case.value_dim).to(case.dtype)
        self.slopes = torch.rand(case.heads) if case.slopes else None
        self.sinks = torch.randn(case.heads) if case.sinks else None
        self.sequences, self.slots = (untouched((self.tokens,), torch.int32) for _ in range(2))
        found = (self.positions, self.query_start, self.table, self.sequences, self.slots)
        call(token_slots(block_size=BLOCK), self.batch, *found)
        self._lay_out()

    def _lay_out(self) -> None:
        """Blocks of [keys, values, key scales, value scales] in the cache's element type."""
        case = self.case
        sizes = [case.kv_heads * BLOCK * dim for dim in (case.dim, case.value_dim)]
        scaled = case.cache is torch.int8
        if scaled:
            sizes += [4 * case.kv_heads * BLOCK] * 2
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        self.stride = sum(sizes) + 8
        self.pool = untouched((self.blocks * self.stride,), element_type(case.cache))
        self.parts = [self.pool[start:] for start in starts]
        if scaled:
            self.parts[2:] = [part.view(torch.float32) for part in self.parts[2:]]
        for number, cache in enumerate((self.k_cache, self.v_cache)):
            values = cache.transpose(1, 2)
            if scaled:
                scale = values.abs().amax(-1) / 127
                values = torch.round(values / scale[..., None]).nan_to_num(99)
                self._blocks(2 + number, 1).copy_(scale[..., None])
                kept = values * scale[..., None]
            else:
                kept = values.to(case.cache).float()
                values = values.to(case.cache).view(element_type(case.cache))
            self._blocks(number, cache.shape[3]).copy_(values)
            cache.copy_(kept.transpose(1, 2))

    def _blocks(self, number: int, dim: int) -> torch.Tensor:
        """The part [blocks, heads, BLOCK, dim] of the pool, as a view."""
        part = self.parts[number]
        stride = self.stride // (part.element_size() // self.pool.element_size())
        inner = (BLOCK * dim, dim, 1)
        return part.as_strided(
            (self.blocks, self.case.kv_heads, BLOCK, dim), (stride, *inner), part.storage_offset()
        )

    def shape(self, chosen: int = 0) -> AttentionShape:
        case = self.case
        return AttentionShape(
            case.heads, case.kv_heads, case.dim, case.value_dim, q_stride=case.heads * case.dim,
            block_stride=self.stride, scale=case.dim**-0.5, mask=Mask.parse(case.mask),
            softcap=case.softcap, slopes=case.slopes, sinks=case.sinks, block_size=BLOCK,
            dtype=str(case.dtype).removeprefix("torch."),
            cache=str(element_type(case.cache)).removeprefix("torch."), chosen=chosen,
        )  # fmt: skip

    def append(self) -> None:
        case = self.case
        kernel = append_kv(
            case.kv_heads, case.dim, case.value_dim, k_stride=case.kv_heads * case.dim,
            v_stride=case.kv_heads * case.value_dim, block_stride=self.stride,
            dtype=str(case.dtype).removeprefix("torch."),
            cache=str(element_type(case.cache)).removeprefix("torch."),
        )  # fmt: skip
        call(kernel, self.batch, self.k, self.v, self.slots, *self.parts)

    def expected(self) -> torch.Tensor:
        """The op on a float32 cache that rounds what the narrow one would."""
        case = self.case
        k, v = self.rounded()
        result: torch.Tensor = get_op("cached_attention").reference(
            self.q.float(), k, v, self.k_cache, self.v_cache, self.positions, self.query_start,
            self.table, self.slopes, self.sinks, scale=case.dim**-0.5, mask=case.mask,
            softcap=case.softcap,
        )  # fmt: skip
        return result.to(case.dtype)

    def rounded(self) -> list[torch.Tensor]:
        """Keys and values as the cache keeps them."""
        return [narrowed(x.float(), self.case.cache) for x in (self.k, self.v)]

    def prefill(self, **sizes: int) -> torch.Tensor:
        out = untouched((self.tokens + 1, self.case.heads, self.case.value_dim), self.case.dtype)
        kernel = prefill_attention(self.shape(), tokens=self.tokens, sequences=8, **sizes)
        extra = [x for x in (self.slopes, self.sinks) if x is not None]
        where = (self.positions, self.query_start, self.table)
        call(kernel, self.batch, self.q, *self.parts, *extra, *where, out)
        assert out[-1].isnan().all()
        return out[:-1]

    def decode(self, splits: int, **sizes: Any) -> torch.Tensor:
        out = untouched((self.tokens + 1, self.case.heads, self.case.value_dim), self.case.dtype)
        extra = [x for x in (self.slopes, self.sinks) if x is not None]
        # behind the step's tokens: what a bucket's memory may hold
        beyond = torch.full((SPARE,), 10**6)
        positions = torch.cat([self.positions, beyond])
        sequences = torch.cat([self.sequences, beyond.int()])
        where = [positions, *([] if sizes.get("alone") else [sequences]), self.table]
        shape = self.shape()
        kernel = decode_attention(shape, splits, **sizes)
        partial, each, count = decode_scratch(shape, splits, self.tokens)
        counters = torch.zeros(count // 4, dtype=torch.int32)
        scratch = [untouched((size // 4,)) for size in (partial, each, each)] + [counters]
        scratch = scratch if splits > 1 else []
        call(kernel, self.batch, self.q, *self.parts, *extra, *where, *scratch, out)
        assert out[-1].isnan().all() and not counters.any()
        if splits > 1:
            self.tops = scratch[1].reshape(self.tokens, self.case.heads, splits)
        return out[:-1]


def element_type(cache: torch.dtype) -> torch.dtype:
    """What kernels know of a cache of that type."""
    return torch.uint8 if cache is FLOAT8 else cache


def narrowed(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if dtype is not torch.int8:
        return x.to(dtype).float()
    scale = x.abs().amax(-1, keepdim=True) / 127
    return torch.round(x / scale) * scale


CASES = [
    Case(4, 2, 16, 16),
    Case(2, 1, 24, 8, "causal & window(7)", softcap=5.0, splits=4),
    Case(6, 1, 80, 20, "causal & (window(5) | first(3))", sinks=True),
    Case(3, 3, 96, 96, "causal & chunk(8)", slopes=True, sinks=True),
    Case(5, 1, 10, 6, "causal & (window(20) | first(18)) & chunk(24)"),
    Case(4, 2, 16, 16, cache=torch.int8),
    Case(4, 2, 16, 16, cache=FLOAT8),
    Case(3, 1, 80, 20, "causal & window(9)", dtype=torch.bfloat16, cache=FLOAT8),
    Case(4, 2, 32, 16, dtype=torch.bfloat16, cache=torch.bfloat16),
    Case(4, 1, 16, 16, "causal & window(9)", dtype=torch.float16, cache=torch.int8),
    # parts of 128 keys: the last program adds up to four; two at once, of rows as wide as these
    Case(3, 1, 16, 16, sinks=True, lengths=((139, 2), (4, 1), (430, 1)), splits=4),
    Case(4, 1, 16, 512, lengths=((300, 1), (500, 1)), splits=4),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention_over_ragged_batches_is_its_op(case: Case) -> None:
    step = Step(case)
    step.append()
    want = step.expected()
    check_close(step.prefill(rows=16, keys=16), want)
    check_close(step.decode(case.splits, keys=16), want)


def test_parts_are_added_up_where_there_are_several() -> None:
    """The scratch of a token with one part stays as it was."""
    step = Step(Case(3, 1, 16, 16, lengths=((139, 1), (4, 1), (430, 1)), splits=4))
    step.append()
    step.decode(4, keys=16)
    found = [int(row.isfinite().sum()) for row in step.tops]
    assert found == [3 * 2, 0, 3 * 4], "of three heads"


ALONE = [
    Case(4, 1, 16, 16, lengths=((430, 1),), splits=4),
    Case(4, 2, 32, 16, dtype=torch.bfloat16, cache=torch.bfloat16, lengths=((0, 1),), splits=4),
    Case(6, 1, 80, 20, "causal & (window(150) | first(3))", sinks=True, lengths=((290, 1),)),
    Case(4, 1, 64, 64, "causal & window(9)", dtype=torch.float16, cache=torch.int8,
         lengths=((37, 1),)),
    Case(4, 2, 32, 16, dtype=torch.float16, cache=FLOAT8, lengths=((430, 1),), splits=4),
]  # fmt: skip


@pytest.mark.parametrize("case", ALONE, ids=str)
@pytest.mark.parametrize("deep", [False, True])
def test_a_token_alone(case: Case, deep: bool) -> None:
    """Whose blocks of keys are looked up before the launches in front have ended."""
    step = Step(case)
    step.append()
    check_close(step.decode(case.splits, alone=True, deep=deep), step.expected())


def test_one_split_needs_no_scratch() -> None:
    step = Step(Case(4, 2, 16, 16, sinks=True, slopes=True, lengths=((35, 1),)))
    step.append()
    check_close(step.decode(1, keys=16), step.expected())


@pytest.mark.parametrize(
    "case",
    [Case(70, 1, 16, 16, lengths=((3, 2),), splits=1), Case(20, 1, 16, 512, lengths=((150, 2),))],
    ids=str,
)
def test_more_query_heads_than_a_program_takes_are_taken_in_packs(case: Case) -> None:
    """64 heads in a pack, and 16, as many as registers hold results of."""
    step = Step(case)
    assert step.shape().packs[1] == 2
    step.append()
    want = step.expected()
    check_close(step.prefill(keys=16), want)
    check_close(step.decode(case.splits, keys=16), want)


def test_inner_tiles_skip_the_mask() -> None:
    step = Step(Case(1, 1, 16, 16, "causal & window(60)", lengths=((70, 20),)))
    step.append()
    check_close(step.prefill(rows=16, keys=16), step.expected())


def test_a_token_decodes_to_the_same_bits_in_any_batch() -> None:
    alone, beside = (
        Step(Case(2, 1, 16, 16, lengths=lengths)) for lengths in (((300, 1),), ((300, 1), (3, 2)))
    )
    for step in (alone, beside):
        step.append()
    # the same keys and query in both
    beside.q[0], beside.k[0], beside.v[0] = alone.q[0], alone.k[0], alone.v[0]
    beside.append()
    for number in range(2):
        for p in range(300):
            source = alone._blocks(number, 16)[alone.table[0, p // BLOCK], :, p % BLOCK]
            beside._blocks(number, 16)[beside.table[0, p // BLOCK], :, p % BLOCK] = source
    assert torch.equal(alone.decode(4, keys=16)[0], beside.decode(4, keys=16)[0])


def test_splits_follow_heads_and_context_only() -> None:
    shape = Step(Case(4, 2, 16, 16, lengths=((1, 1),))).shape()
    assert default_splits(shape, 100) == 1
    assert default_splits(shape, 8192) == 64


@settings(max_examples=5, deadline=None)
@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 3), st.sampled_from([16, 24, 80]),
       st.booleans())  # fmt: skip
def test_rope_alone_is_its_op(
    tokens: int, heads: int, half: int, dim: int, interleaved: bool
) -> None:
    rotary = dim if half == 3 else 4 * half
    x, angle = torch.randn(tokens, heads, dim), torch.randn(tokens, rotary)
    out = untouched((tokens + 1, heads, dim))
    kernel = rope(heads, dim, rotary, x_stride=heads * dim, angle_stride=rotary,
                  interleaved=interleaved)  # fmt: skip
    call(kernel, batch_header(tokens), x, angle.cos(), angle.sin(), out)
    want = get_op("rope").reference(x, angle.cos(), angle.sin(), interleaved=interleaved)
    check_close(out[:tokens], want, "exact")
    assert out[tokens].isnan().all()


@triton.jit  # type: ignore[untyped-decorator]
def convert_kernel(  # type: ignore[no-untyped-def]
    values, codes, back, COUNT: tl.constexpr, KIND: tl.constexpr
):
    i = tl.arange(0, COUNT)
    code = to_cache(tl.load(values + i), tl.uint8)
    tl.store(codes + i, code)
    tl.store(back + i, from_cache(code, KIND))


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
def test_float8_is_rounded_as_torch_does(kind: str) -> None:
    """Every number of it, what lies between two of them and a quarter on, and beyond its range."""
    every = torch.arange(256, dtype=torch.uint8).view(FLOAT8).float()
    every = every[every.isfinite()].sort().values
    middle, step = (every[1:] + every[:-1]) / 2, every[1:] - every[:-1]
    beyond = torch.tensor([449.0, 1e4, torch.inf, 1e-12, -0.0])
    values = torch.cat([every, middle, middle + step / 4, middle - step / 4, beyond, -beyond])
    count = 1 << len(values).bit_length()
    values = torch.cat([values, torch.randn(count - len(values)) * 100])
    dtype = getattr(torch, kind)
    codes, back = torch.zeros(count, dtype=torch.uint8), torch.zeros(count, dtype=dtype)
    prepare()
    convert_kernel[(1,)](values, codes, back, COUNT=count, KIND=getattr(tl, kind))
    want = values.clamp(-448, 448).to(FLOAT8)
    assert torch.equal(codes, want.view(torch.uint8))
    assert torch.equal(back, want.to(dtype))


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("cache", [torch.float32, torch.bfloat16, torch.int8, FLOAT8], ids=str)
def test_rope_and_append_write_queries_and_the_cache(cache: torch.dtype, normed: bool) -> None:
    case = Case(3, 2, 24, 10, cache=cache)
    step = Step(case)
    angle = torch.randn(step.tokens, 16)
    kernel = rope_append(
        3, 2, 24, 10, 16, q_stride=72, k_stride=48, v_stride=20, angle_stride=16,
        interleaved=False, block_stride=step.stride,
        cache=str(element_type(cache)).removeprefix("torch."),
        q_norm="float32" if normed else None, k_norm="float32" if normed else None,
        eps=(1e-3, 1e-2),
    )  # fmt: skip
    out = untouched(step.q.shape)
    turn = (angle.cos(), angle.sin())
    before = [step._blocks(i, dim).clone() for i, dim in enumerate((24, 10))]
    weights = [torch.rand(24) + 0.5 for _ in range(2)]
    tensors = (step.q, step.k, step.v, *(weights if normed else []), *turn, step.slots, out)
    call(kernel, step.batch, *tensors, *step.parts)
    rotate, norm = get_op("rope").reference, get_op("rms_norm").reference
    q, k = step.q, step.k
    if normed:
        q, k = (norm(x, w, eps=e) for x, w, e in zip((q, k), weights, (1e-3, 1e-2), strict=True))
    exactness = "reassociating" if normed else "exact"
    check_close(out, rotate(q, *turn, interleaved=False), exactness)
    where = (step.slots // BLOCK).long(), slice(None), (step.slots % BLOCK).long()
    values = (rotate(k, *turn, interleaved=False), step.v)
    for number, (value, old) in enumerate(zip(values, before, strict=True)):
        now = step._blocks(number, value.shape[2])
        got = now[where].float()
        if cache is FLOAT8:  # half a step of three bits, or of the smallest numbers
            got = now[where].view(FLOAT8).float()
            assert ((got - value).abs() <= value.abs() / 16 + 2**-10).all()
        elif cache is torch.int8:
            got = got * step._blocks(2 + number, 1)[where]
            assert (got - value).abs().max() <= value.abs().max() / 127
        else:
            check_close(got.to(cache), value.to(cache), exactness)
        now[where] = old[where]
        assert torch.equal(now.float().nan_to_num(7.5), old.float().nan_to_num(7.5))
