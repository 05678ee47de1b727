"""What ops that no pass knows do to the tokens: so that a refusal can say it.

A rule here serves the explanation only: an op outside the vocabulary is refused whatever its rule.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from graphwright.passes.token_rule import (
    MixesTokensError,
    TokenAxes,
    TokenRule,
    along,
    reduction,
)
from graphwright.passes.token_rules import token_rule

__all__ = ["explain"]


def explain(node: fx.Node, axes: TokenAxes) -> str:
    """Why `node`, an op that no pass knows, cannot be kept: the end of a sentence about it."""
    rule = _MIXERS.get(str(node.target).removeprefix("aten."))
    try:
        (rule or token_rule(node))(node, axes)
    except MixesTokensError as reason:
        return str(reason)
    return "is an op that no pass and no kernel knows"


def _reduces_all(node: fx.Node, axes: TokenAxes) -> int:
    raise MixesTokensError("reduces over the token axis and all others")


def _by_content(node: fx.Node, axes: TokenAxes) -> int:
    raise MixesTokensError("gives a number of entries that depends on the content of the tokens")


def _branch(node: fx.Node, axes: TokenAxes) -> int:
    raise MixesTokensError("makes a number of the values of a token")


def _batch_norm(node: fx.Node, axes: TokenAxes) -> int:
    """Statistics are of each entry of the second axis, over all other axes."""
    source: Any = node.args[0]
    axis = axes[source]
    if axis != 1:
        raise MixesTokensError("takes its statistics from the token axis")
    return axis


_REDUCING_ALL = "any all max min median sum mean prod std var norm argmax argmin"
_MIXERS: dict[str, TokenRule] = {
    **{f"{name}.default": _reduces_all for name in _REDUCING_ALL.split()},
    **{f"{name}.{overload}": reduction() for name, overload in (
        ("any", "dim"), ("any", "dims"), ("all", "dim"), ("all", "dims"), ("prod", "dim_int"),
        ("min", "dim"), ("max", "dim"), ("median", "dim"), ("nanmean", "default"),
        ("std", "correction"), ("logsumexp", "default"), ("argmin", "default"),
    )},
    **{f"{name}.default": along(1) for name in (
        "cummax", "cummin", "cumprod", "logcumsumexp", "_log_softmax", "_softmax", "_fft_r2c",
        "_fft_c2r", "_fft_c2c", "argsort",
    )},
    "sort.stable": along(2, -1), "roll.default": along(2), "kthvalue.default": along(2, -1),
    "_native_batch_norm_legit.no_stats": _batch_norm, "_native_batch_norm_legit.default":
    _batch_norm, "batch_norm.default": _batch_norm, "instance_norm.default": _reduces_all,
    "_native_batch_norm_legit_functional.default": _batch_norm,
    "nonzero.default": _by_content, "masked_select.default": _by_content,
    "_local_scalar_dense.default": _branch, "item.default": _branch,
}  # fmt: skip
