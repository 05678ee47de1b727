"""Each CPU level's own instructions in the code that LLVM makes, for machines that are not here."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from graphwright.backends.tvm.emit import emit_kernels
from graphwright.backends.tvm.kernels.attention import attention
from graphwright.backends.tvm.kernels.float_weights import BFLOAT16, FLOAT16, FLOAT32
from graphwright.backends.tvm.kernels.kernel import Kernel
from graphwright.backends.tvm.kernels.kv_values import KvBlock
from graphwright.backends.tvm.kernels.linear_float import linear_float
from graphwright.backends.tvm.kernels.linear_quantized import linear_quantized
from graphwright.backends.tvm.kernels.pipeline import compile_module
from graphwright.backends.tvm.kernels.quantize_rows import quantize_rows
from graphwright.backends.tvm.target import CPU_NAMES, Cpu, cpu_by_name, cpus_by_names, host_cpu
from graphwright.ir.errors import BackendError
from graphwright.ir.masks import Mask
from graphwright.ir.schemes import Scheme
from graphwright.runtime.cpu import cpu_features

LEVELS = [name for name in CPU_NAMES if name != "host"]


def kernels(cpu: Cpu) -> dict[str, Kernel]:
    """A small kernel of each kind that multiplies or converts."""
    found = {
        "quantize": quantize_rows(128, x_stride=128, group=32, cpu=cpu),
    }
    for kind, dtype in (("attention", "float32"), ("attention of int8", "int8")):
        found[kind] = attention(
            2, KvBlock(1, 16, 16, 4096, dtype), q_stride=32, scale=0.25, mask=Mask(), softcap=0.0,
            slopes=False, sinks=False, max_rows=32, cpu=cpu,
        )  # fmt: skip
    for each in (FLOAT32, BFLOAT16, FLOAT16):
        found[each.name] = linear_float(32, 128, weights=each, x_stride=128, max_rows=32, cpu=cpu)
    for text in ("w8", "w8g32", "w4g32z"):
        scheme = Scheme.parse(text)
        found[text] = linear_quantized(32, 128, scheme, max_rows=4, cpu=cpu)
    for text in ("w8", "w4g128z") if cpu.amx else ():
        scheme = Scheme.parse(text)
        found[f"many {text}"] = linear_quantized(32, 128, scheme, max_rows=32, cpu=cpu)
    return found


@cache
def code(level: str) -> dict[str, str]:
    """The assembly of each of the kernels, which are compiled together."""
    cpu = cpu_by_name(level)
    made = kernels(cpu)
    text = str(compile_module(emit_kernels(list(made.values())), cpu).mod.inspect_source("asm"))
    bodies = {}
    for kind, kernel in made.items():
        start = re.search(rf"^\S*{kernel.name}:$", text, re.MULTILINE)
        assert start, f"{kernel.name} is not in the code"
        bodies[kind] = text[start.end() :].split(".cfi_endproc")[0]
    return bodies


def words(level: str, kind: str) -> set[str]:
    """Instructions, without the type suffixes of Arm, and the kinds of registers."""
    text = code(level)[kind]
    found = {match[1] for match in re.finditer(r"^\s+(?:\{\w+\}\s+)?(\w+)", text, re.MULTILINE)}
    registers = re.findall(r"%([xyz]mm)|\bv\d+\.(\d+[bsdh])", text)
    return found | {x86 or arm for x86, arm in registers}


FLOATS = {
    "x86-64-v3": {"vfmadd231ps", "ymm"},
    "x86-64-v3-vnni": {"vfmadd231ps", "ymm"},
    "x86-64-v4": {"vfmadd231ps", "zmm"},
    "x86-64-v4-vnni": {"vfmadd231ps", "zmm"},
    "x86-64-v4-amx": {"vfmadd231ps", "zmm"},
    "aarch64": {"fmla", "4s"},
    "aarch64-dotprod": {"fmla", "4s"},
}
INTEGERS = {
    "x86-64-v3": {"vpmaddubsw", "vpmaddwd", "ymm"},
    "x86-64-v3-vnni": {"vpdpbusd", "ymm"},
    "x86-64-v4": {"vpmaddubsw", "vpmaddwd"},
    "x86-64-v4-vnni": {"vpdpbusd", "zmm"},
    "x86-64-v4-amx": {"vpdpbusd", "zmm"},
    "aarch64": {"mla", "4s"},
    "aarch64-dotprod": {"sdot", "16b"},
}
PAIRS = {
    "x86-64-v3": {"vpmaddwd", "ymm"},
    "x86-64-v3-vnni": {"vpdpwssd", "ymm"},
    "x86-64-v4": {"vpmaddwd", "zmm"},
    "x86-64-v4-vnni": {"vpdpwssd", "zmm"},
    "x86-64-v4-amx": {"vpdpwssd", "zmm"},
    "aarch64": {"mla", "4s"},
    "aarch64-dotprod": {"mla", "4s"},
}


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_uses_its_instructions(level: str) -> None:
    arm = level.startswith("aarch64")
    for kind in ("f32", "bf16", "f16", "attention"):
        assert FLOATS[level] <= words(level, kind), kind
    assert {"fcvtl" if arm else "vcvtph2ps"} <= words(level, "f16")
    assert {"shl" if arm else "vpslld"} <= words(level, "bf16")
    assert PAIRS[level] <= words(level, "attention of int8")
    for kind in ("w8", "w8g32", "w4g32z"):
        assert INTEGERS[level] <= words(level, kind), kind
    assert {"fcvtns", "frintn"} & words(level, "quantize") if arm else {
        "vroundps", "vrndscaleps", "vcvtps2dq"
    } & words(level, "quantize")  # fmt: skip
    wide = "zmm" in words(level, "f32")
    assert wide == ("-v4" in level)
    for kind, text in code(level).items():
        calls = re.findall(r"^\s+(?:callq?|bl)\s+(\S+)", text, re.MULTILINE)
        assert not calls, f"{kind} calls {calls}"


def test_levels_are_known_by_name() -> None:
    assert [cpu.name for cpu in cpus_by_names("x86-64-v3, x86-64-v4-vnni,x86-64-v3")] == [
        "x86-64-v4-vnni",
        "x86-64-v3",
    ]
    assert cpus_by_names("host") == (host_cpu(),)
    with pytest.raises(BackendError, match="'v5' is not a known CPU; there are host, x86-64-v4"):
        cpus_by_names("x86-64-v3,v5")


TILES = "x86-64-v4-amx"


@pytest.mark.parametrize("kind", ["w8", "w4g128z"])
def test_tile_registers_sum_up_many_rows(kind: str) -> None:
    """Only where a call can have many rows; no configuration is left behind."""
    text = code(TILES)[f"many {kind}"]
    wanted = {"ldtilecfg", "tileloadd", "tdpbssd", "tilestored", "tilerelease"}
    assert wanted <= words(TILES, f"many {kind}")
    assert text.count("ldtilecfg") == text.count("tilerelease")
    assert not wanted & words(TILES, "w8")


def test_tile_registers_are_a_feature_where_the_system_allows_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("flags : avx2 amx_tile amx_int8\n")
    monkeypatch.setattr("graphwright.runtime.cpu._may_use_tiles", lambda: True)
    assert cpu_features(info) == {"avx2", "amx_tile", "amx_int8"}
    cpu_features.cache_clear()
    monkeypatch.setattr("graphwright.runtime.cpu._may_use_tiles", lambda: False)
    assert cpu_features(info) == {"avx2"}


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({"asimd", "fp"}, "aarch64"),
        ({"asimd", "fp", "asimddp"}, "aarch64-dotprod"),
        (cpu_by_name("x86-64-v3").features | {"avx_vnni"}, "x86-64-v3-vnni"),
        (cpu_by_name("x86-64-v4").features | {"avx_vnni"}, "x86-64-v4"),
        (cpu_by_name("x86-64-v4").features | {"amx_tile", "amx_int8"}, "x86-64-v4"),
        (cpu_by_name("x86-64-v4-amx").features, "x86-64-v4-amx"),
    ],
)
def test_a_machine_gets_its_best_level(
    monkeypatch: pytest.MonkeyPatch, features: set[str], expected: str
) -> None:
    name = "graphwright.backends.tvm.target.host_features"
    monkeypatch.setattr(name, lambda: frozenset(features))
    assert host_cpu().name == expected
