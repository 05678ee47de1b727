"""A decoder whose tokens choose their keys, lowered for a GPU, in Triton's interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from indexed_decoders import CHOSEN, indexed_model
from test_triton_models import planned
from tiny_models import random_tokens

from graphwright.ir.tolerance import check_close

pytest.importorskip("triton")

from interpreted_program import InterpretedProgram

from graphwright.backends.triton.build import GpuOptions, lower_program


def test_prefill_decode_and_a_ragged_batch_equal_eager() -> None:
    model: Any = indexed_model()
    lowered = lower_program(planned(indexed_model()), GpuOptions("f32"))
    texts = [random_tokens(24, seed=seed).tolist() for seed in range(3)]
    with torch.no_grad():
        wants = [model(torch.tensor([text]))[0] for text in texts]
    program = InterpretedProgram(lowered)
    assert CHOSEN < 13, "the prompt has more tokens than are chosen"
    check_close(program.step([(0, texts[0][:13])]), wants[0][:13])
    for at in range(13, 15):
        check_close(program.step([(0, [texts[0][at]])]), wants[0][at : at + 1])
    got = program.step([(1, texts[1][:1]), (0, texts[0][15:16]), (2, texts[2][:9])])
    check_close(got, torch.cat([wants[1][:1], wants[0][15:16], wants[2][:9]]))
    got = program.step([(2, texts[2][9:10]), (1, texts[1][1:3])], rows=[0, 2])
    check_close(got, torch.stack([wants[2][9], wants[1][2]]))


def test_layers_that_share_a_choice_launch_it_once() -> None:
    lowered = lower_program(planned(indexed_model()), GpuOptions("f32"))
    launches = [launch for bucket in lowered.buckets for launch in bucket.launches]
    names = [launch.kernel.name.rpartition("_")[0] for launch in launches]
    counts = [names.count(name) for name in ("choose_keys", "index_scores", "decode_attention")]
    assert counts[0] == counts[1] and 2 * counts[2] == 3 * counts[0] > 0
    assert "prefill_attention" not in names
