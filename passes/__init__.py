"""The passes, their order, and how they are run and checked."""

from graphwright.passes.base import Exactness, Pass, PassContext, Stage, run_passes
from graphwright.passes.pipeline import PipelineOptions, pipeline
from graphwright.passes.recipe import Recipe

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
