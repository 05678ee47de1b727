"""Views of an artifact for people."""

from graphwright.inspector.kernels import kernel_data, kernel_table
from graphwright.inspector.profile import profile_data, profile_table
from graphwright.inspector.roofline import Load, Machine
from graphwright.inspector.scheme_choice import scheme_choice, scheme_table
from graphwright.inspector.text import (
    graph_text,
    ledger_table,
    memory_table,
    pass_table,
    summary,
)
from graphwright.inspector.trace import trace_data
from graphwright.inspector.tuning import tuning_table

__all__ = ["Load", "Machine", "graph_text", "kernel_data", "kernel_table", "ledger_table",
           "memory_table", "pass_table", "profile_data", "profile_table", "scheme_choice",
           "scheme_table", "summary",
           "trace_data", "tuning_table"]  # fmt: skip
