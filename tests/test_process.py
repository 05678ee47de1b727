"""How a process imports tvm and how it ends."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("tvm")

_PRELUDE = (
    "import atexit, os, sys, threading, time, types\n"
    "sys.modules['torch'] = types.ModuleType('torch')\n"  # what takes long to take apart
)


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_tvm_comes_without_gpu_backends_and_with_disco_library() -> None:
    code = (
        "import os, sys\n"
        "import graphwright.backends.tvm, tvm\n"
        "assert tvm.runtime.disco is not None\n"  # else tvm met an error while it was imported
        "assert 'TVM_DEVICE_BACKEND_AUTOLOAD' not in os.environ\n"
        "print([name for name in ('cuda.ptx', 'metal') if f'tvm.backend.{name}' in sys.modules])"
    )
    result = run(code)
    assert result.stdout == "[]\n", result.stderr


def test_whoever_wants_all_backends_of_tvm_gets_them() -> None:
    code = (
        "import os; os.environ['TVM_DEVICE_BACKEND_AUTOLOAD'] = '1'\n"
        "import sys, graphwright.backends.tvm\n"
        "print(os.environ['TVM_DEVICE_BACKEND_AUTOLOAD'], 'tvm.backend.cuda' in sys.modules)"
    )
    assert run(code).stdout == "1 True\n"


def test_leaving_writes_output_and_runs_what_was_registered() -> None:
    code = (
        "atexit.register(lambda: print('registered'))\n"
        "from graphwright.process import leave\n"
        "class Slow:\n"
        "    def __del__(self): print('taken apart')\n"
        "kept = Slow()\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "print('output', end=' ')\n"
        "leave(3)"
    )
    result = run(_PRELUDE + code)
    assert (result.returncode, result.stdout) == (3, "output registered\n"), result.stderr


def test_leaving_waits_for_threads() -> None:
    code = (
        "from graphwright.process import leave\n"
        "threading.Thread(target=lambda: (time.sleep(0.3), print('done'))).start()\n"
        "leave(0)"
    )
    result = run(_PRELUDE + code)
    assert (result.returncode, result.stdout) == (0, "done\n"), result.stderr


def test_leaving_into_a_closed_pipe_is_quiet() -> None:
    code = (
        "from graphwright.process import leave\n"
        "sys.stdout.write('x'); os.close(1); os.close(0); r, w = os.pipe(); os.dup2(w, 1)\n"
        "os.close(r); leave(1)"
    )
    result = run(_PRELUDE + code)
    assert (result.returncode, result.stderr) == (1, "")
