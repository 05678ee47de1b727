"""Views of an artifact for people."""

from graphwright.inspector.text import (
    graph_text,
    ledger_table,
    memory_table,
    pass_table,
    summary,
)

__all__ = ["graph_text", "ledger_table", "memory_table", "pass_table", "summary"]
