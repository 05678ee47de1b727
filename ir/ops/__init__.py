"""The gw ops: importing this module declares them all."""

from graphwright.ir.ops.attention import attention
from graphwright.ir.ops.cached_attention import cached_attention
from graphwright.ir.ops.causal_conv import causal_conv, conv_along_tokens
from graphwright.ir.ops.choose_keys import cached_choose_keys, choose_keys, mark_largest
from graphwright.ir.ops.embedding import embedding, quantized_embedding
from graphwright.ir.ops.gated_act import gated_act
from graphwright.ir.ops.linear import linear
from graphwright.ir.ops.norms import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from graphwright.ir.ops.quantized_linear import quantized_linear
from graphwright.ir.ops.quantized_routed_linear import quantized_routed_linear
from graphwright.ir.ops.rope import rope
from graphwright.ir.ops.routed_linear import routed_linear
from graphwright.ir.ops.scan import cached_scan, scan_along_tokens
from graphwright.ir.ops.select_rows import select_rows
from graphwright.ir.ops.top_k import top_k
from graphwright.ir.ops.weighted_sum import weighted_sum

__all__ = [
    "add_layer_norm",
    "add_rms_norm",
    "attention",
    "cached_attention",
    "cached_choose_keys",
    "cached_scan",
    "causal_conv",
    "choose_keys",
    "conv_along_tokens",
    "embedding",
    "gated_act",
    "layer_norm",
    "linear",
    "mark_largest",
    "quantized_embedding",
    "quantized_linear",
    "quantized_routed_linear",
    "rms_norm",
    "rope",
    "routed_linear",
    "scan_along_tokens",
    "select_rows",
    "top_k",
    "weighted_sum",
]
