"""Which element type a value of the graph has in memory.

Programs compute in float32. On a GPU what depends on the text is stored in the activations' type,
which may be narrower; what depends on positions alone (angles of rotary embeddings, which reach
1e6) stays float32, and so do the logits.
"""

from __future__ import annotations

import torch
from torch import fx

from graphwright.ir.layout import row_view
from graphwright.ir.memory import buffer_name, result_of
from graphwright.ir.program import Program

__all__ = ["ACTIVATIONS", "StoredTypes"]

ACTIVATIONS = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
ITEM_SIZES = {
    "float32": 4, "bfloat16": 2, "float16": 2, "int64": 8, "int32": 4, "int8": 1, "uint8": 1,
}  # fmt: skip


class StoredTypes:
    """`activations`: float32, bfloat16 or float16."""

    def __init__(self, program: Program, activations: str) -> None:
        self.activations = activations
        self._logits = result_of(program.graph)
        self._of_text: set[fx.Node] = set()
        for node in program.graph.nodes:
            is_source = node.op == "placeholder" and node.target == "tokens"
            if is_source or any(each in self._of_text for each in node.all_input_nodes):
                self._of_text.add(node)

    def of(self, node: fx.Node) -> str:
        """The element type of a value that lies in memory, or of a row view of one."""
        dtype = node.meta["val"].dtype
        if dtype is torch.bool:
            return "int8"
        if dtype is not torch.float32:
            return str(dtype).removeprefix("torch.")
        view = row_view(node)
        computed = view is not None and view.base.op != "placeholder"
        if computed and view is not None and buffer_name(view.base) == self._logits:
            return "float32"
        return self.activations if node in self._of_text else "float32"

    def of_result(self, step: fx.Node, name: str, value: torch.Tensor) -> str:
        """The element type of the result `name` of a step (see ir/memory.results)."""
        if value.dtype is torch.bool:
            return "int8"
        if value.dtype is not torch.float32:
            return str(value.dtype).removeprefix("torch.")
        if name == self._logits:
            return "float32"
        return self.activations if step in self._of_text else "float32"
