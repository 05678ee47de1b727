"""The passes in order: the table of contents of the compiler."""

from __future__ import annotations

from dataclasses import dataclass, field

from graphwright.passes.attach_adapters import AttachAdapters
from graphwright.passes.base import Pass
from graphwright.passes.calibration import Calibration
from graphwright.passes.canonicalize_ops import CanonicalizeOps
from graphwright.passes.choose_schemes import ChooseSchemes
from graphwright.passes.drop_no_ops import DropNoOps
from graphwright.passes.eliminate_common_subexpressions import EliminateCommonSubexpressions
from graphwright.passes.expand_inner_attention import ExpandInnerAttention
from graphwright.passes.fold_constants import FoldConstants
from graphwright.passes.fold_scales import FoldScales
from graphwright.passes.form_regions import FormRegions
from graphwright.passes.fuse_embedding import FuseEmbedding
from graphwright.passes.fuse_gated_activation import FuseGatedActivation
from graphwright.passes.fuse_layer_norm import FuseLayerNorm
from graphwright.passes.fuse_linear import FuseLinear
from graphwright.passes.fuse_residual_norm import FuseResidualNorm
from graphwright.passes.fuse_rms_norm import FuseRmsNorm
from graphwright.passes.insert_kv_cache import InsertKvCache
from graphwright.passes.mark_largest import MarkLargest
from graphwright.passes.merge_projections import MergeProjections
from graphwright.passes.narrow_weights import NarrowWeights
from graphwright.passes.plan_memory import PlanMemory
from graphwright.passes.quantize_kv_cache import QuantizeKvCache
from graphwright.passes.quantize_weights import QuantizeWeights
from graphwright.passes.recipe import Recipe
from graphwright.passes.recognize_attention import RecognizeAttention
from graphwright.passes.recognize_causal_conv import RecognizeCausalConv
from graphwright.passes.recognize_counts import RecognizeCounts
from graphwright.passes.recognize_experts import RecognizeExperts
from graphwright.passes.recognize_rope import RecognizeRope
from graphwright.passes.reorder_projections import ReorderProjections
from graphwright.passes.restrict_attention import RestrictAttention, Restriction
from graphwright.passes.rewrite_positions import RewritePositions
from graphwright.passes.select_sampled_rows import SelectSampledRows
from graphwright.passes.self_written_tokens import SelfWritten
from graphwright.passes.split_weight_stacks import SplitWeightStacks

__all__ = ["PipelineOptions", "part_pipeline", "pipeline"]


@dataclass(frozen=True)
class PipelineOptions:
    """What a user chooses about the passes.

    recipe: which weights are narrowed or quantized, and how. decode_tokens, chunk: the most tokens
    that one step of the decode and of the prefill entry takes. kv_cache_dtype: auto, f32, f16, bf16
    or int8. attention: what it may see (None: what the model shows it). calibration: what integer
    weights are rounded by (None: to nearest). choice: chooses the schemes where the recipe is
    `auto`; then there is no other recipe.
    """

    recipe: Recipe = field(default_factory=Recipe)
    decode_tokens: int = 8
    chunk: int = 512
    kv_cache_dtype: str = "auto"
    attention: Restriction | None = None
    calibration: Calibration | SelfWritten | None = None
    choice: ChooseSchemes = field(default_factory=ChooseSchemes)


# Few phases, each one pass over memory. Gates come before merging, which leaves a linear alone that
# feeds an activation and no gate: that is its epilogue. A residual is added in a linear's epilogue
# where it can be (the norm then reads one tensor); only sums that are left, as behind a norm of the
# linear's result, join the norm. Adapters are attached to merged products, and before there are
# epilogues: what they add joins the sum of the linear.
_FUSE: tuple[Pass, ...] = (
    FoldScales(),
    ReorderProjections(),
    FuseRmsNorm(),
    FuseLayerNorm(),
    FuseGatedActivation(),
    MergeProjections(),
    AttachAdapters(),
    FuseLinear(),
    FuseResidualNorm(),
    FuseEmbedding(),
    FormRegions(),
)


def pipeline(options: PipelineOptions | None = None) -> tuple[Pass, ...]:
    """Every pass, in order. A pass that does not apply makes no rewrites."""
    options = options or PipelineOptions()
    return (
        # normalize: one spelling for everything
        DropNoOps(),
        CanonicalizeOps(),
        FoldConstants(),
        EliminateCommonSubexpressions(),
        RecognizeExperts(),
        MarkLargest(),
        RecognizeCounts(),
        RewritePositions(),
        # attention: from one sequence to a ragged batch over a cache
        # Rotations first: what is left between them and the core is then only head repetition.
        RecognizeRope(),
        RecognizeAttention(),
        ExpandInnerAttention(),
        RecognizeCausalConv(),
        RestrictAttention(options.attention),
        InsertKvCache(),
        SelectSampledRows(),
        SplitWeightStacks(),
        *_FUSE,
        # quantize
        options.choice,
        NarrowWeights(options.recipe),
        QuantizeKvCache(options.kv_cache_dtype),
        QuantizeWeights(options.recipe, options.calibration),
        # plan_memory
        PlanMemory(options.decode_tokens, options.chunk),
    )


def part_pipeline(options: PipelineOptions) -> tuple[Pass, ...]:
    """The passes for a part of a model that works row by row (frontend/row_parts/): as `pipeline`,
    without what is about attention, caches, positions and logits. Its weights are given other
    values from time to time, so that nothing computed of them is kept."""
    return (
        DropNoOps(),
        CanonicalizeOps(),
        FoldConstants(),
        EliminateCommonSubexpressions(),
        *_FUSE,
        NarrowWeights(options.recipe),
        QuantizeWeights(options.recipe, kept_bytes=0),
        PlanMemory(options.decode_tokens, options.chunk),
    )
