"""The compiled code of kernels, executed without a GPU: PTX for sm_80 and sm_90 by ptx_machine.py.

Inline assembly, vectors, addresses and alignments are those of the code, which the interpreter
never sees; what ptxas makes of it is not checked.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from graphwright.ir.schemes import quantize_weight
from graphwright.ir.tolerance import check_close
from graphwright.runtime.sampling_params import SamplingParams

triton = pytest.importorskip("triton")

import ptx_harness  # noqa: E402
import scan_steps  # noqa: E402
import test_triton_attention as attention  # noqa: E402
import test_triton_chosen as chosen  # noqa: E402
import test_triton_linear as products  # noqa: E402
import test_triton_routed as routed  # noqa: E402
import test_triton_rows as rows  # noqa: E402
import test_triton_scan as scans  # noqa: E402
import test_triton_turned_heads as heads  # noqa: E402
from ptx_memory import PtxError  # noqa: E402
from test_triton_linear import Product  # noqa: E402
from triton_harness import batch_header  # noqa: E402

from graphwright.backends.triton.kernels.attention_prefill import prefill_sizes  # noqa: E402
from graphwright.backends.triton.kernels.few_rows import FewRows  # noqa: E402
from graphwright.backends.triton.kernels.kernel import TritonKernel  # noqa: E402
from graphwright.backends.triton.kernels.linear import Tiles  # noqa: E402
from graphwright.backends.triton.kernels.one_row import OneRow, one_row  # noqa: E402
from graphwright.backends.triton.kernels.weight_format import (  # noqa: E402
    WeightFormat,
    pack_nibbles,
)

BF16, F16 = torch.bfloat16, torch.float16


@pytest.fixture(autouse=True)
def capability(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The cases of the interpreter's tests call code compiled for this chip."""
    found: int = getattr(request, "param", 80)
    call = partial(ptx_harness.call, capability=found)
    for cases in (products, heads, attention, chosen, rows, routed, scans):
        monkeypatch.setattr(cases, "call", call)
    return found


WIDE = Tiles(128, 256, 64, num_warps=8)
HOPPER = pytest.mark.parametrize("capability", [90], indirect=True)
BOTH = pytest.mark.parametrize("capability", [80, 90], indirect=True)


@BOTH
@pytest.mark.parametrize(
    "product",
    [
        Product(1, 44, 1024, "w4g128", BF16, few=OneRow(16, 2)),
        Product(1, 44, 1024, "w4g128", BF16, few=OneRow(32, 4, 1, 1), norm=True, gate=(0, 22)),
        Product(8, 140, 512, "w4g128", BF16, few=FewRows(64, 4), gate=(70, 0)),
        Product(5, 44, 384, "w4g128z", BF16, few=FewRows(32, 2), activation="silu"),
        Product(1, 44, 1152, "w4g128", BF16, few=OneRow(32, 4), norm=True, gate=(0, 22)),
        Product(16, 44, 1152, "w4g128", BF16, few=FewRows(32, 4), gate=(0, 22)),
        Product(13, 44, 640, "w4g64", BF16, few=FewRows(32, 2)),
        Product(8, 40, 1056, "w4g32z", F16, few=FewRows(16, 8)),
        Product(1, 70, 4096, "w4g128", BF16, few=OneRow(16, 8, 1, 2)),
        Product(1, 128, 4096, "w4g128", BF16, few=OneRow(64, 2, 1, 1), norm=True, gate=(0, 64)),
        Product(1, 20, 3328, "w4g64", BF16, few=OneRow(16, 4), norm=True),
        Product(16, 64, 4096, "w4g128", BF16, few=FewRows(64, 4), gate=(0, 32)),
        Product(1, 40, 1056, "w4g32z", F16, few=OneRow(16, 8, 1, 2)),
        Product(2, 40, 96, "w4g32", F16, few=FewRows(16, 4), activation="gelu_tanh"),
    ],
    ids=str,
)
def test_few_rows(product: Product) -> None:
    product.check()


@BOTH
@pytest.mark.parametrize(
    "product",
    [
        Product(1, 11, 384, None, BF16, vector=1, activation="silu"),
        Product(1, 11, 2432, None, BF16, vector=2),
        Product(1, 22, 1160, None, BF16, vector=2, norm=True, gate=(11, 0), activation="silu"),
        Product(1, 11, 384, "w8", BF16, vector=1),
        Product(1, 11, 2208, "w8g32", F16, vector=2),
    ],
    ids=str,
)
def test_products_of_one_row(product: Product) -> None:
    product.check()


@BOTH
@pytest.mark.parametrize("case", [
    chosen.Index(16, 1, 16, 5, lengths=((70, 1), (0, 3)), dtype=BF16, context=100),
    chosen.Index(4, 2, 20, 12, "causal & window(40)", lengths=((90, 2), (3, 1)), context=100),
], ids=str)  # fmt: skip
def test_index_scores_and_the_choice_of_keys(case: chosen.Index) -> None:
    chosen.test_what_is_chosen_is_what_the_op_chooses(case)


@BOTH
def test_attention_to_chosen_keys() -> None:
    case = attention.Case(4, 2, 64, 32, dtype=BF16, cache=BF16, sinks=True)
    step = chosen.Choosing(case, 7)
    step.append()
    check_close(step.attend(2), step.expected())


@BOTH
@pytest.mark.parametrize(
    "product",
    [
        Product(20, 40, 384, "w4g128", BF16, norm=True, gate=(0, 20), activation="silu"),
        Product(70, 72, 256, "w4g128z", BF16),
        Product(17, 37, 160, "w4g32", F16),
        Product(130, 130, 200, None, BF16),
        Product(19, 40, 512, None, BF16, tiles=Tiles(32, 32, 32, 3), gate=(0, 20), norm=True),
        Product(33, 40, 256, "w8", BF16, activation="gelu"),
        Product(3, 20, 1024, "w4g128", BF16, tiles=Tiles(16, 16, 64, 3)),
        Product(18, 40, 256, "w4g128", BF16, integer=True),
        Product(3, 37, 160, "w8g32", F16, integer=True, tiles=Tiles(16, 32, 32, 2)),
        Product(5, 24, 96, None, torch.float32),
    ],
    ids=str,
)
def test_products_of_more_rows(product: Product) -> None:
    product.check()


@BOTH
@pytest.mark.parametrize("case", [heads.CASES[i] for i in (0, 1, 3, 5, 6, 8, 10, 11)], ids=str)
def test_heads_that_turn(case: heads.Heads) -> None:
    case.check()


@BOTH
@pytest.mark.parametrize(
    "case",
    [
        attention.Case(4, 2, 32, 16, dtype=BF16, cache=BF16),
        attention.Case(4, 1, 64, 64, "causal & window(9)", dtype=F16, cache=torch.int8, splits=4),
        attention.Case(6, 1, 80, 20, "causal & (window(5) | first(3))", sinks=True, slopes=True,
                       softcap=5.0, dtype=BF16, cache=BF16, splits=4),
        attention.Case(2, 1, 16, 16),
        attention.Case(4, 2, 32, 16, dtype=BF16, cache=attention.FLOAT8, splits=4),
    ],
    ids=str,
)  # fmt: skip
def test_attention(case: attention.Case) -> None:
    attention.test_attention_over_ragged_batches_is_its_op(case)


@BOTH
@pytest.mark.parametrize("cache", [BF16, torch.int8], ids=str)
def test_attention_in_parts(cache: torch.dtype) -> None:
    """Four and three parts of two tiles, in any order of programs. `deep` changes no bit where it
    has tiles as large."""
    lengths = ((300, 1), (4, 1), (430, 1))
    step = attention.Step(attention.Case(4, 1, 64, 64, dtype=BF16, cache=cache, lengths=lengths))
    step.append()
    found = [step.decode(4, deep=deep) for deep in (False, True)]
    for each in found:
        check_close(each, step.expected())
    if cache is torch.int8:
        assert torch.equal(*found)


@BOTH
@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("case", attention.ALONE[1:], ids=str)
def test_attention_of_a_token_alone(case: attention.Case, deep: bool) -> None:
    attention.test_a_token_alone(case, deep)


@HOPPER
@pytest.mark.parametrize(
    "product",
    [
        Product(200, 140, 256, "w4g128", BF16, tiles=WIDE),
        Product(70, 140, 192, None, F16, tiles=WIDE),
    ],
    ids=str,
)
def test_wide_tiles(product: Product) -> None:
    product.check()


@HOPPER
def test_prefill_of_64_rows_and_64_keys() -> None:
    case = attention.Case(2, 1, 128, 128, lengths=((0, 70), (130, 3)), dtype=BF16, cache=BF16)
    step = attention.Step(case)
    step.append()
    sizes = prefill_sizes(step.shape(), 90)
    assert sizes
    check_close(step.prefill(**sizes), step.expected())


@BOTH
@pytest.mark.parametrize(
    ("cache", "normed"),
    [(torch.float32, False), (BF16, True), (torch.int8, True), (attention.FLOAT8, False)],
    ids=str,
)
def test_rope_and_append(cache: torch.dtype, normed: bool) -> None:
    attention.test_rope_and_append_write_queries_and_the_cache(cache, normed)


def test_the_best_token() -> None:
    rows.test_the_best_token_is_the_lowest_of_equals_and_nan_is_noticed()


@BOTH
def test_draws() -> None:
    """By the parts' largest logits, by whole rows, in the order of ids, and where none can be."""
    torch.manual_seed(0)
    logits = (torch.randn(6, 4500) * 4).round() / 4
    logits[1, torch.rand(4500) < 0.99] = -torch.inf
    logits[2, 4499] = torch.nan
    logits[3, 17] = torch.inf
    cut = SamplingParams(temperature=0.7, top_k=64, top_p=0.9, min_p=0.01)
    flat = SamplingParams(temperature=2, top_p=0.99)
    asked = [cut, cut, cut, flat, flat, SamplingParams(temperature=1.3)]
    rows.check_drawn(logits, [(each, 0.61) for each in asked])
    rows.check_drawn(logits[:2, :97].contiguous(), [(cut, 0.9), (SamplingParams(), 0.0)])


@BOTH
@pytest.mark.parametrize("case", [routed.CASES[i] for i in (2, 4, 7)], ids=str)
def test_routed_products(case: routed.Routed) -> None:
    routed.test_routed_products_are_their_op_and_touch_no_other_expert(case)


@BOTH
@pytest.mark.parametrize("name", ["delta-rule", "window", "two-states"])
def test_recurrences(name: str) -> None:
    scans.test_samples(name, BF16)


@BOTH
def test_recurrences_that_change_threads() -> None:
    """In layouts of several warps, and by gathers."""
    scans.test_a_state_that_is_turned_over()
    scans.Recurrence(scan_steps.last_values(40, 9), [torch.randn(40, 9)], F16).check()
    scans.test_sums_of_several_warps()


@BOTH
def test_row_kernels() -> None:
    rows.test_a_sum_may_be_of_a_normed_row()
    rows.test_selected_rows_are_copied_for_sampled_rows_only()
    rows.test_gated_activations_are_their_op("silu")
    rows.test_gated_activations_are_their_op("gelu_tanh")
    rows.test_embeddings_are_their_ops(None)
    rows.test_embeddings_are_their_ops("w4g64z")
    rows.check_inputs(1, 1, 70, 1)
    rows.check_inputs(1, 1, 70, 1, unknown=1.0)
    rows.check_inputs(70, 9, 130, 0, unknown=0.5)
    rows.check_inputs(5, 3, 70, 2, pools=2)
    rows.test_places_are_found_in_every_pool()
    rows.test_the_best_token_is_the_lowest_of_equals_and_nan_is_noticed()


def test_buffers_are_as_long_as_what_is_read() -> None:
    """Of the kernel's nine outputs and 1,024 inputs; what it is given ends one byte too soon."""
    kernel, tensors = one_row_operands()
    for number, (name, _) in enumerate(kernel.pointers):
        if name not in ("x", "weight", "scale", "out"):
            continue
        short = list(tensors)
        padding = 7 * 64 if name == "weight" else 0  # of the second octet, whose first row is read
        short[number] = tensors[number].flatten().view(torch.uint8)[: -1 - padding]
        with pytest.raises(PtxError, match=f"of '{name}': that is not within its"):
            ptx_harness.execute(kernel, (1, 1, 1), *short)


def test_pointers_are_as_aligned_as_the_code_was_told() -> None:
    kernel, tensors = one_row_operands()
    ptx_harness.execute(kernel, (1, 1, 1), *tensors, moved={"scale": 2})
    with pytest.raises(PtxError, match="of 'weight': that is no multiple of 16"):
        ptx_harness.execute(kernel, (1, 1, 1), *tensors, moved={"weight": 4})


def test_wrong_assembly_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, tensors = one_row_operands()
    ptx_harness.execute(kernel, (1, 1, 1), *tensors)
    right = tensors[-1].clone()
    entry, shared = ptx_harness.compiled(kernel)
    for wrong, old, new in (("shr.u32", "8", "4"), ("lop3.b32", "0x000F000F", "0x000F0007"),
                            ("lop3.b32", "0x43004300", "0x43004380")):  # fmt: skip
        code = list(entry.code)
        for i, each in enumerate(code):
            if wrong.split(".")[0] == each.operation[0] and old in each.operands:
                operands = tuple(new if operand == old else operand for operand in each.operands)
                code[i] = replace(each, operands=operands)
                break
        changed = replace(entry, code=code)
        monkeypatch.setattr(ptx_harness, "compiled", lambda *_, c=changed: (c, shared))
        ptx_harness.execute(kernel, (1, 1, 1), *tensors)
        assert not torch.equal(tensors[-1], right), wrong


def one_row_operands() -> tuple[TritonKernel, list[torch.Tensor]]:
    torch.manual_seed(0)
    format = WeightFormat.of("w4g128")
    kernel = one_row(9, 1024, format, OneRow(16, 2))
    weight, scale = quantize_weight(torch.randn(9, 1024), "w4g128")
    x, out = torch.randn(1, 1024).to(BF16), torch.zeros(1, 9, dtype=BF16)
    return kernel, [batch_header(1), x, pack_nibbles(weight, "w4g128"), scale, out]
