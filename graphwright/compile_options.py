"""What a compilation was asked for, and who hears how it goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graphwright.ir.program import PassRecord

__all__ = ["CompileOptions", "Progress"]


@dataclass(frozen=True)
class CompileOptions:
    """What `compile` was asked for; it is stored in the artifact.

    quant: a recipe such as ``f32``, ``w8``, ``w8:head=f32``. target: ``host``, a CPU's name, or
    several with commas between them, of which each machine takes the best that it can run, or GPUs
    as ``cuda:sm_80,sm_90``. chunk: the most tokens one prefill step takes. check: compare the
    numbers after every pass (None: when the weights are small enough for it to be quick). context:
    the most tokens of a sequence (None: what the model was made for); embeddings that scale with
    the length of the sequence are those of this length. kv_cache_dtype: how keys and values are
    kept, ``auto`` (float32, on GPUs the activations' type), ``f32``, ``f16``, ``bf16``, ``fp8``
    (e4m3, on GPUs) or ``int8`` (a scale for each token and head). dtype: of activations on GPUs,
    ``auto`` (bf16), ``f32``, ``bf16`` or ``f16``. tune: the seconds for which kernels are timed on
    this machine, to choose between variants of them (None: the ones that suit most);
    docs/tuning.md. attention: a restriction of what attention sees, such as ``window(1024) |
    first(4)`` (None: what the model shows it); docs/attention.md. calibration: which tokens integer
    weights were rounded by (None: to nearest); docs/quantization.md. lora: which adapters were
    merged into the weights, adapters: which stay beside them (None: none). max_kl, bits, max_size:
    with the recipe ``auto`` one of them, what the choice of schemes keeps to: nats a token that may
    be lost, bits of a weight in the mean, or bytes of all weights.
    """

    quant: str = "f32"
    target: str = "host"
    chunk: int = 512
    check: bool | None = None
    context: int | None = None
    kv_cache_dtype: str = "auto"
    dtype: str = "auto"
    tune: float | None = None
    calibration: str | None = None
    lora: str | None = None
    adapters: str | None = None
    attention: str | None = None
    max_kl: float | None = None
    bits: float | None = None
    max_size: int | None = None


@dataclass
class Progress:
    """Callbacks while compiling: a stage begins, a pass is done, packed bytes of all bytes, the
    share of the seconds for tuning that is spent, and on what; the share of a long pass that is
    done, if it is known, and what it does."""

    stage: Callable[[str], None] = lambda name: None
    record: Callable[[PassRecord], None] = lambda record: None
    packed: Callable[[int, int], None] = lambda done, total: None
    tuning: Callable[[float, str], None] = lambda share, choice: None
    within_pass: Callable[[float | None, str], None] = lambda share, what: None
