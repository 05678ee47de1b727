"""The artifact file: what is written comes back, and what is wrong is said in one sentence."""

from __future__ import annotations

import errno
import hashlib
import io
import itertools
import json
import os
import subprocess
import zipfile
from pathlib import Path

import pytest
from toy_model import write_toy

from graphwright.runtime.artifact import Artifact, ArtifactWriter, check_writable
from graphwright.runtime.artifact_writer import BLOCK, _in_blocks
from graphwright.runtime.errors import ArtifactError
from graphwright.runtime.variants import Variant


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "m.gw"
    with ArtifactWriter(path, variants=[Variant("x", ("b", "a"))]) as writer:
        writer.add("text.txt", "grüße")
        writer.add_stream("weights.bin", (bytes([n]) * 1000 for n in range(5)), 5000)
        writer.add("lib/step.so", b"\x7fELF")
    assert [each.name for each in tmp_path.iterdir()] == ["m.gw"]
    artifact = Artifact.open(path, any_cpu=True)
    assert artifact.names == ("text.txt", "weights.bin", "lib/step.so", "manifest.json")
    assert artifact.read("text.txt").decode() == "grüße"
    assert bytes(artifact.view("weights.bin")[999:1001]) == b"\x00\x01"
    assert artifact.manifest.cpu_features == ("a", "b")
    assert artifact.manifest.entries["weights.bin"]["bytes"] == 5000


def test_it_is_a_plain_zip_with_aligned_entries(tmp_path: Path) -> None:
    path = write_toy(tmp_path / "m.gw")
    artifact = Artifact.open(path)
    for name in ("weights.bin", "lib/step.so"):
        assert artifact._layout[name].offset % 4096 == 0
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert all(each.compress_type == zipfile.ZIP_STORED for each in archive.infolist())
        assert archive.read("weights.bin") == bytes(range(256))


def test_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    a, b = write_toy(tmp_path / "a.gw"), write_toy(tmp_path / "b.gw")
    assert a.read_bytes() == b.read_bytes()


def test_large_entries_are_hashed_in_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("artifact", "artifact_writer"):
        monkeypatch.setattr(f"graphwright.runtime.{module}.CHUNK", 100)
    data = os.urandom(250)
    path = tmp_path / "m.gw"
    with ArtifactWriter(path) as writer:
        writer.add_stream("weights.bin", (data[:130], data[130:]), 250)
    entry = Artifact.open(path).manifest.entries["weights.bin"]
    assert entry["sha256"] == hashlib.sha256(data).hexdigest()
    parts = [data[:100], data[100:200], data[200:]]
    assert entry["chunks"] == [hashlib.sha256(part).hexdigest() for part in parts]


def test_entries_beyond_the_zip64_limit_stay_aligned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1000)
    path = tmp_path / "m.gw"
    with ArtifactWriter(path) as writer:
        writer.add("first.txt", "x" * 700)
        writer.add("weights.bin", bytes(5000))
        writer.add("lib/step.so", bytes(10))
    artifact = Artifact.open(path)
    assert artifact._layout["weights.bin"].offset % 4096 == 0
    assert artifact._layout["lib/step.so"].offset % 4096 == 0
    assert artifact.read("weights.bin") == bytes(5000)


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = write_toy(tmp_path / "m.gw", generation_config={"eos_token_id": 1})
    good = path.read_bytes()
    damaged = tmp_path / "damaged.gw"
    layout = Artifact.open(path)._layout
    interesting = {0, 1, 5, 14, 26, len(good) - 1, len(good) - 64, len(good) - 90}
    for part in layout.values():
        interesting |= {part.offset - 1, part.offset, part.offset + part.size - 1}
    for offset in [*sorted(interesting), *range(3, len(good), 211)]:
        for bit in (0, 3, 7):
            data = bytearray(good)
            data[offset] ^= 1 << bit
            damaged.write_bytes(data)
            with pytest.raises(ArtifactError) as caught:
                Artifact.open(damaged)
            assert str(damaged) in str(caught.value)


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    path = write_toy(tmp_path / "m.gw")
    good = path.read_bytes()
    for size in (0, 1, 2, 21, 22, 100, 4096, len(good) // 2, len(good) - 64, len(good) - 1):
        path.write_bytes(good[:size])
        with pytest.raises(ArtifactError):
            Artifact.open(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gw"
    with pytest.raises(ArtifactError, match="No such file"):
        Artifact.open(path)
    with pytest.raises(ArtifactError, match="cannot be read: Is a directory"):
        Artifact.open(tmp_path)
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ArtifactError, match="does not begin like one"):
        Artifact.open(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "text")
    with pytest.raises(ArtifactError, match="a zip file but not a graphwright artifact"):
        Artifact.open(path)


def test_a_newer_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphwright.runtime.artifact.FORMAT_VERSION", 1)
    path = tmp_path / "m.gw"
    with ArtifactWriter(path, variants=[Variant("x", (), "a.so"), Variant("y", (), "b.so")]):
        pass
    with pytest.raises(ArtifactError, match=r"needs a newer graphwright.* format 2.* up to 1"):
        Artifact.open(path)


def test_a_cpu_without_the_features_is_refused(tmp_path: Path) -> None:
    path = write_toy(tmp_path / "m.gw", cpu_features=["avx1024"])
    with pytest.raises(ArtifactError, match=r"compiled for 'toy'; this .* CPU lacks avx1024"):
        Artifact.open(path)
    assert Artifact.open(path, any_cpu=True).manifest.target == "toy"


def several(path: Path) -> Path:
    """An artifact with code for three CPUs, from the most capable."""
    needs = {"best": ("avx2", "avx1024"), "good": ("avx2",), "least": ()}
    variants = [Variant.among(name, needed, len(needs)) for name, needed in needs.items()]
    with ArtifactWriter(path, variants=variants) as writer:
        for each in variants:
            writer.add(each.library, each.name)
    return path


@pytest.mark.parametrize(
    ("features", "expected"),
    [({"avx2", "avx1024", "fma"}, "best"), ({"avx2"}, "good"), ({"sse2"}, "least")],
)
def test_the_best_variant_that_runs_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, features: set[str], expected: str
) -> None:
    monkeypatch.setattr("graphwright.runtime.artifact.cpu_features", lambda: frozenset(features))
    artifact = Artifact.open(several(tmp_path / "m.gw"))
    variant = artifact.variant()
    assert variant.name == expected
    assert artifact.read(variant.library) == expected.encode()
    assert artifact.manifest.target == "best,good,least"
    assert artifact.manifest.cpu_features == ()
    assert artifact.manifest.minimum_reader == 2


def test_a_machine_that_runs_no_variant_is_told_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.gw"
    with ArtifactWriter(path, variants=[Variant("x", ("b", "a"), "x"), Variant("y", ("b",), "y")]):
        pass
    monkeypatch.setattr("graphwright.runtime.artifact.cpu_features", lambda: frozenset({"a"}))
    sentence = r"compiled for 'x' and 'y'; this .* CPU lacks b for 'x'; b for 'y'. Compile it again"
    with pytest.raises(ArtifactError, match=sentence):
        Artifact.open(path)
    assert Artifact.open(path, any_cpu=True).manifest.cpu_features == ("b",)


def test_a_file_with_one_variant_is_one_of_format_1(tmp_path: Path) -> None:
    manifest = Artifact.open(write_toy(tmp_path / "m.gw")).json("manifest.json")
    assert manifest["minimum_reader"] == 1 and "variants" not in manifest


def test_a_reader_that_knows_no_slots_does_not_read_a_file_that_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ArtifactWriter(tmp_path / "m.gw", slots=True) as writer:
        writer.add("plan.json", "{}")
    assert Artifact.open(tmp_path / "m.gw").manifest.minimum_reader == 3
    monkeypatch.setattr("graphwright.runtime.artifact.FORMAT_VERSION", 2)
    with pytest.raises(ArtifactError, match="readers of format 3, this one reads up to 2"):
        Artifact.open(tmp_path / "m.gw")


def test_a_missing_entry_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no entry 'golden.json'"):
        Artifact.open(write_toy(tmp_path / "m.gw")).view("golden.json")


def test_the_mapping_outlives_the_name(tmp_path: Path) -> None:
    path = write_toy(tmp_path / "m.gw")
    artifact = Artifact.open(path)
    path.unlink()
    assert json.loads(artifact.read("plan.json"))["vocab_size"] == 97


def test_nothing_is_left_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "m.gw"
    with pytest.raises(KeyError), ArtifactWriter(path) as writer:
        writer.add("a.txt", "text")
        raise KeyError("compiler")
    with (
        pytest.raises(ArtifactError, match="announced with 10 bytes but has 4"),
        ArtifactWriter(path) as writer,
    ):
        writer.add_stream("weights.bin", [b"four"], 10)
    with (
        pytest.raises(ArtifactError, match="'a' is written twice"),
        ArtifactWriter(path) as writer,
    ):
        writer.add("a", "")
        writer.add("a", "")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_artifact_survives_a_failed_write(tmp_path: Path) -> None:
    path = write_toy(tmp_path / "m.gw")
    with pytest.raises(RuntimeError), ArtifactWriter(path) as writer:
        writer.add("a.txt", "text")
        raise RuntimeError
    assert "plan.json" in Artifact.open(path)


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = io.BufferedRandom.write

    class Full(io.BufferedRandom):
        def write(self, data: object) -> int:
            if self.tell() > 3000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(self, data)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "fdopen", lambda number, mode: Full(io.FileIO(number, mode)))
    with pytest.raises(ArtifactError, match=r"no space left in .*Nothing was left"):
        write_toy(tmp_path / "m.gw")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_really_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this system does not allow mounting")
    try:
        with pytest.raises(ArtifactError, match="no space left"), ArtifactWriter(disk / "m") as w:
            w.add_stream("weights.bin", (bytes(4096) for _ in range(100)), 409600)
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_unwritable_places_are_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is a directory"):
        check_writable(tmp_path)
    with pytest.raises(ArtifactError, match="nowhere is not a directory"):
        check_writable(tmp_path / "nowhere" / "m.gw")
    if os.geteuid() != 0:  # root may write anywhere
        tmp_path.chmod(0o500)
        with pytest.raises(ArtifactError, match="is not writable"):
            check_writable(tmp_path / "m.gw")
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("size", [1, BLOCK - 5000, BLOCK + 1, 3 * BLOCK])
@pytest.mark.parametrize("start", [0, 4096])
def test_what_is_written_ends_where_blocks_of_the_file_do(size: int, start: int) -> None:
    chunks = [bytes([number]) * size for number in range(1, 4)]
    pieces = [bytes(piece) for piece in _in_blocks(chunks, start)]
    assert b"".join(pieces) == b"".join(chunks)
    ends = itertools.accumulate(map(len, pieces), initial=start)
    assert all(end % BLOCK == 0 for end in list(ends)[1:-1])
