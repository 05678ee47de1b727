"""The kernels of a library as TIR modules. Each is compiled apart and called by its symbol: inlined
into entries of some hundred calls they would cost minutes of compile time and gain nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tvm import ir
from tvm.ir import IRModule
from tvm_ffi import structural_equal

from graphwright.backends.tvm.kernels.kernel import Kernel
from graphwright.backends.tvm.phases import Phase
from graphwright.ir.errors import BackendError

__all__ = ["emit_kernels", "kernels_of"]

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
