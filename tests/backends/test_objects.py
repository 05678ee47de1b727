"""Object files: made on threads, kept on disk, and the errors of those that cannot be made."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from tvm import tirx
from tvm.tirx.script import builder as T

from graphwright.backends.tvm import kept_objects
from graphwright.backends.tvm.kept_objects import KeptObjects, key_of_kernel, key_of_source
from graphwright.backends.tvm.kernels.embedding import embedding
from graphwright.backends.tvm.kernels.gated_act import gated_act
from graphwright.backends.tvm.kernels.kernel import Kernel, define
from graphwright.backends.tvm.kernels.select_rows import select_rows
from graphwright.backends.tvm.objects import Objects
from graphwright.backends.tvm.target import cpu_by_name, host_cpu
from graphwright.ir import BackendError


def some_kernels() -> list[Kernel]:
    cpu = host_cpu()
    return [
        embedding(24, layout="rows", cpu=cpu),
        select_rows(24, x_stride=24, cpu=cpu),
        gated_act(40, gate_stride=40, up_stride=80, activation="silu", cpu=cpu),
    ]


def test_objects_do_not_depend_on_threads(tmp_path: Path) -> None:
    kernels = some_kernels()

    def objects(folder: str, workers: int) -> list[bytes]:
        (tmp_path / folder).mkdir()
        with (
            mock.patch("os.sched_getaffinity", lambda process: range(workers)),
            Objects(tmp_path / folder, host_cpu()) as made,
        ):
            for kernel in kernels:
                made.add_kernel(kernel)
            return [path.read_bytes() for path in made.files(kernel.name for kernel in kernels)]

    assert objects("one", 1) == objects("four", 4)


def test_what_took_longest_to_lower_is_compiled_before_what_waits(tmp_path: Path) -> None:
    running, done = threading.Event(), threading.Event()
    order: list[str] = []

    def work(name: str) -> Callable[[], Callable[[Path], None]]:
        def run(file: Path) -> None:
            running.set()
            done.wait(10)
            order.append(name)

        return lambda: run

    clock = iter([0.0, 0.0, 1.0, 3.0, 4.0, 9.0, 10.0, 11.0])  # seconds: 0, 2, 5 and 1
    with (
        mock.patch("os.sched_getaffinity", lambda process: range(1)),
        mock.patch("graphwright.backends.tvm.objects.time.perf_counter", lambda: next(clock)),
        Objects(tmp_path, host_cpu()) as made,
    ):
        made._add("begun", "0", work("begun"))
        assert running.wait(10)
        for name in ("middle", "long", "short"):
            made._add(name, name, work(name))
        done.set()
        made.files(["short"])
    assert order == ["begun", "long", "middle", "short"]


def test_a_kernel_is_once_in_its_object(tmp_path: Path) -> None:
    kernel = select_rows(24, x_stride=24, cpu=host_cpu())
    with Objects(tmp_path, host_cpu()) as made:
        made.add_kernel(kernel)
        (file,) = made.files([kernel.name])
    symbols = file.read_bytes()
    assert kernel.name.encode() in symbols
    assert b"ffi_main" not in symbols, "TVM wrapped it, with a second copy of its code"


def test_kept_objects_are_those_that_would_be_made(tmp_path: Path) -> None:
    kernels = some_kernels()
    source = tmp_path / "one.c"
    source.write_text("int one(void) { return ONE; }")
    kept = tmp_path / "kept"

    def objects(folder: str) -> dict[str, bytes]:
        (tmp_path / folder).mkdir()
        with Objects(tmp_path / folder, host_cpu(), KeptObjects(kept)) as made:
            for kernel in kernels:
                made.add_kernel(kernel)
            made.add_source(source, {"ONE": "1"})
            names = [*(kernel.name for kernel in kernels), "one.c"]
            files = made.files(names)
        return {name: file.read_bytes() for name, file in zip(names, files, strict=True)}

    first = objects("first")
    files = sorted(kept.iterdir())
    assert len(files) == len(first)
    with mock.patch("graphwright.backends.tvm.objects.write_object") as write:
        assert objects("second") == first
    write.assert_not_called()
    files[0].write_bytes(files[0].read_bytes()[:-1])  # cut off
    files[1].write_bytes(files[1].read_bytes()[:-1] + b"?")  # changed
    assert objects("third") == first
    assert all(KeptObjects(kept).take(file.stem, tmp_path / "x.o") for file in files)


def test_what_makes_another_object_has_another_key(tmp_path: Path) -> None:
    def kernel(value: int, name: str = "k") -> Kernel:
        return define(name, [("x", "int32")], lambda *given: T.buffer_store(given[3], value, [0]))

    v3, v4 = cpu_by_name("x86-64-v3"), cpu_by_name("x86-64-v4")
    assert key_of_kernel(kernel(1), v3) == key_of_kernel(kernel(1), v3)
    others = [(kernel(2), v3), (kernel(1, "other"), v3), (kernel(1), v4)]
    keys = {key_of_kernel(*each) for each in [(kernel(1), v3), *others]}
    with mock.patch("tvm.__version__", "another"):
        kept_objects._generator.cache_clear()
        keys.add(key_of_kernel(kernel(1), v3))
    kept_objects._generator.cache_clear()
    assert len(keys) == len(others) + 2
    source = tmp_path / "a.c"
    source.write_text("int a;")
    keys = {key_of_source(source, None, None), key_of_source(source, None, {"A": "1"})}
    source.write_text("int b;")
    keys.add(key_of_source(source, None, None))
    assert len(keys) == 3


def test_kept_objects_go_when_there_are_many_the_longest_unused_first(tmp_path: Path) -> None:
    file = tmp_path / "x.o"
    file.write_bytes(b"x" * 68)  # 100 bytes with its digest
    kept = KeptObjects(tmp_path / "kept", most=1000)
    for number in range(10):
        kept.keep(str(number), file)
        os.utime(tmp_path / "kept" / f"{number}.o", (number, number))
    kept.trim()
    assert kept.take("0", tmp_path / "y.o") and kept.take("9", tmp_path / "y.o")
    kept.keep("10", file)
    kept.trim()
    left = {file.stem for file in (tmp_path / "kept").iterdir()}
    assert left == {"0", "7", "8", "9", "10"}


def test_without_a_place_to_keep_objects_all_are_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    with Objects(tmp_path, host_cpu(), KeptObjects(tmp_path / "file")) as made:
        made.add_kernel(kernel := some_kernels()[0])
        assert made.files([kernel.name])[0].stat().st_size
    for name in ("GRAPHWRIGHT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    with mock.patch.object(Path, "home", side_effect=RuntimeError):
        assert KeptObjects.of_user() is None


def test_what_cannot_be_compiled_is_one_error_with_its_name(tmp_path: Path) -> None:
    wrong = tirx.call_intrin("int32", "tirx.tvm_stack_alloca", "no type", 1)
    broken = define("broken", [], lambda *scalars: T.evaluate(wrong))
    source = tmp_path / "broken.c"
    source.write_text("int broken(")
    with Objects(tmp_path, host_cpu()) as made:
        made.add_kernel(broken)
        made.add_source(source, {})
        made.add_kernel(good := some_kernels()[0])
        assert made.files([good.name])[0].stat().st_size
        with pytest.raises(BackendError, match="'broken' cannot be compiled for x86-64-"):
            made.files(["broken", good.name])
        with pytest.raises(BackendError, match=r"compiling broken.c failed: (.|\n)*broken\("):
            made.files(["broken.c"])
