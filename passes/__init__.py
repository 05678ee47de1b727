"""The passes, their order, and how they are run and checked."""

from graphwright.passes.base import Exactness, Pass, PassContext, Stage
from graphwright.passes.pipeline import PipelineOptions, pipeline
from graphwright.passes.recipe import Recipe
from graphwright.passes.running import run_passes

__all__ = [
    "Exactness",
    "Pass",
    "PassContext",
    "PipelineOptions",
    "Recipe",
    "Stage",
    "pipeline",
    "run_passes",
]
