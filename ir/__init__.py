"""The intermediate graph: programs, ops, masks, weights, states, printing and checking."""

from graphwright.ir import ops as ops
from graphwright.ir.errors import BackendError, FrontendError, GraphwrightError, PassError
from graphwright.ir.masks import Mask
from graphwright.ir.printer import format_graph
from graphwright.ir.program import Level, ModelInfo, PassRecord, Program
from graphwright.ir.states import ConvState, IndexState, KVState, RecurrentState, State
from graphwright.ir.weights import (
    CheckpointTensor,
    ConstantTensor,
    Expression,
    TensorFile,
    Weight,
    WeightStore,
)

__all__ = [
    "BackendError",
    "CheckpointTensor",
    "ConstantTensor",
    "ConvState",
    "Expression",
    "FrontendError",
    "GraphwrightError",
    "IndexState",
    "KVState",
    "Level",
    "Mask",
    "ModelInfo",
    "PassError",
    "PassRecord",
    "Program",
    "RecurrentState",
    "State",
    "TensorFile",
    "Weight",
    "WeightStore",
    "format_graph",
    "ops",
]
