"""`inspect --html`: the page of an artifact, one file that opens from disk and asks for nothing.

What an artifact holds is somebody's text. It gets into the page as JSON whose signs of markup are
escaped, the scripts make text nodes of it, and the page's own policy (its scripts by their hashes,
no other source of anything) holds if both should fail.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

from graphwright.inspector.page_data import page_data
from graphwright.inspector.roofline import EXAMPLE, Machine
from graphwright.inspector.text import Readable

__all__ = ["DATA_ID", "page_html", "page_script"]

DATA_ID = "graphwright-data"
_PAGE = Path(__file__).parent / "page"
# In this order: each uses what those before it declare.
_SCRIPTS = ("roofline", "elements", "load", "summary", "graph_text", "pass_delta", "passes",
            "graph", "roofline_chart", "cost", "launches", "kv_cache", "memory", "schemes",
            "evidence", "main")  # fmt: skip
_STYLES = ("base", "views")
_ESCAPED = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}


def page_html(
    artifact: Readable,
    title: str,
    descriptions: Mapping[str, Mapping[str, str]] | None = None,
    machine: Machine = EXAMPLE,
) -> str:
    """The page as text, the same for the same arguments, which are those of page_data.

    Raises KeyError with a sentence if the artifact lacks an entry.
    """
    script = page_script()
    style = "".join(_read(f"{name}.css") for name in _STYLES)
    policy = (
        f"default-src 'none'; script-src {_source(script)}; style-src {_source(style)}; "
        "base-uri 'none'; form-action 'none'"
    )
    return Template(_read("page.html")).substitute(
        title=html.escape(title),
        policy=policy,
        style=style,
        data=_embedded(page_data(artifact, title, descriptions, machine)),
        script=script,
    )


def page_script() -> str:
    """All scripts of the page as one."""
    return "\n".join(['"use strict";', *(_read(f"{name}.js") for name in _SCRIPTS)])


def _read(name: str) -> str:
    return (_PAGE / name).read_text(encoding="utf-8")


def _source(text: str) -> str:
    """How a content security policy names an inline script or style."""
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _embedded(data: Any) -> str:
    """JSON that means the same inside of a script element, whatever texts are in it."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).translate(_ESCAPED)
