"""The library's code as TIR modules: of kernels, and of the entries that call them.

Every thread of the pool (step_pool.c) runs an entry: phase by phase it calls the phase's kernel
with its number, and waits for the others where it must (meetings.py). Kernels are compiled apart
and called by symbol; inlined into an entry of some hundred calls they would cost minutes of compile
time and gain nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tvm import ir, tirx
from tvm.ir import IRModule
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T
from tvm_ffi import structural_equal

from graphwright.backends.tvm.kernels.kernel import PLAIN, Kernel
from graphwright.backends.tvm.meetings import Meetings
from graphwright.backends.tvm.phases import PARAMETERS, Operand, Phase
from graphwright.ir.errors import BackendError

__all__ = ["emit_entries", "emit_entry", "emit_kernels", "kernels_of"]

_ROWS_IN_BATCH = {"T": 0, "R": 3}
_CALLED_BY_C = 1  # a calling convention given keeps TVM from wrapping the function


def kernels_of(entries: Mapping[str, Sequence[Phase]]) -> list[Kernel]:
    """The kernels that the entries call, each once, in the order of first use.

    Raises BackendError when two different ones have the same name.
    """
    found: dict[str, Kernel] = {}
    compared: set[int] = set()
    for phases in entries.values():
        for phase in phases:
            kernel = phase.kernel
            known = found.setdefault(kernel.name, kernel)
            if known is kernel or id(kernel) in compared:
                continue
            if not structural_equal(known.func, kernel.func):
                raise BackendError(
                    f"step '{phase.step}': two different kernels are called '{kernel.name}'."
                )
            compared.add(id(kernel))
    return list(found.values())


def emit_kernels(kernels: Iterable[Kernel]) -> IRModule:
    """The kernels as functions that C code could call by their names."""
    functions = {}
    for kernel in kernels:
        function = kernel.func.with_attr("global_symbol", kernel.name)
        function = function.with_attr("calling_conv", _CALLED_BY_C)
        functions[ir.GlobalVar(kernel.name)] = function
    return IRModule(functions)


def emit_entries(
    entries: Mapping[str, Sequence[Phase]],
    meetings: Mapping[str, Meetings],
    blobs: Mapping[str, int],
) -> IRModule:
    """One C function per entry, what step_pool.c calls `Entry`: it returns 0.

    blobs: offsets in the weights region, by name.
    """
    return IRModule(
        {
            ir.GlobalVar(name): emit_entry(name, phases, meetings[name], blobs)
            for name, phases in entries.items()
        }
    )


def emit_entry(
    name: str,
    phases: Sequence[Phase],
    meetings: Meetings,
    blobs: Mapping[str, int],
    mark: Callable[[Any, int], None] = lambda thread, number: None,
) -> tirx.PrimFunc:
    """The entry `name`. mark(thread, n) emits what is to happen at its start (n = 0), after each
    kernel and after each meeting."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"global_symbol": name, "calling_conv": _CALLED_BY_C, PLAIN: True})
        T.func_ret(ir.PrimType("int32"))
        thread, threads, alone = (T.arg(each, T.int32()) for each in ("thread", "threads", "alone"))
        pool, own = T.arg("pool", T.handle("uint8")), T.arg("own", T.handle("uint8"))
        handles = {each: T.arg(each, T.handle(dtype)) for each, dtype in PARAMETERS.items()}
        batch = T.decl_buffer((8,), "int32", data=handles["batch"])
        memory = {
            each: T.decl_buffer((2**62,), "uint8", data=handle)
            for each, handle in {**handles, "own": own}.items()
        }
        shares = {
            False: (thread, threads),
            True: (T.bind(thread * (1 - alone)), T.bind(threads - (threads - 1) * alone)),
        }
        mark(thread, 0)
        for number, (phase, meet) in enumerate(zip(phases, meetings.after, strict=True)):
            pointers = [_address(memory, each, meetings.own, blobs) for each in phase.operands]
            _emit_call(phase, batch, (*shares[phase.replicated], *pointers))
            mark(thread, 2 * number + 1)
            if number + 1 < len(phases):
                _emit_barrier(pool, None if meet else alone)
            mark(thread, 2 * number + 2)
        T.Return(T.int32(0))
    return builder.get()


def _emit_call(phase: Phase, batch: Any, arguments: tuple[Any, ...]) -> None:
    rows = batch[_ROWS_IN_BATCH[phase.rows]]
    call = tirx.call_extern("int32", phase.kernel.name, *arguments[:2], rows, *arguments[2:])
    if phase.rows == "T":
        T.evaluate(call)
    else:  # a step may sample no row
        with T.If(rows > 0), T.Then():
            T.evaluate(call)


def _emit_barrier(pool: Any, alone: Any | None) -> None:
    """The threads meet; given `alone`, not where it is set."""
    meet = tirx.call_extern("int32", "gw_barrier", pool)
    if alone is None:
        T.evaluate(meet)
    else:
        with T.If(alone == 0), T.Then():
            T.evaluate(meet)


def _address(
    memory: Mapping[str, Any], operand: Operand, own: frozenset[str], blobs: Mapping[str, int]
) -> Any:
    offset = operand.offset + (blobs[operand.blob] if operand.blob else 0)
    region = memory["own" if operand.buffer in own else operand.parameter]
    return T.address_of(region[tirx.const(offset, "int64")])
