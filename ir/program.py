"""`Program`: one decoder as a functional graph, with its weights, inputs and states."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx._lazy_graph_module import _LazyGraphModule
from torch.fx.experimental.symbolic_shapes import DimDynamic, StatelessSymbolicContext

from graphwright.ir.adapters import Adapter
from graphwright.ir.inference import Inference
from graphwright.ir.memory import MemoryPlan
from graphwright.ir.scheme_choice import SchemeChoice
from graphwright.ir.states import State
from graphwright.ir.weights import Weight, WeightStore

__all__ = ["Level", "ModelInfo", "PassRecord", "Program", "lazy_module"]


class Level(enum.IntEnum):
    """How far a program is lowered; each level has its own vocabulary (see ir/verifier.py)."""

    CAPTURED = 0
    NORMALIZED = 1
    CACHED = 2
    FUSED = 3
    QUANTIZED = 4
    PLANNED = 5


@dataclass(frozen=True)
class ModelInfo:
    """What the compiler knows of the model besides its graph.

    vocab_size: 0 for a part of a model (frontend/row_parts/).
    max_context: positions the model was made for; None when its configuration does not say.
    """

    name: str
    vocab_size: int
    max_context: int | None = None


@dataclass
class PassRecord:
    """What one pass did, for the log in the artifact and on the screen."""

    name: str
    rewrites: int
    seconds: float
    nodes_before: int
    nodes_after: int
    verified: float | None = None  # largest error as a share of the tolerance; None: not checked
    misses: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class Program:
    """A decoder: tokens of one step in, logits out.

    Placeholders: `tokens` and `positions`, int64 [T], for the T tokens of this step. From the
    cached level on also `query_start` int32 [B+1], `block_table` int32 [B, M], `sample_rows` int32
    [R], and the tensors of each state. The result is logits [T, vocab], from there on [R, vocab].
    Where there are `adapters` and they are attached: `adapters` int64 [T, 1] and perhaps
    `row_adapters` int64 [R, 1], the number of each token's and sampled row's, or how many there are
    for none.

    Weights are `get_attr` nodes whose target is a name in `weights`. Every node has `meta["val"]`,
    a fake tensor; `dims` names the symbolic sizes ("T", "B1", "M", "R", ...) by their symbol.
    """

    module: fx.GraphModule
    weights: WeightStore
    info: ModelInfo
    fake_mode: FakeTensorMode
    dims: dict[str, str] = field(default_factory=dict)
    states: list[State] = field(default_factory=list)
    level: Level = Level.CAPTURED
    log: list[PassRecord] = field(default_factory=list)
    plans: dict[str, MemoryPlan] = field(default_factory=dict)  # by entry, from level PLANNED on
    choice: SchemeChoice | None = None  # where the schemes of weights were left to the compiler
    adapters: tuple[Adapter, ...] = ()  # of which a sequence may choose one
    _inference: Inference = field(default_factory=Inference, repr=False)

    @property
    def graph(self) -> fx.Graph:
        """The fx graph."""
        return self.module.graph

    def placeholder(self, name: str) -> fx.Node:
        """The placeholder called `name`. Raises KeyError."""
        for node in self.graph.nodes:
            if node.op == "placeholder" and node.target == name:
                found: fx.Node = node
                return found
        raise KeyError(f"the program has no input '{name}'.")

    @property
    def output(self) -> fx.Node:
        """The node that computes the logits."""
        result: Any = self.graph.output_node().args[0]
        node: fx.Node = result[0] if isinstance(result, (tuple, list)) else result
        return node

    # ---- building

    def add_input(
        self, name: str, sizes: Iterable[int | str], dtype: torch.dtype, hint: int = 5
    ) -> fx.Node:
        """A new placeholder after the existing ones. A size given as text is symbolic: the
        dimension of that name, made where there is none with `hint` as its value while tracing."""
        shape: Any = [s if isinstance(s, int) else self._dimension(s, hint) for s in sizes]
        with self.fake_mode:
            fake = torch.empty(shape, dtype=dtype)
        last = [node for node in self.graph.nodes if node.op == "placeholder"][-1]
        with self.graph.inserting_after(last):
            node = self.graph.placeholder(name)
        node.meta["val"] = fake
        return node

    def _dimension(self, name: str, hint: int) -> torch.SymInt:
        """The size of that name: that of an input, or a new one."""
        for node in self.graph.nodes:
            if node.op == "placeholder":
                for size in getattr(node.meta.get("val"), "shape", ()):
                    if isinstance(size, torch.SymInt) and self.dims.get(str(size)) == name:
                        return size
        if name in self.dims.values():
            raise ValueError(f"no input has the dimension '{name}', though there is one.")
        context: Any = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC])
        fake = self.fake_mode.from_tensor(torch.empty(hint), symbolic_context=context)
        made: Any = fake.shape[0]
        assert isinstance(made, torch.SymInt)
        self.dims[str(made)] = name
        return made

    def add_weight(self, name: str, weight: Weight) -> fx.Node:
        """Registers `weight` (under a free name like `name`) and returns a get_attr node for it,
        placed behind the placeholders."""
        name = self.weights.unique_name(name)
        self.weights[name] = weight
        meta = torch.empty(weight.shape, dtype=weight.dtype, device="meta")
        self.module.register_buffer(name, meta, persistent=False)
        before = next(node for node in self.graph.nodes if node.op != "placeholder")
        with self.graph.inserting_before(before):
            node = self.graph.get_attr(name)
        with self.fake_mode:
            node.meta["val"] = torch.empty(weight.shape, dtype=weight.dtype)
        return node

    def call(
        self, before: fx.Node, target: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> fx.Node:
        """A new call_function node in front of `before`, with its meta value computed."""
        with self.graph.inserting_before(before):
            node = self.graph.call_function(target, args, kwargs)
        self.infer(node)
        return node

    def infer(self, node: fx.Node) -> None:
        """Computes `node.meta["val"]` anew from its arguments' values."""
        node.meta["val"] = self._inference.value(node, self.fake_mode)

    def replace(self, old: fx.Node, new: fx.Node) -> None:
        """Every use of `old` becomes a use of `new`; `old` is erased."""
        old.replace_all_uses_with(new)
        self.graph.erase_node(old)

    def weight_of(self, node: Any) -> Weight | None:
        """The weight a get_attr node stands for; None for anything else."""
        if isinstance(node, fx.Node) and node.op == "get_attr" and str(node.target) in self.weights:
            return self.weights[str(node.target)]
        return None

    def drop_dead(self) -> bool:
        """Erases every node that nothing uses, apart from inputs and what has an effect. Did it
        find any?"""
        found = False
        for node in reversed(self.graph.nodes):
            if not node.users and node.op not in ("placeholder", "output") and not node.is_impure():
                self.graph.erase_node(node)
                found = True
        return found

    def clean(self) -> None:
        """Removes dead nodes and unused weights, checks the graph and marks its code as old."""
        self.drop_dead()
        used = {node.target for node in self.graph.nodes if node.op == "get_attr"}
        for name in [name for name in self.weights if name not in used]:
            del self.weights[name]
            if hasattr(self.module, name):
                delattr(self.module, name)
        self.graph.lint()
        self.module.recompile()

    def copy(self) -> Program:
        """An independent program over the same (shared, immutable) weights."""
        graph = fx.Graph()
        values: dict[fx.Node, fx.Node] = {}
        result = graph.graph_copy(self.graph, values)
        graph.output(result)
        old = self.graph.output_node()
        graph.output_node().meta = dict(old.meta)
        module = lazy_module(self.module, graph)
        return Program(
            module=module,
            weights=self.weights.copy(),
            info=self.info,
            fake_mode=self.fake_mode,
            dims=dict(self.dims),
            states=list(self.states),
            level=self.level,
            log=list(self.log),
            plans=dict(self.plans),
            choice=self.choice,
            adapters=self.adapters,
            _inference=self._inference,
        )

    def become(self, other: Program) -> None:
        """Takes over all that `other` is, which is not to be used any more."""
        vars(self).update(vars(other))


def lazy_module(root: torch.nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """A graph module whose Python code is only written when it is called: passes never do that."""
    return _LazyGraphModule(root, graph)
