"""Blocks that sort slots by expert and cut them by counts, in place of a loop that selects them."""

from __future__ import annotations

import torch
from expert_models import Loop
from torch import nn
from torch.nn import functional

__all__ = ["SORTED", "CutByCounts", "SlicedByCounts"]


class Sorter(nn.Module):
    """Who is chosen, sorted by expert: places, tokens, weights, and how many slots each has."""

    def __init__(self, width: int, experts: int, chosen: int) -> None:
        super().__init__()
        self.experts, self.chosen = experts, chosen
        self.layer = nn.Linear(width, experts, bias=False)

    def forward(
        self, x: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[int]]:
        scores, chosen = self.layer(x).topk(self.chosen, dim=1)
        hits = torch.zeros(x.shape[0], self.experts).scatter(1, chosen, 1)
        counts: list[int] = hits.long().sum(0).tolist()
        _, order = chosen.flatten().sort(0)
        tokens = order.div(self.chosen, rounding_mode="trunc")
        return order, tokens, scores.softmax(1).flatten()[order], counts


class CutParts(nn.Module):
    """Each expert's rows times its own matrix."""

    def __init__(self, experts: int, width: int, inner: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(experts, inner, width) * width**-0.5)

    def forward(self, rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
        parts = rows.split(counts, dim=0)
        return torch.cat([functional.linear(parts[i], w) for i, w in enumerate_rows(self.weight)])


def enumerate_rows(weight: torch.Tensor) -> list[tuple[int, torch.Tensor]]:
    return [(number, weight[number]) for number in range(weight.shape[0])]


class CutByCounts(Loop):
    """Rows cut by split; half of the work goes through methods that are no forward."""

    def __init__(self, width: int = 32, experts: int = 4, chosen: int = 2) -> None:
        super().__init__(width, experts, chosen)
        del self.experts, self.router
        self.sorter = Sorter(width, experts, chosen)
        self.up = CutParts(experts, width, 48)
        self.down = CutParts(experts, 48, width)

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        order, tokens, weights, counts = self.sorter(x)
        hidden = self.up(x[tokens], counts)
        slots = torch.zeros(hidden.shape, dtype=x.dtype).index_add(0, order, hidden)
        slots = functional.silu(slots.view(x.shape[0], self.chosen, -1))
        part = self.down(slots.view(hidden.shape)[order], counts) * weights[:, None]
        return torch.zeros_like(x).index_add(0, tokens, part)


class SlicedByCounts(Loop):
    """Rows sliced at the sums of the counts, as numpy has them; experts without any are skipped."""

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        weights, chosen = torch.topk(self.router(x).softmax(-1), self.chosen)
        hits = chosen.new_zeros((x.shape[0], self.count)).scatter_(1, chosen, 1)
        order = chosen.view(-1).argsort()
        rows, parts, start = x[order // self.chosen], [], 0
        for number, count in enumerate(hits.sum(0).cpu().numpy()):
            if count == 0:
                continue
            parts.append(self.experts[number](rows[start : start + count]))
            start = start + count
        sorted_parts = torch.cat(parts)
        y = torch.empty_like(sorted_parts)
        y[order] = sorted_parts
        return (y.view(*chosen.shape, -1) * weights.unsqueeze(-1)).sum(1)


SORTED: tuple[type[Loop], ...] = (CutByCounts, SlicedByCounts)
