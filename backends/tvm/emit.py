"""The library's code as two TIR modules: the kernels, and the entries that call them.

An entry is one parallel launch: phase by phase, every thread calls the phase's kernel with its
number and then waits for the others. Kernels are compiled apart and called by symbol; inlined into
an entry of some hundred calls they would cost minutes of compile time and gain nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tvm import ir, tirx
from tvm.ir import IRModule
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T
from tvm_ffi import structural_equal

from graphwright.backends.tvm.kernels.kernel import Kernel
from graphwright.backends.tvm.phases import PARAMETERS, Operand, Phase
from graphwright.ir.errors import BackendError

__all__ = ["emit_entries", "emit_kernels", "kernels_of"]

_ROWS_IN_BATCH = {"T": 0, "R": 3}
_CALLED_BY_C = 1  # a calling convention given keeps TVM from wrapping the function


def kernels_of(entries: Mapping[str, Sequence[Phase]]) -> list[Kernel]:
    """The kernels that the entries call, each once, in the order of first use.

    Raises BackendError when two different ones have the same name.
    """
    found: dict[str, Kernel] = {}
    for phases in entries.values():
        for phase in phases:
            kernel = phase.kernel
            known = found.setdefault(kernel.name, kernel)
            if known is not kernel and not structural_equal(known.func, kernel.func):
                raise BackendError(
                    f"step '{phase.step}': two different kernels are called '{kernel.name}'."
                )
    return list(found.values())


def emit_kernels(kernels: Iterable[Kernel]) -> IRModule:
    """The kernels as functions that C code could call by their names."""
    functions = {}
    for kernel in kernels:
        function = kernel.func.with_attr("global_symbol", kernel.name)
        function = function.with_attr("calling_conv", _CALLED_BY_C)
        functions[ir.GlobalVar(kernel.name)] = function
    return IRModule(functions)


def emit_entries(entries: Mapping[str, Sequence[Phase]], blobs: Mapping[str, int]) -> IRModule:
    """One exported function per entry, `entry(*PARAMETERS, threads) -> 0`.

    blobs: offsets in the weights region, by name.
    """
    return IRModule(
        {ir.GlobalVar(name): _entry(name, phases, blobs) for name, phases in entries.items()}
    )


def _entry(name: str, phases: Sequence[Phase], blobs: Mapping[str, int]) -> tirx.PrimFunc:
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"global_symbol": name})
        T.func_ret(ir.PrimType("int32"))
        handles = {each: T.arg(each, T.handle(dtype)) for each, dtype in PARAMETERS.items()}
        threads = T.arg("threads", T.int32())
        batch = T.decl_buffer((8,), "int32", data=handles["batch"])
        memory = {
            each: T.decl_buffer((2**62,), "uint8", data=handle) for each, handle in handles.items()
        }
        with T.attr(T.int32(0), "pragma_parallel_launch_point", T.int32(1)):
            for phase in phases:
                pointers = [_address(memory, each, blobs) for each in phase.operands]
                _emit_phase(phase, batch, threads, pointers)
        T.Return(T.int32(0))
    return builder.get()


def _emit_phase(phase: Phase, batch: Any, threads: Any, pointers: list[Any]) -> None:
    rows = batch[_ROWS_IN_BATCH[phase.rows]]
    barrier = T.attr(T.int32(0), "pragma_parallel_barrier_when_finish", T.int32(1))
    with barrier, T.parallel(0, threads) as thread:
        call = tirx.call_extern("int32", phase.kernel.name, thread, threads, rows, *pointers)
        if phase.rows == "T":
            T.evaluate(call)
        else:  # a step may sample no row
            with T.If(rows > 0), T.Then():
                T.evaluate(call)


def _address(memory: Mapping[str, Any], operand: Operand, blobs: Mapping[str, int]) -> Any:
    offset = operand.offset + (blobs[operand.blob] if operand.blob else 0)
    return T.address_of(memory[operand.parameter][tirx.const(offset, "int64")])
