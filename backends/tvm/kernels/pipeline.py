"""From TIR to machine code by the few TVM passes that hand-written kernels need.

TVM's default pipeline spends 1 to 3 seconds on a matrix kernel of 2000 statements, nearly all of it
in simplifiers whose work LLVM does again. Functions made by `define` use flat buffers and no
blocks: they need none of that. Others (TVMScript) get blocks and multi-dimensional buffers lowered
and simplified.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tvm
from tvm import tirx
from tvm.ir import IRModule
from tvm.s_tir import transform as s_tir
from tvm.tirx import compilation_pipeline
from tvm.tirx import transform as t

from graphwright.backends.tvm.kernels.kernel import PLAIN
from graphwright.backends.tvm.target import Cpu

__all__ = ["compile_module", "lower_module", "write_object"]

PIPELINE = "graphwright"


def compile_module(module: IRModule, cpu: Cpu) -> Any:
    """The tvm.runtime executable of `module` for `cpu`; kernels are in it as private functions."""
    return tvm.compile(module, target=cpu.tvm_target(), tir_pipeline=PIPELINE)


def lower_module(module: IRModule, cpu: Cpu) -> IRModule:
    """What LLVM takes, of a `module` whose functions have calling conventions of their own."""
    target = cpu.tvm_target()
    bound = t.BindTarget(target.with_host(target))(module)
    lowered: IRModule = compilation_pipeline.finalize_host_passes()(_passes(bound))
    return lowered


def write_object(lowered: IRModule, cpu: Cpu, file: Path) -> None:
    """The object file of what `lower_module` returned.

    Two calls into TVM that take long and leave Python's lock to others meanwhile.
    """
    llvm = tvm.get_global_func("target.build.llvm")
    llvm(lowered, cpu.tvm_target()).write_to_file(str(file), "o")


def _lower_script(function: tirx.PrimFunc, module: IRModule, context: Any) -> tirx.PrimFunc:
    if function.attrs is not None and PLAIN in function.attrs:
        return function
    passes = (
        s_tir.LowerInitBlock(),
        s_tir.PlanAndUpdateBufferAllocationLocation(),
        s_tir.ConvertBlocksToOpaque(),
        s_tir.LowerMatchBuffer(),
        s_tir.LowerOpaqueBlock(),
        t.FlattenBuffer(),
        t.StmtSimplify(),
    )
    name = tvm.ir.GlobalVar("function")
    return tvm.transform.Sequential(passes)(IRModule({name: function}))[name]


# No function is annotated as the entry, which t.AnnotateEntryFunc does to one that is alone in its
# module: TVM makes a function of another name beside it, and LLVM puts the kernel into both.
_passes = tvm.transform.Sequential(
    (
        tirx.transform.prim_func_pass(_lower_script, opt_level=0),
        t.VectorizeLoop(True),
        t.UnrollLoop(),
        t.SplitHostDevice(),
        t.MakePackedAPI(),
    )
)


def _pipeline() -> tuple[Any, Any, Any]:
    finalize = compilation_pipeline
    return _passes, finalize.finalize_host_passes, finalize.finalize_device_passes


compilation_pipeline.register_tir_pipeline(PIPELINE, _pipeline)
