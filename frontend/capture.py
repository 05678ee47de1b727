"""`nn.Module` → Program: one trace of the stateless forward, its length the number of tokens."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo.config
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx.node import map_arg

from graphwright.frontend.check_lengths import check_lengths, check_positions
from graphwright.frontend.experts import traceable_experts
from graphwright.frontend.export_ladder import Exported
from graphwright.frontend.order_of_need import in_order_of_need, plain_name
from graphwright.frontend.random_ops import refuse_random
from graphwright.frontend.recurrent.form_scans import form_scans
from graphwright.frontend.recurrent.whole_or_stepped import export_whole_or_stepped
from graphwright.frontend.settled_buffers import settled_buffers
from graphwright.frontend.stateless import StatelessForward, float32_parameters
from graphwright.frontend.token_tables import check_token_tables
from graphwright.ir.errors import FrontendError
from graphwright.ir.program import ModelInfo, Program, lazy_module
from graphwright.ir.weights import ConstantTensor, Expression, Weight, WeightStore

__all__ = ["Source", "capture_module", "capture_with_weights", "context_of"]

_LOG = logging.getLogger("graphwright.frontend")
_CONTEXT_NAMES = (
    "max_position_embeddings",
    "n_positions",
    "max_sequence_length",
    "max_seq_len",
    "max_seq_length",
    "n_ctx",
    "seq_length",
    "context_length",
    "block_size",
)
_EXAMPLE_LENGTH = 12
_CHECKED_BYTES = 100 * 2**20  # models up to this are run for 1 token, which no trace can see
_KEPT_META = ("val", "stack_trace", "nn_module_stack")

Source = Callable[[str, torch.Tensor], Weight]
"""From a parameter's or buffer's name and tensor to the weight that stands for it."""


def capture_module(
    model: nn.Module,
    *,
    example_tokens: torch.Tensor | None = None,
    name: str | None = None,
    vocab_size: int | None = None,
    max_context: int | None = None,
) -> Program:
    """Traces `model` and returns it as a Program at level CAPTURED.

    model: its forward takes tokens [1, T] (and positions [1, T], if it has such an argument) and
        returns logits [1, T, vocab]. It is not changed; the program shares its tensors.
    example_tokens: int64 [T] or [1, T] to trace with; their values do not matter.
    vocab_size, max_context: default to the width of the logits, and to what `model.config` says.

    Raises FrontendError when the model cannot be traced, saying what was tried and where it failed.
    """
    return capture_with_weights(
        model,
        lambda origin, tensor: ConstantTensor.of(tensor.detach().cpu(), origin),
        example_tokens=example_tokens,
        name=name,
        vocab_size=vocab_size,
        max_context=max_context,
    )


def capture_with_weights(
    model: nn.Module,
    source: Source,
    *,
    example_tokens: torch.Tensor | None = None,
    name: str | None = None,
    vocab_size: int | None = None,
    max_context: int | None = None,
    has_values: bool = True,
) -> Program:
    """`capture_module`, with `source` saying where the values of each tensor come from.

    has_values: are the parameters there? If not, the trace is not compared with what the model
    computes, and what shows only there is not refused.
    """
    # torch keeps what operators return for fake tensors. As layers that are alike are traced once,
    # few calls are equal here, and keeping answers takes longer than finding them.
    with torch._dynamo.config.patch(fake_tensor_cache_enabled=False):
        return _capture(model, source, example_tokens, name, vocab_size, max_context, has_values)


def _capture(
    model: nn.Module,
    source: Source,
    example_tokens: torch.Tensor | None,
    name: str | None,
    vocab_size: int | None,
    max_context: int | None,
    has_values: bool,
) -> Program:
    forward = StatelessForward(model)
    tokens = torch.zeros(_EXAMPLE_LENGTH, dtype=torch.int64)
    if example_tokens is not None:
        tokens = example_tokens.reshape(-1).to(torch.int64)
    context = max_context or context_of(model)
    with (
        float32_parameters(model),
        traceable_experts(forward),
        settled_buffers(model, context) as own,
    ):
        given = forward.takes_positions
        exported, recurrence = export_whole_or_stepped(forward, tokens, context)
    if recurrence is not None and has_values:
        recurrence.check()
    _check_signature(exported, model)
    refuse_random(exported.program.graph)

    def values(origin: str, tensor: torch.Tensor) -> Weight:
        return ConstantTensor.of(tensor, origin) if origin in own else source(origin, tensor)

    program = _convert(exported, {**_held(model), **own}, values)
    if recurrence is not None:
        form_scans(program)
    known = [bound for bound in (context_of(model), exported.most) if bound is not None]
    if max_context is not None and known and max_context > min(known):
        raise FrontendError(
            f"{type(model).__name__} takes at most {min(known)} tokens, not {max_context}."
        )
    logits = program.output.meta["val"]
    program.info = ModelInfo(
        name=name or type(model).__name__,
        vocab_size=vocab_size or int(logits.shape[-1]),
        max_context=max_context or min(known, default=None),
    )
    if forward.takes_positions and not given and has_values:
        check_positions(forward, len(tokens), program.info.vocab_size)
    if has_values:
        _check_lengths(model, context, program, forward, exported)
    check_token_tables(program)
    _LOG.info("captured %s by %s", program.info.name, exported.rung)
    return program


def _check_lengths(
    model: nn.Module, context: int | None, program: Program, forward: StatelessForward,
    exported: Exported,
) -> None:  # fmt: skip
    small = sum(tensor.nbytes for tensor in _held(model).values()) <= _CHECKED_BYTES
    try:
        with settled_buffers(model, context):
            check_lengths(program, forward, exported.least, exported.most, small=small)
    except FrontendError as error:
        if not exported.because:
            raise
        raise FrontendError(
            f"{program.info.name} cannot be traced for a variable number of tokens: "
            f"{exported.because}\n  {exported.rung} does not help: {error}"
        ) from error


def context_of(model: nn.Module) -> int | None:
    """How many positions the model's configuration says it was made for; None when it does not."""
    config = getattr(model, "config", None)
    text = getattr(config, "get_text_config", None)
    for each in (config, text() if callable(text) else None):
        for key in _CONTEXT_NAMES:
            value = getattr(each, key, None)
            if isinstance(value, int) and value > 0:
                return value
    return None


def _check_signature(exported: Exported, model: nn.Module) -> None:
    for spec in exported.program.graph_signature.output_specs:
        if spec.kind is not OutputKind.USER_OUTPUT:
            changed = (spec.target or "").removeprefix("model.")
            raise FrontendError(
                f"{type(model).__name__}.forward changes '{changed}' while it runs; a stateless "
                f"forward is needed."
            )


def _convert(exported: Exported, held: dict[str, torch.Tensor], source: Source) -> Program:
    """The exported graph as a Program: weights behind get_attr nodes, `tokens` and `positions`."""
    old = exported.program
    specs = {spec.arg.name: spec for spec in old.graph_signature.input_specs}
    module = lazy_module(nn.Module(), fx.Graph())
    graph, weights = fx.Graph(), WeightStore()
    values: dict[fx.Node, fx.Node] = {}
    inputs = [
        node
        for node in old.graph.nodes
        if node.op == "placeholder" and specs[node.name].kind is InputKind.USER_INPUT
    ]
    fake: Any = inputs[0].meta["val"]
    mode: FakeTensorMode = fake.fake_mode
    for name in ("tokens", "positions"):
        node = graph.placeholder(name)
        given = next((n for n in inputs if n.target == name), None)
        if given is not None:
            values[given] = node
            node.meta["val"] = given.meta["val"]
        else:
            with mode:
                node.meta["val"] = torch.empty_like(fake)
    tensors = _tensors(exported, held)
    names: dict[int, str] = {}
    order = in_order_of_need(old.graph)
    for node in order:
        if node.op == "placeholder" and node not in values and node.users:
            origin, tensor = tensors[node.name]
            if id(tensor) not in names:
                names[id(tensor)] = weights.unique_name(origin)
                weights[names[id(tensor)]] = _float32(source(origin, tensor))
                meta = torch.empty(tensor.shape, dtype=node.meta["val"].dtype, device="meta")
                module.register_buffer(names[id(tensor)], meta, persistent=False)
            values[node] = graph.get_attr(names[id(tensor)])
            values[node].meta["val"] = node.meta["val"]
    for node in order:
        if node.op not in ("placeholder", "output"):
            values[node] = graph.create_node(
                node.op,
                node.target,
                map_arg(node.args, values.__getitem__),
                map_arg(node.kwargs, values.__getitem__),
                plain_name(node),
            )
            values[node].meta = {key: node.meta[key] for key in _KEPT_META if key in node.meta}
            values[node].meta.setdefault("val", None)  # an assertion has no value
    result: Any = old.graph.output_node().args[0]
    graph.output(values[result[0]])
    module.graph = graph
    program = Program(
        module=module,
        weights=weights,
        info=ModelInfo("", 0),
        fake_mode=mode,
        dims={str(fake.shape[0]): "T"},
    )
    program.clean()
    return program


def _held(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every buffer and parameter of the model under each of its names."""
    held: dict[str, torch.Tensor] = dict(model.named_buffers(remove_duplicate=False))
    held.update(model.named_parameters(remove_duplicate=False))
    return held


def _tensors(
    exported: Exported, held: dict[str, torch.Tensor]
) -> dict[str, tuple[str, torch.Tensor]]:
    """By placeholder name: what the tensor is called in the model, and its values there."""
    found: dict[str, tuple[str, torch.Tensor]] = {}
    for spec in exported.program.graph_signature.input_specs:
        target = spec.target or ""
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            origin = target.removeprefix("model.")
            found[spec.arg.name] = (origin, held[origin])
        elif spec.kind is InputKind.CONSTANT_TENSOR:
            constant = exported.program.constants[target]
            assert isinstance(constant, torch.Tensor)
            found[spec.arg.name] = (target.removeprefix("model."), constant)
        elif spec.kind is not InputKind.USER_INPUT:
            raise FrontendError(f"'{target}' is an object of kind {spec.kind}, not a tensor.")
    return found


def _float32(weight: Weight) -> Weight:
    if not weight.dtype.is_floating_point or weight.dtype == torch.float32:
        return weight
    if isinstance(weight, ConstantTensor) and weight.nbytes < 1 << 16:
        return ConstantTensor.of(weight.tensor.float(), weight.origin)
    return Expression.of(torch.ops.aten._to_copy.default, weight, dtype=torch.float32)
