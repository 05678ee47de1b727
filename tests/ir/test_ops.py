"""Tests generated from the op declarations: samples, meta rules, purity."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

import graphwright.ir.ops  # noqa: F401  (declares the ops)
from graphwright.ir.op import Op, Sample, declare, get_op, registered_ops

CASES = [
    pytest.param(op, sample, id=f"{op.name}-{sample.name}")
    for op in registered_ops()
    for sample in op.samples()
]


def _tensors(result: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]


@pytest.mark.parametrize(("op", "sample"), CASES)
def test_meta_rule_predicts_shape_and_dtype(op: Op, sample: Sample) -> None:
    real = _tensors(op.overload(*sample.args, **sample.kwargs))
    args, kwargs = pytree.tree_map_only(
        torch.Tensor, lambda t: t.to("meta"), (sample.args, sample.kwargs)
    )
    meta = _tensors(op.overload(*args, **kwargs))
    assert [(t.shape, t.dtype) for t in meta] == [(t.shape, t.dtype) for t in real]


@pytest.mark.parametrize(("op", "sample"), CASES)
def test_only_declared_arguments_are_modified_and_nothing_is_nan(op: Op, sample: Sample) -> None:
    before = pytree.tree_map_only(torch.Tensor, torch.clone, sample.args)
    result = _tensors(op.overload(*sample.args, **sample.kwargs))
    assert all(bool(t.isfinite().all()) for t in result)
    for argument, old, new in zip(op.overload._schema.arguments, before, sample.args, strict=False):
        if isinstance(old, torch.Tensor) and not (argument.alias_info or None):
            assert torch.equal(old, new), argument.name


@pytest.mark.parametrize("op", registered_ops(), ids=lambda op: op.name)
def test_every_op_has_samples_and_a_documented_reference(op: Op) -> None:
    assert len(list(op.samples())) >= 1
    assert "[" in (op.reference.__doc__ or ""), "the docstring must give the shapes"


def test_declaring_a_name_twice_is_an_error() -> None:
    with pytest.raises(ValueError, match="'rope' is declared twice"):
        declare("rope(Tensor x) -> Tensor", meta=torch.empty_like, samples=list)(lambda x: x)


def test_an_unknown_op_names_the_known_ones() -> None:
    with pytest.raises(KeyError, match="rms_norm"):
        get_op("nonsense")


def test_cached_attention_over_one_long_sequence_equals_attention() -> None:
    torch.manual_seed(1)
    tokens, heads, kv_heads, dim = 37, 4, 2, 8
    q, k = torch.randn(tokens, heads, dim), torch.randn(tokens, kv_heads, dim)
    v = torch.randn(tokens, kv_heads, dim)
    options = {"scale": 0.3, "mask": "causal & window(9)", "softcap": 0.0}
    want = torch.ops.gw.attention(q, k, v, torch.arange(tokens), None, None, **options)
    caches = torch.zeros(4, 16, kv_heads, dim), torch.zeros(4, 16, kv_heads, dim)
    table = torch.tensor([[2, 0, 3]], dtype=torch.int32)
    parts = []
    for begin, end in ((0, 20), (20, 21), (21, 37)):
        here = slice(begin, end)
        start = torch.tensor([0, end - begin], dtype=torch.int32)
        parts.append(
            torch.ops.gw.cached_attention(
                q[here], k[here], v[here], *caches, torch.arange(begin, end), start, table,
                None, None, **options,
            )
        )  # fmt: skip
    torch.testing.assert_close(torch.cat(parts), want)


def test_attention_equals_torch_sdpa() -> None:
    torch.manual_seed(2)
    q, k, v = torch.randn(11, 6, 16), torch.randn(11, 3, 16), torch.randn(11, 3, 16)
    got = torch.ops.gw.attention(
        q, k, v, torch.arange(11), None, None, scale=0.25, mask="causal", softcap=0.0
    )
    want = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1),
        is_causal=True, scale=0.25, enable_gqa=True,
    )  # fmt: skip
    torch.testing.assert_close(got, want.transpose(0, 1))
