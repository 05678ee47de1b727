"""The order of a trace's nodes and their names, from what the outputs read.

A trace lists nodes in the order in which Python ran them, and that may differ from process to
process: several models of transformers make one rotary embedding for each of `set(layer_types)`,
and the order of a set of strings follows `PYTHONHASHSEED`.
"""

from __future__ import annotations

import re

import networkx as nx
from torch import fx

__all__ = ["in_order_of_need", "plain_name"]

_NUMBER = re.compile(r"_\d+$")


def in_order_of_need(graph: fx.Graph) -> list[fx.Node]:
    """The nodes, each directly before the first that reads it as far as what that reads allows.

    What no output needs (assertions; inputs that are not read) comes last, in its old order.
    """
    reads = nx.DiGraph()
    reads.add_nodes_from(reversed(graph.nodes))
    for node in graph.nodes:
        reads.add_edges_from((node, read) for read in node.all_input_nodes)
    order = dict.fromkeys(nx.dfs_postorder_nodes(reads, graph.output_node()))
    for node in graph.nodes:
        if node not in order:
            order.update(dict.fromkeys(nx.dfs_postorder_nodes(reads, node)))
    return list(order)


def plain_name(node: fx.Node) -> str:
    """The node's name without the number that tells it from others: `linear` of `linear_7`."""
    return _NUMBER.sub("", node.name)
