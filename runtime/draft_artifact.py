"""Opening a draft: is it a model with the same tokens that can go back, and its memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from graphwright.runtime.artifact import Artifact
from graphwright.runtime.cuda.program import LAUNCHES
from graphwright.runtime.draft_model import DraftModel
from graphwright.runtime.errors import RequestError
from graphwright.runtime.footprint import as_draft, draft_size
from graphwright.runtime.library import NativeLibrary, StepLibrary, share_threads
from graphwright.runtime.model_memory import ModelMemory
from graphwright.runtime.plan import Plan
from graphwright.runtime.tokenizer import Tokenizer, read_tokenizer

__all__ = ["DraftSetup", "check_goes_back", "check_tokens"]


@dataclass(frozen=True)
class DraftSetup:
    """The engine that a draft is opened for: its artifact, its library, and what its options say.
    draft_library: instead of the draft's compiled code (tests).
    """

    artifact: Artifact
    plan: Plan
    tokenizer: Tokenizer | None
    library: StepLibrary
    sequences: int
    context: int
    threads: int
    pinned: bool
    verify: bool
    mapped: bool
    prefix_cache: bool
    draft_library: StepLibrary | None = None

    def open(self, path: str | Path) -> DraftModel:
        """The draft at `path`, for as many sequences. Raises ArtifactError, RequestError."""
        artifact = Artifact.open(path, verify=self.verify)
        plan = as_draft(Plan.from_json(artifact.json("plan.json")))
        check_goes_back(artifact, plan)
        check_tokens(self.artifact, self.plan, self.tokenizer, artifact, plan)
        context, rows = draft_size(self.plan, plan, self.context)
        parts = ModelMemory(
            artifact, plan, self.sequences, context, mapped=self.mapped,
            prefix_cache=self.prefix_cache, rows=rows,
        )  # fmt: skip
        library = self.draft_library or self._library(artifact, plan, rows)
        return DraftModel(parts, library, rows, self.plan.vocab_size)

    def _library(self, artifact: Artifact, plan: Plan, rows: int) -> StepLibrary:
        found = NativeLibrary(
            artifact, self.threads, own_bytes=plan.arena_bytes, alone_rows=plan.alone_rows,
            rows=rows, pin=self.pinned,
        )  # fmt: skip
        if isinstance(self.library, NativeLibrary):
            share_threads(self.library, found)
        return found


def check_goes_back(draft: Artifact, plan: Plan) -> None:
    """Raises RequestError for an artifact that cannot be a draft, whatever it is to guess."""
    if LAUNCHES in draft:
        raise RequestError(
            f"the draft {draft.path} is for GPUs, and a draft runs on CPUs beside its model. "
            "Compile it for one: --target host."
        )
    if plan.adapters:
        raise RequestError(
            f"the draft {draft.path} has adapters ({', '.join(plan.adapters)}), which no request "
            "could choose of it. Give one that was compiled without --adapter."
        )
    if not plan.goes_back:
        raise RequestError(
            f"the draft {draft.path} cannot take back what it guessed wrong: it has recurrent or "
            "rolling states, which hold all tokens so far. Give another one."
        )


def check_tokens(
    model: Artifact, plan: Plan, tokenizer: Tokenizer | None, draft: Artifact, draft_plan: Plan
) -> None:
    """Raises RequestError if ids are not the same tokens in both, by their tokenizers. Vocabularies
    may be filled up to other sizes behind these; where one lacks a tokenizer, they may not."""
    other = read_tokenizer(draft)
    if tokenizer is None or other is None:
        if plan.vocab_size == draft_plan.vocab_size:
            return
        lacks = model.path if tokenizer is None else draft.path
        raise RequestError(
            f"the draft {draft.path} has {draft_plan.vocab_size} tokens and the model "
            f"{plan.vocab_size}, and {lacks} has no tokenizer that says which are the same. Give a "
            "draft with the same tokenizer."
        )
    name = "tokenizer.json"
    if model.view(name) == draft.view(name):
        return
    mine, its = tokenizer.tokens(), other.tokens()
    differ = sorted(each for each in mine.keys() | its.keys() if mine.get(each) != its.get(each))
    if differ:
        here, there = (_said(tokens.get(differ[0])) for tokens in (mine, its))
        raise RequestError(
            f"the draft {draft.path} has other tokens than the model: {len(differ)} of "
            f"{max(len(mine), len(its))} ids differ, the first is {differ[0]}, {there} there and "
            f"{here} here. Give a draft with the same tokenizer."
        )


def _said(token: str | None) -> str:
    return "none" if token is None else repr(token)
