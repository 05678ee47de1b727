"""Code that begins before the launches in front of it have ended waits before it needs them.

That whole kernels do so is checked wherever their code for sm_90 is executed (ptx_memory.py), and
which of them wait where they are compiled (test_triton_cubins.py).
"""

from __future__ import annotations

import numpy as np
import pytest
from ptx_machine import run
from ptx_memory import GlobalMemory, PtxError
from ptx_parse import parse
from test_ptx_machine import HEAD

BEGIN, WAIT = "griddepcontrol.launch_dependents;", "griddepcontrol.wait;"
LOAD = "ld.global.b32 {{ %r2 }}, [ {} + 0 ];"
STORE = "st.global.b32 [ %rd2 + 0 ], { %r2 };"


def execute(*body: str) -> None:
    """A program of 64 threads; %rd1 points to a weight, %rd2 to x."""
    buffers = {name: np.zeros(4, np.uint8) for name in ("weight", "x")}
    memory = GlobalMemory(buffers, constants=frozenset({"weight"}))
    entry = parse(HEAD + "\n".join(body) + "\nret;\n}")
    addresses = dict(zip(entry.parameters, map(memory.address, memory.names), strict=True))
    run(entry, memory, 0, (2, 1, 1), [(1, 0, 0), (0, 0, 0)], addresses)


def test_weights_may_be_read_before_the_wait_and_nothing_else() -> None:
    weight, x = LOAD.format("%rd1"), LOAD.format("%rd2")
    execute(BEGIN, weight, WAIT, x, STORE)
    with pytest.raises(PtxError, match="'x' is read before the program has waited"):
        execute(BEGIN, x, WAIT, STORE)
    with pytest.raises(PtxError, match="something is written before the program has waited"):
        execute(BEGIN, weight, STORE, WAIT)
    with pytest.raises(PtxError, match="has ended that did not wait"):
        execute(BEGIN, weight)
    with pytest.raises(PtxError, match="some threads wait for launches, and others do not"):
        execute("setp.eq.b32 %p1, %r1, 3;", f"@%p1 {WAIT}", x)
