"""Options of the backend, graphs of which gradients are wanted, and threads."""

from __future__ import annotations

import copy
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from compiled_models import (
    ROUNDING,
    WIDTH,
    Made,
    blocks,
    check_all_taken,
    check_same,
    error,
    fresh_dynamo,
    native,
    reports_of_test,
    rows,
)
from torch._dynamo.exc import BackendCompilerFailed

from graphwright.torch_backend.quiet_torch import QuietTorch

fresh = pytest.fixture(autouse=True)(fresh_dynamo)
made = pytest.fixture(reports_of_test)


WRONG: dict[str, dict[str, Any]] = {
    "the backend 'graphwright' has no option 'qant'; there are quant, check": {"qant": "w8"},
    "the option 'quant' cannot be 8.": {"quant": 8},
    "the option 'threads' cannot be '2'.": {"threads": "2"},
    "the option 'check' cannot be 'no'.": {"check": "no"},
    "'w9' is not a quantization scheme": {"quant": "w9"},
    "'down' in recipe 'w8:down' is not PATTERN=SCHEME.": {"quant": "w8:down"},
    "the number of threads must be from 1 to 512, not 0.": {"threads": 0},
}


@pytest.mark.parametrize("sentence", WRONG)
def test_wrong_options_are_refused_with_a_sentence(sentence: str) -> None:
    with pytest.raises(BackendCompilerFailed) as refused:
        native(blocks(1), **WRONG[sentence])(rows(2, WIDTH))
    assert sentence in str(refused.value)


def test_the_report_goes_to_the_standard_error_stream(capsys: pytest.CaptureFixture[str]) -> None:
    native(blocks(1), report=True)(rows(2, WIDTH))
    assert capsys.readouterr().err == (
        "graphwright: graph of 8 nodes: 6 run in 1 native parts of 1 kinds, with 100% of the "
        "weights that products read\n"
    )


def test_no_options_and_a_mode() -> None:
    model, x = blocks(1), rows(2, WIDTH)
    check_same(torch.compile(model, backend="graphwright", mode="reduce-overhead")(x), model(x))


def test_gradients_are_those_of_torch(caplog: pytest.LogCaptureFixture, made: Made) -> None:
    model = blocks().requires_grad_()
    twin, x = copy.deepcopy(model), rows(5, WIDTH)
    compiled = native(model)
    got, want = compiled(x), twin(x)
    check_same(got.detach(), want.detach())
    got.square().sum().backward()
    want.square().sum().backward()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None
        check_same(ours.grad, theirs.grad)
    warnings = [each for each in caplog.records if each.name == "graphwright.torch_backend"]
    assert warnings and all(each.levelno == logging.WARNING for each in warnings)
    assert "is left to torch, as gradients are wanted of it" in warnings[0].message
    assert not made()
    with torch.no_grad():
        check_same(compiled(x), twin(x))
    check_all_taken(made())


def test_two_threads_call_two_models_at_once() -> None:
    models = [blocks(1), blocks(2, 128)]
    inputs = [rows(3, WIDTH), rows(9, 128)]
    compiled = [native(model) for model in models]
    wants = [model(x) for model, x in zip(models, inputs, strict=True)]
    for run, x in zip(compiled, inputs, strict=True):
        run(x)

    def calls(number: int) -> float:
        run, x = compiled[number], inputs[number]
        return max(error(run(x), wants[number]) for _ in range(100))

    with ThreadPoolExecutor(2) as executor:
        assert max(executor.map(calls, range(2))) <= ROUNDING


def test_the_threads_of_torch_come_back_in_every_thread() -> None:
    """A graph ends in one thread while it runs in another."""
    before, found = torch.get_num_threads(), []
    graph, hushed, ended = QuietTorch(), threading.Event(), threading.Event()

    def long(given: list[Any]) -> None:
        graph.hush()
        hushed.set()
        ended.wait()

    def thread() -> None:
        torch.set_num_threads(4)
        graph.around(long, [])([])
        found.append(torch.get_num_threads())

    try:
        torch.set_num_threads(4)
        worker = threading.Thread(target=thread)
        worker.start()
        hushed.wait()
        graph.around(lambda given: None, [])([])
        ended.set()
        worker.join()
        assert found == [4]
    finally:
        torch.set_num_threads(before)
