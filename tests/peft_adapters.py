"""Adapters that PEFT saved for tiny models, and what PEFT itself computes with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import torch
from torch import nn
from transformers import AutoModelForCausalLM

__all__ = ["base_model", "peft_logits", "save_adapter"]


def base_model(directory: Path) -> Any:
    """The model of a checkpoint in float32."""
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


def save_adapter(
    base: Path, directory: Path, seed: int = 1, dtype: torch.dtype = torch.float32, **config: Any
) -> Path:
    """Saved by PEFT, with factors that change much."""
    settings = {"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 12, **config}
    model = peft.get_peft_model(base_model(base), peft.LoraConfig(**settings))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "magnitude" in name:
                tensor.mul_(1 + 0.3 * torch.rand_like(tensor))
            elif "lora_" in name or "modules_to_save" in name:
                tensor.add_(torch.randn_like(tensor) * 0.2)
                tensor.data = tensor.data.to(dtype)
    model.save_pretrained(directory)
    return directory


def peft_logits(base: Path, adapter: Path | None, tokens: list[int]) -> torch.Tensor:
    """Logits [T, vocab] of the base, or of PEFT's own forward with an adapter."""
    model: nn.Module = base_model(base)
    if adapter is not None:
        model = peft.PeftModel.from_pretrained(model, adapter).float()
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(torch.tensor([tokens])).logits[0]
    return logits
