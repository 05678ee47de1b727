"""Checkpoints that are quantized already: the same program as of the floats they stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from quantized_checkpoints import (
    Packer,
    awq,
    float8_blocks,
    float8_rows,
    gptq,
    int8,
    pack_quantized,
    write_quantized,
)
from tiny_models import save_tiny

from graphwright.frontend import capture_checkpoint
from graphwright.ir import CheckpointTensor, Expression, Program, Weight


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoints") / "tiny"
    sizes = {"hidden_size": 128, "intermediate_size": 192}
    return save_tiny("llama", directory, num_layers=1, **sizes)


def packed(kind: str, **settings: Any) -> dict[str, Any]:
    return {"quant_method": kind, **settings}


def compressed(form: str, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights}
    return packed("compressed-tensors", format=form, config_groups={"group_0": group})


BLOCKS = {"weight_block_size": [128, 128]}
KINDS: dict[str, tuple[Packer, dict[str, Any]]] = {
    "gptq": (gptq(4, 64), packed("gptq", bits=4, group_size=64, desc_act=False, sym=True)),
    "gptq asymmetric": (gptq(4, 32, sym=False), packed("gptq", bits=4, group_size=32)),
    "gptq act order": (
        gptq(4, 32, sym=False, act_order=True),
        packed("gptq", bits=4, group_size=32, desc_act=True),
    ),
    "gptq of 8 bits, whole rows, second version": (
        gptq(8, -1, sym=False, v2=True),
        packed("gptq", bits=8, group_size=-1, checkpoint_format="gptq_v2"),
    ),
    "gptq of 3 bits": (gptq(3, 32, sym=False), packed("gptq", bits=3, group_size=32)),
    "gptq of 2 bits": (gptq(2, 32, sym=False), packed("gptq", bits=2, group_size=32)),
    "awq": (awq(64), packed("awq", bits=4, group_size=64, version="GEMM", zero_point=True)),
    "pack-quantized": (pack_quantized(4, 64), compressed("pack-quantized", num_bits=4)),
    "pack-quantized, asymmetric, act order": (
        pack_quantized(4, 32, sym=False, act_order=True),
        compressed("pack-quantized", num_bits=4),
    ),
    "pack-quantized, 8 bits": (
        pack_quantized(8, -1, sym=False),
        compressed("pack-quantized", num_bits=8),
    ),
    "int-quantized": (int8(), compressed("int-quantized", num_bits=8)),
    "naive-quantized": (int8(whole=True), compressed("naive-quantized", num_bits=8)),
    "float-quantized": (float8_rows(), compressed("float-quantized", num_bits=8)),
    "fp8": (float8_rows(whole=True), packed("fp8", activation_scheme="static")),
    "fp8 blocks": (float8_blocks(), packed("fp8", **BLOCKS)),
    "fbgemm_fp8": (float8_rows(), packed("fbgemm_fp8")),
}


def check_same(got: Program, wanted: Program) -> None:
    assert list(got.weights) == list(wanted.weights)
    for name, weight in got.weights.items():
        assert torch.equal(weight.load(), wanted.weights[name].load()), name


def leaves(weight: Weight) -> list[Weight]:
    if not isinstance(weight, Expression):
        return [weight]
    return [leaf for arg in weight.args if isinstance(arg, Weight) for leaf in leaves(arg)]


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_what_is_stored(kind: str, llama: Path, tmp_path: Path) -> None:
    quantized, plain = write_quantized(llama, tmp_path, *KINDS[kind])
    program = capture_checkpoint(quantized)
    check_same(program, capture_checkpoint(plain))
    made = [program.weights[name] for name in program.weights if "_proj_" in name]
    assert len(made) == 7
    for weight in made:
        assert weight.dtype is torch.float32
        assert all(isinstance(leaf, CheckpointTensor) for leaf in leaves(weight))
