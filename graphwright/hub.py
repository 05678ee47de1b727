"""Models of the Hugging Face Hub: `ORG/NAME` becomes a directory, or a file, in its cache."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["HubError", "HubModel"]

_FORM = re.compile(
    r"(?P<scheme>hf://)?(?P<repository>\w[\w.-]*/\w[\w.-]*)(?:/(?P<file>[\w./-]+\.gguf))?"
    r"(?:@(?P<revision>[\w./-]+))?",
    re.ASCII | re.IGNORECASE,
)

_FILES = (".onnx", ".gguf", ".gw", ".json", ".safetensors")

# The files beside the weights are read from the top folder only: others hold a checkpoint's
# weights once more, for other libraries.
_CONFIG = ("config.json",)
_CODE = ("*.py",)
_CHECKPOINT = ("*.json", "*.jinja", "model.safetensors", "model-*.safetensors",
               "adapter_model.safetensors")  # fmt: skip


class HubError(Exception):
    """A model of the Hub cannot be had: one sentence, without the imports of a compiler."""


@dataclass(frozen=True)
class HubModel:
    """A repository of the Hub, such as ``org/name``; revision: a branch, tag or commit. file: a
    GGUF file in it, the first part if there are several.
    """

    repository: str
    revision: str | None = None
    file: str | None = None

    @staticmethod
    def parse(text: str) -> HubModel | None:
        """The model that ``ORG/NAME`` or ``ORG/NAME/FILE.gguf`` names, or either with ``hf://`` in
        front or ``@REVISION`` behind; None for another form. What lies at the path `text` on this
        disk goes before the Hub.
        """
        match = _FORM.fullmatch(text)
        if match is None or (match["scheme"] is None and Path(text).exists()):
            return None
        if match["file"] is None and match["repository"].endswith(_FILES):  # meant as a path
            return None
        return HubModel(match["repository"], match["revision"], match["file"])

    def on_disk(self, *, code: bool = False, weights: bool = True) -> Path:
        """The directory or the file in the Hub's cache, with what was missing downloaded first.

        code: with the repository's Python files. weights: else config.json alone is fetched, unless
        a file was named.
        HF_HOME, HF_TOKEN, HF_HUB_OFFLINE and the other variables of huggingface_hub mean what they
        always do; without a terminal on stderr there are no progress bars. Raises HubError.
        """
        from huggingface_hub import snapshot_download

        wanted: tuple[str, ...] = (*(_CHECKPOINT if weights else _CONFIG), *(_CODE if code else ()))
        if self.file is not None:
            wanted = (self.file.replace("-00001-of-", "-*-of-"),)
        with self._sentences(), _bars():
            found = snapshot_download(
                self.repository,
                revision=self.revision,
                allow_patterns=list(wanted),
                ignore_patterns=None if self.file else ["*/*"],
            )
        path = Path(found, self.file or "")
        if not path.exists():
            raise HubError(f"'{self.repository}' of the Hugging Face Hub has no '{self.file}'.")
        return path

    @contextmanager
    def _sentences(self) -> Iterator[None]:
        """What can go wrong with a download becomes a HubError."""
        from huggingface_hub import errors

        place = f"'{self.repository}' of the Hugging Face Hub"
        nowhere = f"there is no directory '{self.repository}' here, and "
        try:
            yield
        except errors.GatedRepoError as error:
            raise HubError(
                f"{place} is for those who accepted its terms: do so on its page, and give your "
                "token in HF_TOKEN or by 'hf auth login'."
            ) from error
        except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
            raise HubError(
                f"{nowhere}no such model on the Hugging Face Hub, or it is private and needs your "
                "token in HF_TOKEN."
            ) from error
        except errors.RevisionNotFoundError as error:
            raise HubError(f"{place} has no revision '{self.revision}'.") from error
        except errors.IncompleteSnapshotError as error:
            raise HubError(
                f"{place} is in the cache ({_cache()}) in part, and the rest cannot be fetched: "
                f"{_reason()}."
            ) from error
        except errors.LocalEntryNotFoundError as error:
            raise HubError(
                f"{nowhere}{place} is neither in the cache ({_cache()}) nor can be fetched: "
                f"{_reason()}."
            ) from error
        except (errors.HTTPError, OSError) as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            raise HubError(f"{place} could not be fetched: {first}.") from error


def _cache() -> str:
    from huggingface_hub import constants

    return str(constants.HF_HUB_CACHE)


def _reason() -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    return f"{constants.ENDPOINT} cannot be reached"


@contextmanager
def _bars() -> Iterator[None]:
    """Progress bars only where somebody looks at them."""
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if sys.stderr.isatty() or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
