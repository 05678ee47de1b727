"""The executor of PTX against numpy, and that it refuses what a GPU would."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from ptx_machine import run
from ptx_memory import GlobalMemory, PtxError
from ptx_parse import parse
from ptx_values import Array, of_bits, to_bits
from ptx_warp import load_matrices, multiply, shuffle, store_matrices
from ptx_wgmma import element_addresses, fragments, left_operand

HEAD = """
.visible .entry test(
	.param .u64 .ptr .global .align 1 test_param_0,
	.param .u64 .ptr .global .align 1 test_param_1
)
.reqntid 64
{
	.reg .pred %p<5>;
	.reg .b16 %rs<5>;
	.reg .b32 %r<20>;
	.reg .b64 %rd<9>;
	ld.param.b64 %rd1, [test_param_0];
	ld.param.b64 %rd2, [test_param_1];
	mov.u32 %r1, %tid.x;
	mad.wide.u32 %rd3, %r1, 16, %rd1; // 16 bytes for each thread
	mad.wide.u32 %rd4, %r1, 4, %rd2;  // and 4 of the result
"""


def executed(body: str, source: Array | None = None, programs: int = 1, **moved: int) -> Array:
    """uint32 [64], of 64 threads that read 16 bytes each of `source`, uint32 [64, 4]."""
    source = np.zeros((64, 4), np.uint32) if source is None else source
    result = np.full(64, 0x7777, np.uint32)
    memory = GlobalMemory(
        {"source": source.reshape(-1).view(np.uint8), "result": result.view(np.uint8)}, moved
    )
    entry = parse(HEAD + body + "\n}")
    addresses = dict(zip(entry.parameters, map(memory.address, memory.names), strict=True))
    order = [(i, 0, 0) for i in range(programs)]
    run(entry, memory, 1024, (programs, 1, 1), order, addresses)
    return result


def of_words(operation: str, words: Array) -> Array:
    """What an instruction makes of four words a thread, %r2 to %r5."""
    return executed(
        f"ld.global.v4.b32 {{ %r2, %r3, %r4, %r5 }}, [ %rd3 + 0 ]; {operation}; "
        "st.global.b32 [ %rd4 + 0 ], { %r6 }; ret;",
        words,
    )


def random_words() -> Array:
    return np.random.default_rng(0).integers(0, 1 << 32, (64, 4)).astype(np.uint32)


def test_bits_are_moved_as_the_manual_says() -> None:
    words = random_words()
    a, b, c = (words[:, i].astype(object) for i in range(3))

    def bytes_of(x: int, y: int, selector: int) -> int:
        both = x.to_bytes(4, "little") + y.to_bytes(4, "little")
        chosen = [selector >> 4 * i & 15 for i in range(4)]
        signs = [255 * (both[i & 7] >> 7) if i & 8 else both[i & 7] for i in chosen]
        return int.from_bytes(signs, "little")

    expected: dict[str, Any] = {
        "prmt.b32 %r6, %r2, %r3, 0x5410": (b % 2**16 << 16) | a % 2**16,
        "prmt.b32 %r6, %r2, %r3, 0x7632": (b >> 16 << 16) | a >> 16,
        "prmt.b32 %r6, %r2, %r3, %r4": [bytes_of(*each) for each in zip(a, b, c, strict=True)],
        "lop3.b32 %r6, %r2, 0x00780078, 0x3F803F80, 0xEA": a & 0x00780078 | 0x3F803F80,
        "lop3.b32 %r6, %r2, %r3, %r4, 0x96": a ^ b ^ c,
        "shl.b32 %r6, %r2, 3": (a << 3) % 2**32,
        "shr.u32 %r6, %r2, 9": a >> 9,
        "shr.s32 %r6, %r2, 31": [2**32 - 1 if x >> 31 else 0 for x in a],
        "shr.u32 %r6, %r2, 32": a * 0,
        "shf.l.wrap.b32 %r6, %r2, %r3, 5": (b << 5) % 2**32 | a >> 27,
        "bfe.u32 %r6, %r2, 5, 3": (a >> 5) % 8,
        "bfi.b32 %r6, %r2, %r3, 8, 4": (b & ~0xF00) | (a % 16 << 8),
        "mad.lo.s32 %r6, %r2, %r3, %r4": (a * b + c) % 2**32,
        "mul.hi.u32 %r6, %r2, %r3": a * b >> 32,
        "mov.b64 %rd5, {%r2, %r3}; mov.b64 %rd6, {%r4, %r2}; mul.hi.u64 %rd7, %rd5, %rd6; "
        "mov.b64 {%r6, _}, %rd7": ((b << 32 | a) * (a << 32 | c) >> 64) % 2**32,
        "mov.b64 %rd5, {%r2, %r3}; mov.b64 %rd6, {%r4, %r2}; mul.hi.u64 %rd7, %rd5, %rd6; "
        "mov.b64 {_, %r6}, %rd7": (b << 32 | a) * (a << 32 | c) >> 96,
        "cvt.rn.f32.u32 %r7, %r2; mul.rn.f32 %r7, %r7, 0f4F800000; cvt.rzi.s64.f32 %rd5, %r7; "
        "mov.b64 {_, %r6}, %rd5": [
            min(int(np.float32(int(x))), 2**31 - 1 if x >= 2**31 else 2**32) for x in a
        ],
        "mad.lo.cc.u32 %r7, %r2, %r3, %r4; madc.hi.u32 %r6, %r2, %r3, 7": (a * b + c >> 32) + 7,
        "cvt.u16.u32 %rs1, %r2; mul.hi.u16 %rs2, %rs1, 2731; cvt.u32.u16 %r6, %rs2": (
            a % 2**16 * 2731 >> 16
        ),
    }
    for operation, want in expected.items():
        got = of_words(operation, words)
        assert got.tolist() == list(want), operation


@pytest.mark.parametrize("kind", ["bf16", "f16"])
def test_narrow_floats_are_rounded_as_torch_does(kind: str) -> None:
    dtype = torch.bfloat16 if kind == "bf16" else torch.float16
    floats = np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32)
    floats[0] = [np.inf, -np.inf, 1 + 2**-8, 1 + 3 * 2**-8]  # two ties
    got = of_words(f"cvt.rn.{kind}x2.f32 %r6, %r3, %r2", floats.view(np.uint32))
    pairs = torch.from_numpy(floats[:, :2].copy()).to(dtype).view(torch.int32)
    assert np.array_equal(got.view(np.int32), pairs[:, 0].numpy())
    product = of_words(
        f"cvt.rn.{kind}x2.f32 %r7, %r3, %r2; fma.rn.{kind}x2 %r6, %r7, %r7, 0x80008000",
        floats.view(np.uint32),
    )
    squares = torch.from_numpy(floats[:, :2].copy()).to(dtype).square().view(torch.int32)
    assert np.array_equal(product.view(np.int32), squares[:, 0].numpy())


@pytest.mark.parametrize(("kind", "values", "k"), [("bf16", 2, 16), ("f16", 2, 16), ("s8", 4, 32)])
def test_tensor_cores_multiply_what_lies_where_the_manual_says(
    kind: str, values: int, k: int
) -> None:
    """PTX ISA, "Matrix Fragments for mma.m16n8k16" and for mma.m16n8k32, element by element."""
    random = np.random.default_rng(0)
    result = "s32" if kind == "s8" else "f32"
    left, right, add = (
        random.integers(-8, 8, shape).astype(np.float32) for shape in ((16, k), (k, 8), (16, 8))
    )
    a, b, c = (np.zeros((32, count, per), np.float32)
               for count, per in ((4, values), (2, values), (4, 1)))  # fmt: skip
    for lane, i, v in product(range(32), range(4), range(values)):
        group, thread = lane // 4, lane % 4
        column = thread * values + v + (k // 2 if i >= 2 else 0)
        a[lane, i, v] = left[group + 8 * (i % 2), column]
        if i < 2:
            b[lane, i, v] = right[thread * values + v + i * (k // 2), group]
        c[lane, i, 0] = add[group + 8 * (i // 2), thread * 2 + i % 2]

    def registers(numbers: Array, type_: str) -> list[Array]:
        bits = to_bits(numbers.reshape(-1), type_).view(np.uint32).reshape(32, -1)
        return [np.ascontiguousarray(bits[:, i]) for i in range(bits.shape[1])]

    got = multiply(registers(a, kind), registers(b, kind), registers(c, result), kind)
    want = left @ right + add
    for lane, i in product(range(32), range(4)):
        found = of_bits(got[i], result)[lane]
        assert found == want[lane // 4 + 8 * (i // 2), lane % 4 * 2 + i % 2]


def test_matrices_are_loaded_as_tensor_cores_want_them() -> None:
    elements = np.arange(4 * 8 * 8, dtype=np.uint16).reshape(4, 8, 8)  # matrix, row, column
    rows = elements.reshape(1, 32, 8).view(np.uint8)
    for transposed in (False, True):
        found = load_matrices(rows, 4, transposed)
        for i, lane in product(range(4), range(32)):
            low, high = found[i][lane] & 0xFFFF, found[i][lane] >> 16
            matrix = elements[i].T if transposed else elements[i]
            assert [low, high] == matrix[lane // 4, lane % 4 * 2 :][:2].tolist()
        assert np.array_equal(store_matrices(found, transposed), rows.reshape(1, 32, 16))


def test_warpgroups_find_matrices_where_descriptors_say() -> None:
    """Rows of 128 bytes, whose 16-byte piece c lies at c ^ row % 8; eight rows are 1,024 bytes."""
    descriptor = 1 << 62 | (1024 >> 4) << 32 | 2048 >> 4
    places = element_addresses(descriptor, 16, 64, 2, False)
    for row, column in product(range(16), range(64)):
        piece = (column // 8) ^ (row % 8)
        assert places[row, column] == 2048 + row * 128 + piece * 16 + column % 8 * 2
    # 16 inputs further on, and the same matrix by its columns
    later = element_addresses(descriptor + (32 >> 4), 16, 16, 2, False)
    assert np.array_equal(later, places[:, 16:32])
    turned = element_addresses(descriptor, 64, 16, 2, True)
    assert np.array_equal(turned, places.T)


def test_warpgroups_hold_fragments_as_four_warps_do() -> None:
    numbers = np.arange(64 * 24, dtype=np.float64).reshape(64, 24)
    held = fragments(numbers)
    left = np.zeros((128, 4, 2))
    for thread, i, v in product(range(128), range(4), range(2)):
        warp, group, pair = thread // 32, thread % 32 // 4, thread % 4 * 2 + v
        left[thread, i, v] = numbers[16 * warp + group + 8 * (i % 2), pair + 8 * (i // 2)]
        for block in range(3):
            row = 16 * warp + group + 8 * (i // 2)
            assert held[thread, 4 * block + i] == numbers[row, 8 * block + thread % 4 * 2 + i % 2]
    assert np.array_equal(left_operand(left), numbers[:, :16])


def test_lanes_read_each_other() -> None:
    lane = np.tile(np.arange(32), 2)
    a = np.arange(64, dtype=np.uint32)
    for mode, by, clamp, want in (
        ("bfly", 5, 31, lane ^ 5), ("up", 3, 0, np.where(lane < 3, lane, lane - 3)),
        ("down", 3, 31, np.where(lane > 28, lane, lane + 3)), ("idx", 7, 31, lane * 0 + 7),
    ):  # fmt: skip
        constants = (np.full(64, each, np.uint32) for each in (by, clamp))
        got = shuffle(mode, a, *constants)
        assert np.array_equal(got, a // 32 * 32 + want), mode


def test_threads_part_and_meet_again() -> None:
    """Each adds 3 as often as its number says; then all read a neighbour's sum."""
    got = executed("""
        mov.b32 %r2, 0; mov.b32 %r3, 0;
        setp.eq.b32 %p1, %r1, 0;
        @%p1 bra $L__BB0_2;
    $L__BB0_1:
        add.s32 %r3, %r3, 3; add.s32 %r2, %r2, 1;
        setp.lt.s32 %p2, %r2, %r1;
        @%p2 bra $L__BB0_1;
    $L__BB0_2:
        shl.b32 %r4, %r1, 2; mov.b32 %r5, global_smem; add.s32 %r5, %r5, %r4;
        st.shared.b32 [%r5], %r3;
        bar.sync 0;
        xor.b32 %r6, %r4, 4; ld.shared.b32 %r7, [%r6];
        st.global.b32 [ %rd4 + 0 ], { %r7 };
        ret;""")
    assert np.array_equal(got, 3 * (np.arange(64) ^ 1))


def test_copies_arrive_when_they_are_waited_for() -> None:
    words = random_words()
    body = """
        shl.b32 %r2, %r1, 4;
        cp.async.cg.shared.global [ %r2 + 0 ], [ %rd3 + 0 ], 0x10, 0x10;
        cp.async.commit_group;
        @WAIT@
        ld.shared.b32 %r3, [%r2+8];
        st.global.b32 [ %rd4 + 0 ], { %r3 };
        ret;"""
    assert np.array_equal(
        executed(body.replace("@WAIT@", "cp.async.wait_group 0;"), words), words[:, 2]
    )
    with pytest.raises(PtxError, match="before a copy to it was waited for"):
        executed(body.replace("@WAIT@", "cp.async.wait_group 1;"), words)


def test_programs_count_themselves() -> None:
    counted = executed(
        """setp.eq.b32 %p1, %r1, 5;
        @%p1 atom.global.gpu.acq_rel.add.u32 %r2, [ %rd2 + 0 ], 2;
        ret;""",
        programs=3,
    )
    assert counted.tolist() == [0x7777 + 6] + [0x7777] * 63


STORE = "st.global.b32 [ %rd4 + 0 ], { %r1 }; ret;"


@pytest.mark.parametrize(
    ("body", "moved", "message"),
    [
        ("ld.global.v4.b32 { %r2, %r3, %r4, %r5 }, [ %rd3 + 8 ]; ret;", {}, "is no multiple of 16"),
        (STORE, {"result": 2}, "'result': that is no multiple of 4"),
        ("ld.global.b32 { %r2 }, [ %rd3 + 16 ]; ret;", {}, "not within its 1024 bytes .1 of 64"),
        ("ld.global.b32 { %r2 }, [ %rd3 + -4 ]; ret;", {}, "offset -4 of 'source'"),
        ("shl.b32 %r2, %r1, 5; ld.shared.b32 %r3, [%r2]; ret;", {}, "offset 1024 of shared memory"),
        ("mov.b64 %rd5, 64; ld.global.b32 { %r2 }, [ %rd5 + 0 ]; ret;", {}, "is in no buffer"),
        ("setp.lt.u32 %p1, %r1, 9; @%p1 bra $L; bar.sync 0; $L: ret;", {}, "do not reach together"),
        ("setp.lt.u32 %p1, %r1, 9; @%p1 shfl.sync.bfly.b32 %r2, %r1, 1, 31, -1; ret;", {},
         "a warp that is not together"),
        ("shl.b32 %r2, %r1, 2; st.shared.b32 [%r2], %r1; xor.b32 %r3, %r2, 128; "
         "ld.shared.b32 %r4, [%r3]; ret;", {}, "another warp wrote since the last barrier"),
        ("shl.b32 %r2, %r1, 2; ld.shared.b32 %r4, [%r2]; xor.b32 %r3, %r2, 128; "
         "st.shared.b32 [%r3], %r1; ret;", {}, "another warp used since the last barrier"),
        ("st.global.b32 [ %rd4 + 0 ], { %r1 }; setp.eq.b32 %p1, %r1, 0; "
         "@%p1 atom.global.gpu.acq_rel.add.u32 %r2, [ %rd1 + 0 ], 2; ret;", {},
         "not known to come after what other threads stored"),
        ("add.s32 %r2, %r3, 1; ret;", {}, "%r3 was never written"),
        ("$L: bra.uni $L;", {}, "does not end"),
    ],
    ids=range(13),
)  # fmt: skip
def test_what_a_gpu_refuses_is_refused(body: str, moved: dict[str, int], message: str) -> None:
    with pytest.raises(PtxError, match=message):
        executed(body, None, 1, **moved)


@pytest.mark.parametrize(
    "text", ["brev.b32 %r2, %r1", "add.sat.s32 %r2, %r1, 1", "ld.const.b32 %r2, [%r1]"]
)
def test_what_is_not_known_is_not_guessed(text: str) -> None:
    with pytest.raises(NotImplementedError, match=text.split(" ")[0]):
        executed(f"{text}; ret;")


def test_threads_have_memory_of_their_own() -> None:
    body = """
        .local .align 4 .b8 depot[12];
        mov.b32 %r2, depot;
        st.local.b32 [%r2+4], %r1;
        add.s32 %r3, %r1, 1;
        st.local.b32 [%r2+8], %r3;
        ld.local.b32 %r4, [%r2+4];
        ld.local.b32 %r5, [%r2+8];
        mad.lo.u32 %r4, %r5, 100, %r4;
        st.global.b32 [ %rd4 + 0 ], { %r4 };
        ret;"""
    assert executed(body).tolist() == [100 * (i + 1) + i for i in range(64)]
    with pytest.raises(PtxError, match="not within its 12 bytes"):
        executed(body.replace("[%r2+8], %r3", "[%r2+12], %r3"))


def test_arrays_that_come_with_the_code_are_found() -> None:
    entry = parse(".global .align 4 .b8 table[4] = {1, 2, 0, 255};\n" + HEAD + "ret;\n}")
    assert entry.constants == {"table": bytes((1, 2, 0, 255))}


def test_a_buffer_that_may_lie_anywhere_is_written() -> None:
    assert np.array_equal(executed(STORE, result=4), np.arange(64))
