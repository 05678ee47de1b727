"""Kernels compiled to cubins without a GPU: registers, spills, shared memory.

Every kernel, and attention with every head dim and type, for sm_80, where registers are scarcest,
and on sm_90 those that its own instructions change, and recurrences of real models; the others for
sm_90, and all for sm_100, are slow tests.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

from cubin_cases import CASES, EVERY, HOPPER  # noqa: E402
from triton_harness import compile_all  # noqa: E402

from graphwright.backends.triton.cubin import in_turn  # noqa: E402

SHARED = {80: 99 << 10, 90: 227 << 10, 100: 227 << 10}  # bytes: sm_86 and sm_89 have no more
# mLSTM: of a matrix that is not cut, the largest that there may be. Heads of a row: in as many
# registers as three programs may have, which was faster still than two without
SPILLS = {
    ("scan, mLSTM 8 x 128 x 128", 80): 24,
    ("one_row w4g128, heads that turn", 80): 8,
    ("one_row w4g128, heads that turn", 90): 16,
    ("one_row w4g128, heads that turn", 100): 8,
}
FEW_BYTES = 16  # that attention with some head dims and types may spill
SLOW = [
    (90, tuple(EVERY)),
    (100, tuple(EVERY)),
    (90, tuple(name for name in CASES if name not in HOPPER)),
    (100, tuple(CASES)),
]


def check(capability: int, names: tuple[str, ...]) -> None:
    results = compile_all("cubin_cases:kernel_of", [(name, capability) for name in names])
    for name, made in zip(names, results, strict=True):
        print(f"{name:36} sm_{capability} {made}")
        most = FEW_BYTES if name in EVERY else SPILLS.get((name, capability), 0)
        assert made["stack"] <= most, f"{name} spills: {made}"
        if made["name"].startswith("few_rows"):
            assert made["exchanges"] == 0, f"{name} moves words between threads: {made}"
        assert made["early"] == (capability >= 90 and made["begins_early"]), f"{name}: {made}"
        assert made["shared"] <= SHARED[capability], f"{name}: {made}"
        assert made["registers"] * 32 * made["warps"] <= 65536, f"{name}: {made}"


@pytest.mark.parametrize(
    ("capability", "names"),
    [(80, tuple(CASES)), (80, tuple(EVERY)), (90, HOPPER)],
    ids=["sm_80", "sm_80, every attention", "sm_90"],
)
def test_kernels_fit_their_chip(capability: int, names: tuple[str, ...]) -> None:
    check(capability, names)


def test_steps_of_a_row_exchange_a_sum_between_threads_and_nothing_else() -> None:
    """What a tile's end exchanges is the same for two steps and for four, both unrolled."""
    names = [(name, 90) for name in ("one_row w4g128, 2048 inputs", "one_row w4g128")]
    two, four = compile_all("cubin_cases:kernel_of", names)
    assert 0 < two["exchanges"] <= four["exchanges"] <= two["exchanges"] + 2


def test_code_is_the_same_however_many_compile_at_once(tmp_path: Path) -> None:
    names = ("one_row w4g128", "gated_act", "rms_norm 32 x 128", "select_rows", "top_k 256, 8")
    runs = [
        compile_all(
            "cubin_cases:kernel_of", [(name, 90) for name in names], threads=threads,
            cache=tmp_path / str(threads),
        )
        for threads in (1, 4)
    ]  # fmt: skip
    assert runs[0] == runs[1]
    assert len({made["sha256"] for made in runs[0]}) == len(names)


def test_a_method_is_called_in_turn() -> None:
    class Parser:
        inside = 0

        def parse(self, number: int) -> int:
            Parser.inside += 1
            time.sleep(0.002)
            alone = Parser.inside == 1
            Parser.inside -= 1
            if number == 3:
                raise ValueError(number)
            return number if alone else -1

    plain = Parser.parse
    with in_turn(Parser, "parse"), ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(Parser().parse, number) for number in range(8)]
        said = [each.result() for number, each in enumerate(asked) if number != 3]
        assert said == [0, 1, 2, 4, 5, 6, 7]
        with pytest.raises(ValueError, match="3"):
            asked[3].result()
    assert Parser.parse is plain


@pytest.mark.slow
@pytest.mark.parametrize(
    ("capability", "names"), SLOW, ids=[f"sm_{each}, {len(names)}" for each, names in SLOW]
)
def test_the_others_fit_theirs(capability: int, names: tuple[str, ...]) -> None:
    check(capability, names)
