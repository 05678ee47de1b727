"""Checkpoints that are quantized already: the same program as of the floats they stand for."""

from __future__ import annotations

import json
import shutil
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
from safetensors.torch import load_file, save_file
from tiny_models import save_tiny

import graphwright
from graphwright.frontend import capture_checkpoint
from graphwright.ir import CheckpointTensor, Expression, FrontendError, Program, Weight
from graphwright.ir.schemes import dequantize
from graphwright.passes.quantized_part import QuantizedPart


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
    "fp8 blocks, powers of two": (float8_blocks(powers=True), packed("fp8", **BLOCKS)),
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


def test_blocks_of_float8_as_transformers_reads_them(llama: Path, tmp_path: Path) -> None:
    """Of a size that divides the weights: it takes others to be smaller than they are."""
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    settings = packed("fp8", weight_block_size=[64, 32])
    quantized, _ = write_quantized(llama, tmp_path, float8_blocks(64, 32), settings)
    program = capture_checkpoint(quantized)
    stored = load_file(quantized / "model.safetensors")
    modules = [key.removesuffix(".weight_scale_inv") for key in stored if "scale_inv" in key]
    assert len(modules) == 7
    for module in modules:
        fields = {name: stored[f"{module}.{name}"] for name in ("weight", "weight_scale_inv")}
        wanted = Fp8Dequantize(None).convert(fields)["weight"]
        got = program.weights[f"{module}.weight".replace(".", "_")]
        assert torch.equal(got.load(), wanted)


def test_experts_and_tied_tables(tmp_path: Path) -> None:
    """Experts are stored one by one and stacked by the loader; a head that is the table."""
    source = save_tiny("mixtral", tmp_path / "mixtral", num_layers=1, tie_word_embeddings=True)
    parts = ("w1.weight", "w2.weight", "w3.weight", "_proj.weight")
    settings = packed("gptq", bits=4, group_size=32)
    quantized, plain = write_quantized(source, tmp_path, gptq(4, 32), settings, parts)
    program = capture_checkpoint(quantized)
    check_same(program, capture_checkpoint(plain))
    described = {name: program.weights[name].describe() for name in program.weights}
    assert described["model_layers_0_mlp_experts_down_proj"].startswith("stack(from_codes(")
    assert sum(text.endswith("embed_tokens.weight") for text in described.values()) == 1
    assert not any(text.endswith("lm_head.weight") for text in described.values())


def test_settings_of_a_part_of_the_model(llama: Path, tmp_path: Path) -> None:
    """Bits by module: what the tensors are decides, where the settings allow it."""
    quantized, plain = write_quantized(llama, tmp_path, *KINDS["gptq of 2 bits"])
    settings = packed("gptq", bits=4, group_size=128, dynamic={"+:.*": {"bits": 2}})
    configure(quantized, settings)
    check_same(capture_checkpoint(quantized), capture_checkpoint(plain))


@pytest.mark.parametrize(("bits", "ones"), [(2, 0x55555555), (4, 0x11111111), (8, 0x01010101)])
def test_zero_points_of_zero(bits: int, ones: int, llama: Path, tmp_path: Path) -> None:
    """The first version is the second one less a one in each place, borrowed within a word."""
    settings = packed("gptq", bits=bits, group_size=32, checkpoint_format="gptq_v2")
    quantized, _ = write_quantized(llama, tmp_path, gptq(bits, 32, v2=True), settings)
    generator = torch.Generator().manual_seed(3)
    words = torch.randint(-(2**31), 2**31, (4, 192 * bits // 32), generator=generator)
    words[0] = 0
    weights = []
    for version, stored in (("gptq_v2", words), ("gptq", words - ones)):
        change(quantized, f"{UP}.qzeros", stored.to(torch.int32))
        configure(quantized, {**settings, "checkpoint_format": version})
        program = capture_checkpoint(quantized)
        weights.append(program.weights[f"{UP}.weight".replace(".", "_")].load())
    assert torch.equal(*weights)


def test_an_index_that_was_not_filled_in(llama: Path, tmp_path: Path) -> None:
    quantized, plain = write_quantized(llama, tmp_path, *KINDS["gptq"])
    change(quantized, f"{UP}.g_idx", torch.zeros(128, dtype=torch.int32))
    check_same(capture_checkpoint(quantized), capture_checkpoint(plain))


@pytest.mark.parametrize("kind", ["gptq act order", "awq", "fp8 blocks"])
def test_the_same_tokens(kind: str, llama: Path, tmp_path: Path) -> None:
    quantized, plain = write_quantized(llama, tmp_path, *KINDS[kind])
    answers = []
    for directory in (quantized, plain):
        graphwright.compile(directory, quant="f32").save(tmp_path / f"{directory.name}.gw")
        engine = graphwright.load(tmp_path / f"{directory.name}.gw", context=64)
        sampling = graphwright.SamplingParams(max_tokens=20, temperature=0)
        answers.append(engine.generate([[1, 5, 9]], sampling)[0].token_ids)
    assert answers[0] == answers[1]
    assert len(set(answers[0])) > 4


def quantized_program(directory: Path, scheme: str, **options: Any) -> tuple[Program, list[str]]:
    """The compiled program and what its passes noted."""
    program = graphwright.compile(directory, quant=scheme, check=False, **options).program
    return program, [note for record in program.log for note in record.notes]


@pytest.mark.parametrize(
    ("kind", "scheme"),
    [("gptq", "w4g64"), ("awq", "w4g32z"), ("pack-quantized", "w4g64"), ("int-quantized", "w8")],
)
@pytest.mark.parametrize("calibrated", [False, True])
def test_integers_are_kept(
    kind: str, scheme: str, calibrated: bool, llama: Path, tmp_path: Path
) -> None:
    """The checkpoint's integers, through merged projections and into the artifact's weights."""
    quantized, _ = write_quantized(llama, tmp_path, *KINDS[kind])
    tokens = torch.arange(64).reshape(2, 32)
    options = {"calibration": tokens} if calibrated else {}
    program, notes = quantized_program(quantized, scheme, **options)
    assert notes[0] == "4 weights keep the integers that the checkpoint stores"
    parts = {n: w for n, w in program.weights.items() if isinstance(w, QuantizedPart)}
    names = [n for n, w in parts.items() if w.output == 0 and "proj" in n]
    assert len(names) == 4
    for name in names:
        quantization = parts[name].quantization
        assert torch.equal(dequantize(*quantization.parts()), quantization.weight.load())


def test_integers_of_another_scheme_are_rounded_again(llama: Path, tmp_path: Path) -> None:
    quantized, plain = write_quantized(llama, tmp_path, *KINDS["awq"])
    program, notes = quantized_program(quantized, "w4g64")
    assert notes == ["4 weights are rounded again; the checkpoint stores them as w4g64z"]
    check_same(program, quantized_program(plain, "w4g64")[0])


@pytest.mark.parametrize("scheme", ["f32", "bf16"])
def test_integers_that_become_floats_are_noted(scheme: str, llama: Path, tmp_path: Path) -> None:
    quantized, _ = write_quantized(llama, tmp_path, *KINDS["awq"])
    _, notes = quantized_program(quantized, scheme)
    assert notes == ["4 weights become floats; the checkpoint stores them as w4g64z"]


# ---- faults

UP = "model.layers.0.mlp.up_proj"
INT32 = torch.int32


def configure(directory: Path, settings: Any) -> None:
    path = directory / "config.json"
    config = {**json.loads(path.read_text()), "quantization_config": settings}
    path.write_text(json.dumps(config))


def change(directory: Path, key: str, tensor: torch.Tensor | None) -> None:
    """Puts `tensor` in the place of another one of the file; None removes that."""
    path = directory / "model.safetensors"
    stored = load_file(path)
    del stored[key]
    if tensor is not None:
        stored[key] = tensor
    save_file(stored, path, metadata={"format": "pt"})


TENSORS: dict[str, tuple[str, str, torch.Tensor | None, str]] = {
    "no scales": ("gptq", "scales", None, f"has '{UP}.qweight' but no '{UP}.scales'"),
    "no zero points": ("awq", "qzeros", None, f"has '{UP}.qweight' but no '{UP}.qzeros'"),
    "no words": ("gptq", "qweight", None, "tensor(s) that its config.json asks for"),
    "no words of integers": ("pack-quantized", "weight_packed", None, f"no '{UP}.weight', without"),
    "no shape": ("pack-quantized", "weight_shape", None, f"but no '{UP}.weight_shape'"),
    "no scale of bytes": ("int-quantized", "weight_scale", None, "is int8, and of the tensors"),
    "no scale of floats": ("fp8 blocks", "weight_scale_inv", None, "is float8_e4m3fn, and of"),
    "scales of other groups": (
        "gptq", "scales", torch.zeros(4, 192).half(), "is [4, 192]; expected [2, 192]",
    ),
    "zero points of other groups": (
        "awq", "qzeros", torch.zeros(1, 24, dtype=INT32), "is [1, 24]; expected [2, 24]",
    ),
    "an index of another length": (
        "gptq act order", "g_idx", torch.ones(64, dtype=INT32), "is [64]; expected [128]",
    ),
    "an index beyond the groups": (
        "gptq act order", "g_idx", torch.full((128,), 4, dtype=INT32), "holds 4 to 4; there are 4",
    ),
    "a stack of floats without its scale": (
        "fp8", "weight", torch.zeros(2, 192, 128).to(torch.float8_e4m3fn), "is [2, 192, 128]",
    ),
    "words of another type": (
        "gptq", "qweight", torch.zeros(16, 192).half(), "is float16; expected int32",
    ),
    "words for another layer": (
        "awq", "qweight", torch.zeros(64, 24, dtype=INT32), "is [2, 192]; expected [1, 192]",
    ),
    "a packed shape that does not fit": (
        "pack-quantized", "weight_shape", torch.tensor([192, 100]), "holds no weight [192, 100]",
    ),
    "scales that do not divide": (
        "pack-quantized", "weight_scale", torch.zeros(192, 3), "does not fit a weight [192, 128]",
    ),
    "blocks of another size": (
        "fp8 blocks", "weight_scale_inv", torch.zeros(1, 1), "is [1, 1]; expected [2, 1]",
    ),
    "a scale for other rows": (
        "float-quantized", "weight_scale", torch.zeros(3, 1), "is [3, 1]; expected [192, 1]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", TENSORS)
def test_a_tensor_that_is_wrong(fault: str, llama: Path, tmp_path: Path) -> None:
    kind, field, tensor, message = TENSORS[fault]
    quantized, _ = write_quantized(llama, tmp_path, *KINDS[kind])
    change(quantized, f"{UP}.{field}", tensor)
    check_refused(quantized, message)


SETTINGS: dict[str, tuple[Any, str]] = {
    "another method": (packed("bitsandbytes"), "by method 'bitsandbytes', which is not read; GPTQ"),
    "no object": ("int4", "by method '?', which is not read; GPTQ"),
    "marlin": (packed("gptq", bits=4, checkpoint_format="marlin"), "in the format 'marlin'"),
    "bits": (packed("gptq", bits=5), "GPTQ weights of 5 bits are not read"),
    "gemv": (packed("awq", bits=4, version="gemv"), "AWQ weights in the format 'gemv'"),
    "nvfp4": (compressed("nvfp4-pack-quantized"), "in the format 'nvfp4-pack-quantized'"),
    "sparse": (
        packed("compressed-tensors", sparsity_config={"format": "sparse-24-bitmask"}),
        "sparse ('sparse-24-bitmask')",
    ),
    "group size": (packed("gptq", bits=4, group_size=0), "its group size is 0; expected"),
    "no group size": (packed("awq", bits=4, group_size=None), "its group size is None; expected"),
    "block size": (packed("fp8", weight_block_size=128), "its weight_block_size is 128; expected"),
    "groups": (
        packed("compressed-tensors", config_groups=["a"]), "something else than objects",
    ),
    "nothing quantized": (packed("awq", bits=4), "hold no tensor called *.qweight"),
}  # fmt: skip


@pytest.mark.parametrize("fault", SETTINGS)
def test_settings_that_are_not_read(fault: str, llama: Path, tmp_path: Path) -> None:
    settings, message = SETTINGS[fault]
    shutil.copytree(llama, tmp_path / "model")
    configure(tmp_path / "model", settings)
    check_refused(tmp_path / "model", message)


def check_refused(directory: Path, message: str) -> None:
    with pytest.raises(FrontendError) as caught:
        capture_checkpoint(directory)
    text = str(caught.value)
    assert message in text
    assert str(directory) in text
    assert "\n" not in text
