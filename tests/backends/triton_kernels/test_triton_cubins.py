"""Every kernel compiled to cubins for sm_80 and sm_90 without a GPU: registers, spills, memory."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

triton = pytest.importorskip("triton")

from cubin_cases import ATTENTION, PRODUCTS, SMALL  # noqa: E402
from triton_harness import compile_all  # noqa: E402

CAPABILITIES = (80, 90)
SHARED = {80: 99 << 10, 90: 227 << 10}  # bytes: what sm_86 and sm_89 have too, and sm_90


@cache
def compiled(names: tuple[str, ...]) -> dict[tuple[str, int], dict[str, Any]]:
    wanted = [(name, capability) for name in names for capability in CAPABILITIES]
    results = compile_all("cubin_cases:kernel_of", wanted)
    return dict(zip(wanted, results, strict=True))


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(
    "group", [SMALL, ATTENTION, PRODUCTS], ids=["small", "attention", "linear"]
)
def test_kernels_fit_their_chip(group: dict[str, Any], capability: int) -> None:
    found = compiled(tuple(group))
    for name in group:
        made = found[name, capability]
        print(f"{name:28} sm_{capability} {made}")
        assert made["stack"] == 0, f"{name} spills: {made}"
        assert made["shared"] <= SHARED[capability], f"{name}: {made}"
        assert made["registers"] * 32 * made["warps"] <= 65536, f"{name}: {made}"
