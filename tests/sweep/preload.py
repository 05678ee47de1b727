"""What the server imports and runs once, so that the processes forked from it start warm: heavy
modules, and a first export, which fills torch's own caches. It must start no thread."""

from __future__ import annotations

import subject  # noqa: F401
import torch
import transformers.modeling_utils  # noqa: F401
from torch import nn

_TOKENS = torch.zeros(4, 4)
torch.export.export(nn.Linear(4, 4), (_TOKENS,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
