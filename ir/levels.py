"""The vocabulary of each level: which ops a program may hold once it has reached it."""

from __future__ import annotations

__all__ = ["INDEXING", "MATRIX", "NORMALIZATION", "POINTWISE", "REDUCTION", "SHAPE", "TOKEN_MIXING"]

# Names are `aten` overloads without the namespace. Each op reads and writes elementwise:
POINTWISE = frozenset(
    """
    add.Tensor add.Scalar sub.Tensor sub.Scalar rsub.Scalar mul.Tensor mul.Scalar div.Tensor
    div.Scalar div.Tensor_mode div.Scalar_mode pow.Tensor_Scalar pow.Scalar pow.Tensor_Tensor
    neg.default abs.default exp.default expm1.default exp2.default log.default log10.default
    log2.default log1p.default sqrt.default rsqrt.default reciprocal.default sin.default
    cos.default tanh.default sigmoid.default erf.default silu.default gelu.default relu.default
    relu6.default softplus.default leaky_relu.default elu.default hardtanh.default mish.default
    square.default floor.default ceil.default round.default trunc.default sign.default
    clamp.default clamp.Tensor clamp_min.default clamp_max.default maximum.default minimum.default
    where.self where.ScalarSelf where.ScalarOther where.Scalar masked_fill.Scalar
    masked_fill.Tensor eq.Tensor eq.Scalar ne.Tensor ne.Scalar lt.Tensor lt.Scalar le.Tensor
    le.Scalar gt.Tensor gt.Scalar ge.Tensor ge.Scalar logical_and.default logical_or.default
    logical_xor.default logical_not.default isnan.default isinf.default bitwise_and.Tensor
    bitwise_or.Tensor bitwise_not.default __and__.Tensor __or__.Tensor _to_copy.default
    addcmul.default remainder.Scalar remainder.Tensor floor_divide.default fmod.Scalar
    """.split()
)
# Only moves elements:
SHAPE = frozenset(
    """
    reshape.default permute.default transpose.int unsqueeze.default squeeze.dim squeeze.dims
    expand.default slice.Tensor select.int cat.default stack.default split.Tensor
    split_with_sizes.default chunk.default clone.default t.default flatten.using_ints
    repeat_interleave.self_int unbind.int flip.default constant_pad_nd.default repeat.default
    """.split()
)
REDUCTION = frozenset(
    """
    mean.dim sum.dim_IntList amax.default amin.default softmax.int _softmax.default
    var.correction linalg_vector_norm.default
    """.split()
)
NORMALIZATION = frozenset(
    """
    layer_norm.default rms_norm.default group_norm.default
    """.split()
)
MATRIX = frozenset(
    """
    linear.default matmul.default addmm.default mm.default bmm.default baddbmm.default
    """.split()
)
INDEXING = frozenset(
    """
    embedding.default index.Tensor index_select.default gather.default arange.default
    arange.start arange.start_step full.default full_like.default zeros.default ones.default
    scalar_tensor.default new_ones.default new_zeros.default ones_like.default
    zeros_like.default empty_like.default tril.default triu.default cumsum.default
    diff.default sym_size.int lift_fresh_copy.default
    """.split()
)
# What may look at other tokens; gone once the cache is in:
TOKEN_MIXING = frozenset(
    """
    scaled_dot_product_attention.default cumsum.default diff.default convolution.default
    conv1d.default conv1d.padding
    """.split()
)
