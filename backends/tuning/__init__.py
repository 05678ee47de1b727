"""Autotuning: which candidate of a choice is fastest on this machine, whatever the backend."""

from graphwright.backends.tuning.choices import Choice, Picks
from graphwright.backends.tuning.compare import Finding, Run, compare
from graphwright.backends.tuning.records import Records
from graphwright.backends.tuning.tune import Rig, Tuned, tune

__all__ = ["Choice", "Finding", "Picks", "Records", "Rig", "Run", "Tuned", "compare", "tune"]
