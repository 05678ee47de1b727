"""PTX that may begin to run before the launches in front of it have ended.

`griddepcontrol.wait` waits for them, and comes before the first instruction that needs it: a
branch, a store, or a load of what the launch in front may have written. Loads of weights need no
wait. The launch in front waits itself before this one begins, so that all before it have ended.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from threading import local
from typing import Any
from unittest.mock import patch

__all__ = ["CONSTANT", "early_of", "waiting", "waiting_cubins"]

# Pointers to what no launch writes
CONSTANT = frozenset({"weight", "scale", "zero", "norm", "bias", "sinks", "slopes"})
# By how names of kernels begin, pointers to what the launch right in front does not write: in
# decode of models of the Llama shape, if places in the cache are computed first of all
OLDER = {
    "decode_attention": frozenset({"batch", "positions", "sequences", "block_table"}),
    **dict.fromkeys(
        ("gemv", "few_rows", "linear"), frozenset({"batch", "residual", "cos", "sin", "slots"})
    ),
}
WAIT = "\tgriddepcontrol.wait;"
TRIGGER = "\tgriddepcontrol.launch_dependents;"
_INSTRUCTION = re.compile(r"(?:@!?%?\w+\s+)?([a-z][\w.:]*)\s*(.*);")
_BRANCHES = ("bra", "brx", "ret", "exit", "call", "bar")


def early_of(kernel: str) -> frozenset[str]:
    """The pointers of a kernel, by its name, through which it may read before its wait."""
    return CONSTANT.union(*(own for name, own in OLDER.items() if kernel.startswith(name)))


def waiting(ptx: str, pointers: list[str], trigger: bool, early: frozenset[str] = CONSTANT) -> str:
    """`ptx` of a kernel whose parameters are `pointers`, with a wait before others than `early` are
    read.

    trigger: the launch behind may begin as soon as all programs of this one have waited; else as
    soon as they have ended.
    """
    lines = ptx.splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("{"))
    kept = f"{WAIT}\n{TRIGGER}" if trigger else WAIT
    sources: dict[str, frozenset[str]] = {}  # of registers: the parameters they come from
    for number in range(begin + 1, len(lines)):
        text = lines[number].split("//")[0].strip()
        found = _INSTRUCTION.fullmatch(text)
        if not found or text.startswith("."):
            continue
        if _needs_wait(found[1], found[2], sources, early):
            lines.insert(number, kept)
            return "\n".join(lines) + "\n"
        _follow(found[1], found[2], sources, pointers)
    raise ValueError("nothing in the kernel needs to wait")


def _needs_wait(
    operation: str, operands: str, sources: dict[str, frozenset[str]], early: frozenset[str]
) -> bool:
    name = operation.split(".")[0]
    if name in _BRANCHES or name in ("st", "atom", "red", "wgmma", "mma", "griddepcontrol"):
        return True
    if "global" not in operation:
        return False
    if not operation.startswith(("ld.", "cp.async.")):
        return True
    address = re.findall(r"\[\s*(%\w+)", operands)[-1]
    return not sources.get(address, frozenset({"?"})) <= early


def _follow(
    operation: str, operands: str, sources: dict[str, frozenset[str]], pointers: list[str]
) -> None:
    """Notes what the result of an instruction comes from."""
    parameter = re.search(r"_param_(\d+)\]", operands)
    registers = re.findall(r"%\w+", operands)
    if not registers or operation.startswith("cp."):
        return
    if parameter:
        number = int(parameter[1])
        found = frozenset({pointers[number]} if number < len(pointers) else ())
        sources[registers[0]] = found
        return
    wide = operands.startswith("{")
    results = re.findall(r"%\w+", operands[: operands.index("}")]) if wide else registers[:1]
    others = [sources.get(each, frozenset()) for each in registers[len(results) :]]
    for each in results:
        sources[each] = frozenset().union(*others)


@contextmanager
def waiting_cubins(trigger: bool) -> Iterator[None]:
    """While open, kernels are compiled so, for chips of sm_90 and newer."""
    from triton.backends.nvidia.compiler import CUDABackend

    from graphwright.backends.triton import cubin

    own = local()
    code, assemble = cubin.triton_code, CUDABackend.make_cubin

    def noted(kernel: Any, chip: Any, aligned: frozenset[str]) -> Any:
        own.pointers = [name for name, _ in kernel.pointers]
        own.early = early_of(kernel.name)
        return code(kernel, chip, aligned)

    def changed(self: Any, ptx: str, metadata: Any, options: Any, arch: int) -> Any:
        text = waiting(ptx, own.pointers, trigger, own.early) if arch >= 90 else ptx
        return assemble(self, text, metadata, options, arch)

    with (
        patch.object(cubin, "triton_code", noted),
        patch.object(CUDABackend, "make_cubin", changed),
    ):
        yield
