"""Models that torch.compile is given, how they are compiled, and what their results are held to.

Test modules make fixtures of `fresh_dynamo`, `reports_of_test` and `packed_regions`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from graphwright.torch_backend import packed_weights, part_call
from graphwright.torch_backend.backend import reports
from graphwright.torch_backend.compile_graph import GraphReport

ROUNDING = 1e-5  # of the standard deviation, for a few layers in float32
WIDTH = 64

Made = Callable[[], list[GraphReport]]


def fresh_dynamo() -> Iterator[None]:
    """No test finds what another one compiled in torch; native code of like parts is shared."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def reports_of_test() -> Made:
    """The reports since the test began."""
    before = len(reports())
    return lambda: reports()[before:]


def packed_regions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes in bytes of the weights regions that parts use, one for each time they are packed."""
    sizes: list[int] = []
    packed = packed_weights.packed

    def noted(*given: Any) -> Any:
        made = packed(*given)
        sizes.append(made.region.nbytes)
        return made

    monkeypatch.setattr(part_call, "packed", noted)
    return sizes


class Block(nn.Module):
    """A residual block of a norm and two products."""

    def __init__(self, width: int = WIDTH, hidden: int = 96) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = x + self.down(nn.functional.gelu(self.up(self.norm(x))))
        return made


def quiet(module: nn.Module, seed: int = 0) -> nn.Module:
    """`module` with random weights that want no gradients, of the sizes that training leaves."""
    generator = torch.Generator().manual_seed(seed)
    for weight in module.parameters():
        noise = torch.randn(weight.shape, generator=generator)
        weight.data = noise / weight.shape[-1] ** 0.5 if weight.dim() > 1 else 1 + 0.1 * noise
    return module.requires_grad_(False).eval()


def blocks(count: int = 2, width: int = WIDTH, hidden: int = 96) -> nn.Module:
    return quiet(nn.Sequential(*(Block(width, hidden) for _ in range(count))))


def rows(*sizes: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed))


def tokens(batch: int, length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(batch)
    return torch.randint(3, 120, (batch, length), generator=generator)


def native(model: Any, *, dynamic: bool | None = None, full: bool = False, **options: Any) -> Any:
    """`model` compiled by the backend; passes are not checked by numbers unless `check` says so."""
    options = {"check": False, "threads": 2, **options}
    return torch.compile(
        model, backend="graphwright", dynamic=dynamic, fullgraph=full, options=options
    )


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    """The largest difference as a share of the standard deviation."""
    assert got.shape == want.shape
    return float((got.double() - want.double()).abs().max() / want.double().std())


def check_same(got: torch.Tensor, want: torch.Tensor) -> None:
    assert got.dtype == want.dtype
    assert error(got, want) <= ROUNDING


def check_all_taken(found: list[GraphReport]) -> None:
    """Every product with a weight runs in a native part."""
    assert found
    for report in found:
        assert report.parts and not report.left, str(report)
        assert report.weight_bytes_in_parts == report.weight_bytes


class Function(nn.Module):
    """`apply` with a block, a table and two buffers."""

    steps: torch.Tensor
    scale: torch.Tensor

    def __init__(self, apply: Callable[..., Any]) -> None:
        super().__init__()
        self.block = Block()
        self.table = nn.Embedding(50, WIDTH)
        self.register_buffer("steps", torch.zeros(1))
        self.register_buffer("scale", torch.ones(WIDTH))
        self.apply_to = apply

    def forward(self, *given: Any) -> Any:
        return self.apply_to(self, *given)


def of(apply: Callable[..., Any]) -> Function:
    made = quiet(Function(apply))
    assert isinstance(made, Function)
    return made
