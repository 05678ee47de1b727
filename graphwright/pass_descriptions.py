"""What each pass does, from its docstring: read as text, as importing passes would import torch."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

__all__ = ["pass_descriptions"]

_PASSES = Path(__file__).parent / "passes"


def pass_descriptions(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """`stage` and `what`, the docstring's paragraphs, of the passes of those names that this
    version has; of others nothing."""
    found = {}
    for name in names:
        path = _PASSES / f"{name.replace('-', '_')}.py"
        if name.replace("-", "").isalnum() and path.is_file():
            described = _described(path.read_text(encoding="utf-8"), name)
            if described:
                found[name] = described
    return found


def _described(source: str, name: str) -> dict[str, str]:
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and node.name.lower() == name.replace("-", ""):
            what = ast.get_docstring(node) or ""
            paragraphs = [" ".join(each.split()) for each in what.split("\n\n")]
            return {"stage": _stage(node), "what": "\n\n".join(paragraphs)}
    return {}


def _stage(definition: ast.ClassDef) -> str:
    """`attention` of `stage: ClassVar[Stage] = Stage.ATTENTION`."""
    for node in definition.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Attribute):
            target = node.target
            if isinstance(target, ast.Name) and target.id == "stage":
                return node.value.attr.lower()
    return ""
