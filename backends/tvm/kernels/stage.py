"""Memory on the stack of a kernel, for sums and rows that it writes only later."""

from __future__ import annotations

import numpy as np
from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.kernel import Expr

__all__ = ["ALIGNMENT", "stage"]

ALIGNMENT = 64  # bytes of a cache line


def stage(size: int, dtype: str = "float32") -> Expr:
    """A buffer of `size` elements on the stack, however large, on a cache line of its own.

    LLVM gets stack buffers from TVM with an alignment of 16, and then three of four vectors of 64
    bytes would lie in two lines.
    """
    slack = ALIGNMENT // np.dtype(dtype).itemsize
    memory = T.alloc_buffer((size + slack,), dtype, annotations={"disable_lower_builtin": True})
    last = T.address_of(memory[slack])
    first = T.call_llvm_pure_intrin(last.ty, "llvm.ptrmask", last, T.int64(-ALIGNMENT))
    return T.decl_buffer((size,), dtype, data=T.bind(first))
