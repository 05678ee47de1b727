"""Traces in ops that passes know: written by torch with others, only where that is needed."""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from graphwright.frontend.in_place_writes import CannotRewriteError, is_write, without_writes
from graphwright.frontend.layer_markers import is_marker
from graphwright.ir.program import Level
from graphwright.ir.verifier import allowed_at

__all__ = ["decomposed"]

_LOG = logging.getLogger("graphwright.frontend")
# What normalizing turns into the vocabulary by itself:
_SPELLINGS = frozenset(
    """
    aten._assert_tensor_metadata.default aten._assert_scalar.default aten.view.default
    aten.to.dtype aten.to.dtype_layout aten.to.device aten.to.other aten.type_as.default
    aten.contiguous.default aten.alias.default aten.detach.default aten.dropout.default
    aten.numpy_T.default aten.broadcast_to.default aten.new_empty.default aten.copy.default
    aten.slice_scatter.default aten.select_scatter.default aten.topk.default aten.max.dim
    aten.scatter.value aten.scatter.src aten.scatter_add.default
    aten.pad.default aten.eye.default aten.eye.m
    """.split()
)


def decomposed(exported: ExportedProgram) -> ExportedProgram:
    """Without writes in place, and without ops that torch can write with others.

    torch traces the graph once more for that, which takes longer than the first time: so only where
    there is such an op, or a write that is not understood.
    """
    if all(_is_known(node) for node in _needed(exported.graph)):
        value = next(node.meta["val"] for node in exported.graph.nodes if node.op == "placeholder")
        try:
            exported.graph_module.graph = without_writes(exported.graph, value.fake_mode)
        except CannotRewriteError as error:
            _LOG.info("torch rewrites the writes in place: %s", error)
        else:
            return exported
    result: ExportedProgram = exported.run_decompositions(_decompositions())
    return result


def _needed(graph: fx.Graph) -> list[fx.Node]:
    """The nodes that something comes of: experts that are run once leave the search for them."""
    found: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.op == "output" or node.is_impure() or any(user in found for user in node.users):
            found.add(node)
    return list(found)


def _is_known(node: fx.Node) -> bool:
    """Do passes know it, or is it written in place, which `without_writes` knows?"""
    if node.op != "call_function":
        return node.op != "get_attr"
    target = node.target
    known = allowed_at(Level.NORMALIZED, target) or str(target) in _SPELLINGS
    return known or is_marker(target) or is_write(target)


@functools.cache
def _decompositions() -> dict[Any, Any]:
    """How to write ops outside the vocabulary (einsum, type_as, …) with others; the rest stays."""
    table = torch.export.default_decompositions().items()
    return {op: rule for op, rule in table if not allowed_at(Level.NORMALIZED, op)}
