"""Index scores, the choice of keys, and attention over the chosen ones, in Triton's interpreter."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from graphwright.ir.masks import Mask
from graphwright.ir.op import get_op
from graphwright.ir.ops.choose_keys import choose
from graphwright.ir.tolerance import check_close

triton = pytest.importorskip("triton")

from test_triton_attention import BLOCK, FLOAT8, Case, Step  # noqa: E402
from triton_harness import SPARE, batch_header, call, untouched  # noqa: E402

from graphwright.backends.triton.kernels.attention_decode import (  # noqa: E402
    decode_attention,
    decode_scratch,
)
from graphwright.backends.triton.kernels.choose_keys import choose_keys  # noqa: E402
from graphwright.backends.triton.kernels.index_scores import index_scores  # noqa: E402
from graphwright.backends.triton.kernels.rope import append_keys  # noqa: E402
from graphwright.backends.triton.kernels.token_slots import token_slots  # noqa: E402


@dataclass(frozen=True)
class Index:
    """A ragged batch: (positions in the cache, new tokens) by sequence, of small integers, so that
    scores are exact and many are equal."""

    heads: int
    kv_heads: int
    dim: int
    count: int
    mask: str = "causal"
    lengths: tuple[tuple[int, int], ...] = ((18, 1), (0, 9), (5, 0), (130, 2))
    dtype: torch.dtype = torch.float32
    context: int = 200


def numbers(*shape: int) -> torch.Tensor:
    return torch.randint(-2, 3, shape).float()


@pytest.mark.parametrize("case", [
    Index(4, 1, 16, 5),
    Index(16, 1, 8, 12, dtype=torch.bfloat16),
    Index(6, 2, 20, 3, "causal & window(30)"),
    Index(70, 1, 16, 140, "causal & (window(17) | first(3))", dtype=torch.float16),
    Index(3, 3, 16, 8, "causal & chunk(48)"),
    Index(2, 1, 16, 1100, lengths=((2100, 1), (1099, 2)), context=2200),
], ids=str)  # fmt: skip
def test_what_is_chosen_is_what_the_op_chooses(case: Index) -> None:
    torch.manual_seed(0)
    used = [-(-(past + new) // BLOCK) for past, new in case.lengths]
    order = torch.randperm(sum(used)).int().split(used)
    table = torch.nn.utils.rnn.pad_sequence(list(order), batch_first=True, padding_value=-(10**6))
    new = [count for _, count in case.lengths]
    start = torch.tensor([0, *new]).cumsum(0).int()
    positions = torch.cat([torch.arange(p, p + n) for p, n in case.lengths])
    tokens = len(positions)
    header = batch_header(tokens, len(new), table.shape[1])
    q, weights = numbers(tokens, case.heads, case.dim), numbers(tokens, case.heads)
    k = numbers(tokens, case.kv_heads, case.dim)
    cache = numbers(sum(used), BLOCK, case.kv_heads, case.dim)
    laid_out = cache.transpose(1, 2).to(case.dtype).contiguous()
    name = str(case.dtype).removeprefix("torch.")
    sequences, slots = (untouched((tokens + SPARE,), torch.int32) for _ in range(2))
    call(token_slots(block_size=BLOCK), header, positions, start, table, sequences, slots)
    stride = BLOCK * case.kv_heads * case.dim
    kernel = append_keys(
        case.kv_heads, case.dim, k_stride=case.kv_heads * case.dim, block_stride=stride,
        dtype=name, cache=name,
    )  # fmt: skip
    call(kernel, header, k.to(case.dtype), slots, laid_out)
    want = get_op("cached_choose_keys").reference(
        q, k, weights, cache, positions, start, table, count=case.count, mask=case.mask
    )
    assert torch.equal(laid_out.transpose(1, 2).float(), cache)
    score = index_scores(
        case.heads, case.kv_heads, case.dim, q_stride=case.heads * case.dim, w_stride=case.heads,
        block_stride=stride, mask=Mask.parse(case.mask), context=case.context, dtype=name,
        weights=name, cache=name,
    )  # fmt: skip
    width = score.constants["WIDTH"]
    scores = untouched((tokens + 1, width))
    inputs = (q.to(case.dtype), weights.to(case.dtype), laid_out, positions, sequences, table)
    call(score, header, *inputs, scores)
    assert scores[-1].isnan().all()
    chosen = untouched((tokens + 1, case.count), torch.int32)
    call(choose_keys(case.count, context=case.context), header, scores, positions, chosen)
    assert (chosen[-1] == 77).all()
    assert torch.equal(chosen[:-1], want)


class Choosing(Step):
    """A step whose tokens have chosen some of the keys that they see."""

    def __init__(self, case: Case, count: int) -> None:
        super().__init__(case)
        longest = int(self.positions.max()) + 1
        past = torch.arange(longest)
        visible = Mask.parse(case.mask).visible(self.positions[:, None], past[None, :])
        self.chosen = choose(torch.rand(self.tokens, longest), visible, count)

    def expected(self) -> torch.Tensor:
        case = self.case
        result: torch.Tensor = get_op("cached_attention").reference(
            self.q.float(), *self.rounded(), self.k_cache, self.v_cache, self.positions,
            self.query_start, self.table, self.slopes, self.sinks, None, None, self.chosen,
            scale=case.dim**-0.5, mask=case.mask, softcap=case.softcap,
        )  # fmt: skip
        return result.to(case.dtype)

    def attend(self, splits: int) -> torch.Tensor:
        case, count = self.case, self.chosen.shape[1]
        out = untouched((self.tokens + 1, case.heads, case.value_dim), case.dtype)
        extra = [x for x in (self.slopes, self.sinks) if x is not None]
        beyond = torch.full((SPARE,), 10**6)
        where = [torch.cat([self.positions, beyond]), torch.cat([self.sequences, beyond.int()])]
        shape = self.shape(count)
        kernel = decode_attention(shape, splits, keys=16)
        partial, each, counters = decode_scratch(shape, splits, self.tokens)
        zeros = torch.zeros(counters // 4, dtype=torch.int32)
        scratch = [untouched((size // 4,)) for size in (partial, each, each)] + [zeros]
        scratch = scratch if splits > 1 else []
        call(kernel, self.batch, self.q, *self.parts, *extra, *where, self.table, self.chosen,
             *scratch, out)  # fmt: skip
        assert out[-1].isnan().all() and not zeros.any()
        return out[:-1]


@pytest.mark.parametrize("case", [
    (Case(4, 2, 16, 16), 5),
    (Case(4, 4, 24, 8, softcap=5.0, sinks=True, slopes=True), 20),
    (Case(6, 1, 80, 20, "causal & window(7)", sinks=True), 40),
    (Case(4, 2, 16, 16, cache=torch.int8), 7),
    (Case(4, 2, 16, 16, cache=FLOAT8), 7),
    (Case(4, 2, 32, 16, dtype=torch.bfloat16, cache=torch.bfloat16), 9),
    (Case(3, 1, 16, 16, lengths=((700, 2), (4, 1), (430, 1))), 300),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("splits", [1, 4])
def test_attention_to_chosen_keys_is_its_op(case: tuple[Case, int], splits: int) -> None:
    step = Choosing(*case)
    step.append()
    want = step.expected()
    check_close(step.attend(splits), want)
