"""The tree: what may import what, one identity per file, and that a regular install has it all."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {
    "ir": {"ir"},
    "frontend": {"frontend", "ir"},
    "passes": {"passes", "ir"},
    "backends": {"backends", "ir", "runtime"},
    "runtime": {"runtime"},
    "inspector": {"inspector", "ir", "runtime"},
}
HEAVY = {"torch", "tvm", "triton", "transformers", "networkx"}


def _files(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def _imports(path: Path, top_level_only: bool = False) -> set[str]:
    """Dotted names that `path` imports; with top_level_only, only what importing it imports."""
    tree = ast.parse(path.read_text())
    names: set[str] = set()
    pending: list[ast.AST] = list(tree.body) if top_level_only else list(ast.walk(tree))
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("room", ROOMS)
def test_each_room_is_a_relative_symlink_of_the_package(room: str) -> None:
    link = ROOT / "graphwright" / room
    assert link.is_symlink()
    assert link.readlink() == Path("..") / room


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_the_architecture_allows(room: str) -> None:
    for path in _files(room):
        for name in _imports(path):
            parts = name.split(".")
            assert parts[0] not in ROOMS, f"{path} imports '{name}': write graphwright.{name}"
            if parts[0] == "graphwright" and len(parts) > 1 and parts[1] in ROOMS:
                assert parts[1] in ROOMS[room], f"{path} imports '{name}'"


def test_the_backend_uses_only_formats_and_folders_of_the_runtime() -> None:
    for path in _files("backends"):
        for name in _imports(path):
            if name.startswith("graphwright.runtime."):
                assert name.split(".")[2] in {"artifact", "cpu", "user_cache", "variants"}, (
                    f"{path} imports '{name}'"
                )


def test_imports_have_no_cycles() -> None:
    """Module level, TYPE_CHECKING blocks included, functions' own imports not."""
    modules = {}
    for room in ROOMS:
        for path in _files(room):
            dotted = ".".join(("graphwright", *path.relative_to(ROOT).with_suffix("").parts))
            modules[dotted.removesuffix(".__init__")] = path
    edges = {
        name: {n for n in _module_level(path) if n in modules and n != name}
        for name, path in modules.items()
        if path.name != "__init__.py"
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"import cycle: {' -> '.join((*trail, name))}"
        if name in done or name not in edges:
            return
        for other in edges[name]:
            visit(other, (*trail, name))
        done.add(name)

    for name in edges:
        visit(name, ())


def _module_level(path: Path) -> set[str]:
    """Imports outside functions, `if TYPE_CHECKING` blocks included."""
    names: set[str] = set()
    pending: list[ast.AST] = [ast.parse(path.read_text())]
    while pending:
        node = pending.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or ""} | {f"{node.module}.{a.name}" for a in node.names}
        pending.extend(ast.iter_child_nodes(node))
    return names


def test_tvm_is_imported_only_in_its_backend_and_triton_only_in_its() -> None:
    for room in ROOMS:
        for path in _files(room):
            tops = {name.split(".")[0] for name in _imports(path)}
            if "tvm" in tops:
                assert path.is_relative_to(ROOT / "backends" / "tvm"), path
            if "triton" in tops:
                assert path.is_relative_to(ROOT / "backends" / "triton"), path


def test_no_init_below_tests_and_no_root_folder_hides_the_standard_library() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()}
    assert not folders & set(sys.stdlib_module_names)


def test_importing_the_package_is_light() -> None:
    code = "import sys, graphwright; print(sorted(set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    loaded = {name.split(".")[0] for name in ast.literal_eval(result.stdout)}
    assert not loaded & (HEAVY | {"numpy", "tvm_ffi", "rich", "click"})


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """File names in a wheel built from the checkout."""
    import zipfile

    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps",
               "--no-build-isolation", "-w", str(folder), str(ROOT)]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, cwd=folder)
    return set(zipfile.ZipFile(next(folder.glob("*.whl"))).namelist())


def test_a_regular_install_holds_every_module_once_and_nothing_else(wheel_names: set[str]) -> None:
    for room in ROOMS:
        for path in _files(room):
            assert f"graphwright/{path.relative_to(ROOT)}" in wheel_names
    for path in sorted((ROOT / "inspector" / "page").iterdir()):
        assert f"graphwright/inspector/page/{path.name}" in wheel_names
    tops = {name.split("/")[0] for name in wheel_names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"graphwright"}
