"""gw.routed_linear: each token's rows times the matrices of the experts it is routed to."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from graphwright.ir.op import Sample, declare

__all__ = ["rows_of_slots", "routed_linear"]


def rows_of_slots(x: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
    """The row that each slot reads, [T, S, K]: a token's only row serves all its slots."""
    return x if x.dim() == 3 else x[:, None].expand(-1, experts.shape[1], -1)


def _meta(x, experts, weight, bias=None, residual=None, *, optional=False):  # type: ignore[no-untyped-def]
    return x.new_empty((*experts.shape, weight.shape[1]))


def _samples() -> Iterator[Sample]:
    torch.manual_seed(0)
    for tokens, slots, count, n, k, per_slot, bias in (
        (1, 2, 4, 48, 64, False, False),
        (5, 3, 8, 33, 17, False, True),
        (7, 2, 4, 16, 40, True, True),
        (3, 1, 5, 20, 24, True, False),
        (40, 2, 3, 24, 32, False, False),
    ):
        yield Sample(
            (
                torch.randn(tokens, slots, k) if per_slot else torch.randn(tokens, k),
                torch.randint(0, count, (tokens, slots)),
                torch.randn(count, n, k) * k**-0.5,
                torch.randn(count, n) if bias else None,
            ),
            {},
            f"{tokens}x{slots}x{count}x{n}x{k}",
        )
    for dtype in (torch.bfloat16, torch.float16):
        weight = (torch.randn(4, 20, 33) * 33**-0.5).to(dtype)
        routes = (torch.randn(3, 33), torch.randint(0, 4, (3, 2)))
        yield Sample((*routes, weight), {}, f"weight {dtype}")
    for slots, per_slot, bias in ((1, False, False), (2, True, True)):
        experts = torch.tensor([[3, 1], [0, 3], [3, 3], [1, 0], [2, 3]])[:, :slots]
        yield Sample(
            (
                torch.randn(5, slots, 24) if per_slot else torch.randn(5, 24),
                experts,
                torch.randn(3, 33, 24) * 24**-0.5,
                torch.randn(3, 33) if bias else None,
            ),
            {"optional": True},
            f"none of 3, {slots} slots",
        )
    for experts in (torch.full((4, 1), 3), torch.tensor([[3], [0], [2], [3]])):
        given = (torch.randn(4, 1, 24), experts, torch.randn(3, 37, 24) * 24**-0.5)
        residual = torch.randn(4, 1, 37)
        yield Sample((*given, None, residual), {"optional": True}, "with a residual")
        yield Sample(given, {"optional": True}, "without one")


@declare(
    "routed_linear(Tensor x, Tensor experts, Tensor weight, Tensor? bias=None, "
    "Tensor? residual=None, *, bool optional=False) -> Tensor",
    meta=_meta,
    samples=_samples,
)
def routed_linear(
    x: torch.Tensor,
    experts: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    *,
    optional: bool = False,
) -> torch.Tensor:
    """x[t, s] · weight[experts[t, s]]ᵀ + bias[experts[t, s]] + residual[t, s].

    x [T, K] (one row for all slots of a token) or [T, S, K]; experts int64 [T, S], each in
    0..E-1, with repetitions; weight [E, N, K]; bias [E, N]; residual [T, S, N] -> [T, S, N].
    optional: an expert may also be E, which is none: product and bias are zero there.
    """
    rows = rows_of_slots(x, experts).float()
    y = rows.new_empty((*experts.shape, weight.shape[1]))
    for expert in experts.unique().tolist():
        routed = experts == expert
        if optional and expert == weight.shape[0]:
            y[routed] = 0.0
            continue
        part = torch.nn.functional.linear(rows[routed], weight[expert].float())
        y[routed] = part if bias is None else part + bias[expert].float()
    return (y if residual is None else y + residual.float()).to(x.dtype)
