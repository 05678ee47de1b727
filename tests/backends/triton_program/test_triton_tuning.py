"""Sizes of products: what the cost model prefers, and timing them on a stand-in for the GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from fake_cuda import FakeCuda

from graphwright.backends.triton.candidates import (
    MEASURED,
    MOST,
    few_rows_of,
    few_rows_shapes,
    one_row_of,
    one_row_shapes,
    pick_few_rows,
    pick_one_row,
    pick_tiles,
    product_of,
    product_tiles,
    tiles_of,
    vector_splits,
)
from graphwright.backends.triton.chips import CHIPS, Chip, chips_of
from graphwright.backends.triton.cost import (
    Product,
    product_seconds,
    vector_seconds,
)
from graphwright.backends.triton.cubin import Cubin
from graphwright.backends.triton.kernels.gemv import vector_shape
from graphwright.backends.triton.kernels.kernel import TritonKernel
from graphwright.backends.triton.kernels.linear import Tiles
from graphwright.backends.triton.kernels.weight_format import WeightFormat
from graphwright.backends.triton.rig import GpuRig
from graphwright.backends.tuning import Choice, Picks, tune
from graphwright.ir.errors import BackendError
from graphwright.machine_code import code_generator
from graphwright.runtime.cuda.driver import Driver

BF16 = WeightFormat.dense("bfloat16")
FORMATS = [BF16, *(WeightFormat.of(name) for name in ("w8", "w8g32", "w4g128", "w4g32z"))]
CHIP = st.sampled_from(CHIPS)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 4096), st.integers(1, 300), st.integers(1, 120), st.sampled_from(FORMATS), CHIP
)
def test_no_product_is_faster_than_its_bytes_and_operations(
    rows: int, n: int, k: int, format: WeightFormat, chip: Chip
) -> None:
    product = Product(rows, 64 * n, 128 * k, format, "bfloat16")
    least = max(product.weight_bytes / chip.bandwidth, 2 * rows * 64 * n * 128 * k / chip.matmul)
    faster = replace(
        chip, bandwidth=2 * chip.bandwidth, matmul=2 * chip.matmul, single=2 * chip.single
    )
    for tiles in product_tiles(product, [chip]):
        assert product_seconds(product, tiles, chip) > least
        assert product_seconds(product, tiles, faster) <= product_seconds(product, tiles, chip)
    if format.kind == "w4":
        return
    for splits in vector_splits(product, [chip]):
        shape = vector_shape(product.n, format, "bfloat16")
        assert vector_seconds(replace(product, rows=1), shape, splits, chip) > (
            product.weight_bytes / chip.bandwidth
        )


def test_narrow_products_of_few_rows_are_split_and_wide_ones_are_not() -> None:
    (chip,) = chips_of("cuda:sm_90")
    narrow, wide = (Product(16, n, 14336, BF16, "bfloat16") for n in (512, 28672))
    assert product_tiles(narrow, [chip])[0].splits > 1
    assert product_tiles(wide, [chip])[0].splits < product_tiles(narrow, [chip])[0].splits
    assert vector_splits(replace(narrow, n=64, rows=1), [chip])[0] > 1
    assert vector_splits(replace(wide, rows=1), [chip])[0] == 1
    many = product_tiles(replace(wide, rows=2048), [chip])[0]
    assert (many.outputs, many.rows) == (128, 256)
    older = product_tiles(replace(wide, rows=2048), chips_of("cuda:sm_80,sm_90"))[0]
    assert (older.outputs, older.rows) == (128, 128), (
        "256 rows do not fit into all of sm_80's chips"
    )


def test_wide_products_of_few_rows_take_what_was_measured_where_it_fits() -> None:
    for rows, tiles in MEASURED.items():
        wide = Product(rows, 28672, 4096, BF16, "bfloat16")
        found = product_tiles(wide, chips_of("cuda:sm_90"))
        assert found[0] == tiles and len(set(found)) == len(found) <= MOST
        assert product_tiles(wide, chips_of("cuda"))[0] != tiles
        for other in (replace(wide, rows=rows // 2), replace(wide, n=4096)):
            assert product_tiles(other, chips_of("cuda:sm_90"))[0] != tiles


def test_choices_say_what_they_are_about_and_are_followed() -> None:
    product = Product(16, 512, 4096, WeightFormat.of("w4g32z"), "bfloat16")
    picks = Picks()
    default = pick_tiles(product, CHIPS, picks)
    (choice,) = picks.asked
    assert product_of(choice) == product
    other = Picks({choice.key: choice.candidates[-1]})
    assert pick_tiles(product, CHIPS, other) == product_tiles(product, CHIPS)[-1] != default
    picks = Picks()
    first = pick_few_rows(product, picks)
    (choice,) = picks.asked
    assert product_of(choice) == product and few_rows_of(choice.default) == first
    other = Picks({choice.key: choice.candidates[-1]})
    assert pick_few_rows(product, other) == few_rows_shapes(product)[-1] != first
    product, picks = replace(product, rows=1), Picks()
    one = pick_one_row(product, CHIPS, picks)
    (choice,) = picks.asked
    assert product_of(choice) == product and one_row_of(choice.default) == one
    other = Picks({choice.key: choice.candidates[-1]})
    assert pick_one_row(product, CHIPS, other) == one_row_shapes(product, CHIPS)[-1] != one


def test_a_row_has_all_its_tiles_there_at_once_where_they_fit() -> None:
    format, chips = WeightFormat.of("w4g128"), chips_of("cuda:sm_90")
    for n, resident in ((4096, 2), (6144, 3), (28672, 2)):
        assert (
            one_row_shapes(Product(1, n, 4096, format, "bfloat16"), chips)[0].resident == resident
        )


class Compiler:
    """Stands for Triton's: the code of a kernel is its name. refused: tiles it does not compile."""

    def __init__(self, refused: Tiles | None = None) -> None:
        self.kernels: dict[bytes, TritonKernel] = {}
        self.refused = refused

    def __call__(self, kernel: TritonKernel, chip: Chip, aligned: frozenset[str]) -> Cubin:
        given = kernel.constants
        if self.refused is not None:
            sizes = (given["OUTPUTS"], given["ROWS"], given["STEP"], given["SPLITS"])
            if self.refused == Tiles(*sizes, kernel.num_warps, kernel.num_stages):
                raise BackendError("too large")
        self.kernels[kernel.name.encode()] = kernel
        return Cubin(kernel.name.encode(), "symbol", kernel.num_warps, 0, 2, 32, 0, False)


@pytest.mark.parametrize("scheme", [None, "w4g32z"])
def test_candidates_are_launched_and_timed_between_events(scheme: str | None) -> None:
    format = WeightFormat.of(scheme) if scheme else WeightFormat.dense("float16")
    product, picks = Product(3, 40, 512, format, "float16"), Picks()
    pick_tiles(product, CHIPS, picks)
    (choice,) = picks.asked
    compiler = Compiler(tiles_of(choice.candidates[-2]))
    fake = FakeCuda(compiler.kernels)
    rig = GpuRig(Driver(fake), CHIPS[0], compiler, beyond_cache=3 * int(product.weight_bytes))
    kept = [*choice.candidates[:-2], choice.candidates[-1]]
    fake.elapsed = lambda launches: sum(float(grid[2]) for _, grid, _, _ in launches)
    with rig.prepare(choice) as runs:
        assert list(runs) == kept, "what does not compile is left out"
        for candidate, run in runs.items():
            splits = int(candidate.partition("splits=")[2].split()[0])
            assert run() == pytest.approx(splits / 1000), "seconds of one launch"
    assert not fake._memory, "all memory is given back"
    fastest = kept[-1]
    assert len(compiler.kernels) == len(kept)
    names = dict(zip(kept, compiler.kernels, strict=True))
    fake.elapsed = lambda launches: sum(
        0.1 if name.encode() == names[fastest] else 1.0 for name, *_ in launches
    )
    clock = iter(range(10**6))
    fake.interprets = False  # each was run above; here the times alone matter
    [tuned] = tune({choice: 1}, rig, 1000.0, clock=lambda: float(next(clock)))
    assert tuned.finding.chosen == fastest and tuned.source == "measured"
    assert rig.machine == "Stand-in sm_80"


@pytest.mark.parametrize("rows", [1, 3])
def test_sizes_for_few_rows_of_nibbles_are_timed(rows: int) -> None:
    product, picks = Product(rows, 40, 512, WeightFormat.of("w4g32z"), "float16"), Picks()
    if rows == 1:
        pick_one_row(product, CHIPS, picks)
    else:
        pick_few_rows(product, picks)
    (choice,) = picks.asked
    compiler = Compiler()
    fake = FakeCuda(compiler.kernels)
    fake.elapsed = lambda launches: sum(float(grid[0]) for _, grid, _, _ in launches)
    rig = GpuRig(Driver(fake), CHIPS[0], compiler, beyond_cache=1)
    with rig.prepare(choice) as runs:
        assert list(runs) == list(choice.candidates)
        for candidate, run in runs.items():
            shape = one_row_of(candidate) if rows == 1 else few_rows_of(candidate)
            assert run() == pytest.approx(-(-40 // shape.outputs) / 1000)
    assert not fake._memory


def test_only_the_gpu_of_this_machine_is_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphwright.runtime.cuda.driver._load", lambda: FakeCuda({}, (8, 6)))
    assert code_generator("cuda:sm_80", "bf16", tuned=True).choices is not None
    with pytest.raises(
        BackendError, match=r"this machine, which is sm_86, and 'cuda:sm_90' is not"
    ):
        code_generator("cuda:sm_90", "bf16", tuned=True)
    none = FakeCuda({})
    none.devices = 0
    monkeypatch.setattr("graphwright.runtime.cuda.driver._load", lambda: none)
    with pytest.raises(
        BackendError, match=r"none can be used here \(.*[^.]\): compile without --tune\.$"
    ):
        code_generator("cuda", "bf16", tuned=True)


def test_the_default_must_run() -> None:
    product = Product(16, 512, 4096, BF16, "bfloat16")
    choice = Choice.of(
        "linear", ("64x16x128 splits=1 warps=4 stages=4",), rows=16, n=512, k=4096,
        weight="dense-bfloat16-0", dtype="bfloat16",
    )  # fmt: skip
    assert product_of(choice) == product
    rig = GpuRig(Driver(FakeCuda({})), CHIPS[0], Compiler(tiles_of(choice.default)))
    with pytest.raises(BackendError, match="too large"), rig.prepare(choice):
        pass
