"""What the GPU's benchmarks do before there is a GPU: which weights are read ahead, and where."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from fake_cuda import FakeCuda
from triton_harness import untouched

from graphwright.backends.triton.interpret import interpret
from graphwright.runtime.cuda.program import Launch

GPU = Path(__file__).parents[1] / "benchmarks" / "gpu"


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(GPU))
    yield import_module("ahead")
    for name in ("ahead", "read_ahead"):
        sys.modules.pop(name, None)


def launch(kernel: str, *weights: int) -> Launch:
    return Launch(kernel, (1, 1, 1), (("batch", 0), *(("weights", each) for each in weights)))


SIZES = {0: 5 << 20, 1 << 23: 4096, 1 << 24: 3 << 20, 1 << 25: 9 << 20}
LAUNCHES = (
    launch("gemv_a", 0), launch("decode_attention_b"), launch("add_rms_norm_c", 1 << 23),
    launch("gemv_d", 1 << 24, 1 << 23), launch("decode_attention_b"), launch("gemv_e", 1 << 25),
)  # fmt: skip


def test_the_next_product_with_many_weights_is_read_ahead(ahead: Any) -> None:
    what = ahead.Ahead("decode_attention", 4 << 20, 132, 4)
    assert ahead.ahead_of(LAUNCHES, SIZES, what) == {1: (1 << 24, 3 << 20), 4: (1 << 25, 4 << 20)}
    tried = ahead.experiments(LAUNCHES, 132)
    assert {each.before for each in tried} == {"decode_attention"}  # no launch rotates
    assert all(ahead.ahead_of(LAUNCHES, SIZES, each) for each in tried)


def test_it_is_a_branch_beside_the_launches_that_follow(
    ahead: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streams are numbered as they are made: 1 the step's, 2 the branch's."""
    fake: Any = FakeCuda({})
    said: list[tuple[Any, ...]] = []
    streams = iter((1, 2))

    def say(*entry: Any) -> tuple[int]:
        said.append(entry)
        return (0,)

    fake.cuStreamCreate = lambda flags: (0, next(streams))
    fake.cuEventCreate = lambda flags: (0, "event")
    fake.cuEventRecord = lambda event, stream: say("record", stream)
    fake.cuStreamWaitEvent = lambda stream, event, _: say("wait", stream)
    fake.cuLaunchKernel = lambda function, *rest: say(function, rest[7])
    fake.cuModuleGetFunction = lambda module, symbol: (0, module.decode())
    code = SimpleNamespace(code=b"ahead", symbol="s", shared=0, warps=4, scratch_pointers=2)
    monkeypatch.setattr(ahead, "compiled", lambda *_: code)
    driver = ahead.BranchingDriver(fake)
    library: Any = SimpleNamespace(chip="sm_90", regions={"weights": 1 << 30})
    library.launch = lambda launches: [
        driver.launch(each.kernel, each.grid, 32, 0, [0]) for each in launches
    ]
    what = ahead.Ahead("decode_attention", 4 << 20, 132, 4)
    ahead.replays(driver, library, LAUNCHES[:4], SIZES, what, 0)
    begins = [("gemv_a", 1), ("record", 1), ("wait", 2), ("ahead", 2), ("decode_attention_b", 1)]
    assert said[:5] == begins
    assert said[5:] == [("add_rms_norm_c", 1), ("gemv_d", 1), ("record", 2), ("wait", 1)]


def test_reading_ahead_leaves_nothing_behind(ahead: Any) -> None:
    read = import_module("read_ahead")
    words = torch.randint(1 << 30, (5000,), dtype=torch.int32)
    dump = untouched((read.DUMP_BYTES // 4,), torch.int32)
    interpret(read.read_ahead(20000, 3, 2), {"T": 1, "R": 1}, words, dump)
    assert (dump == 77).all()
