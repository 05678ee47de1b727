"""One model through compile and the engine, in this process; prints one line of JSON.

    python tests/sweep/subject.py MODEL_TYPE [--quant w8]

The result's "status": exact, wrong, refused (with one of the compiler's own errors), crashed (any
other exception), or no decoder (the entry cannot be run on text alone, or is not causal).
"""

from __future__ import annotations

import argparse
import json
import logging
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import transformers
from tiny_configs import MODEL_TYPES, layer_kinds, tiny_config
from tiny_decoders import (
    NotADecoderError,
    check_is_decoder,
    eager_logits,
    random_prompt,
    tiny_decoder,
)

import graphwright
import graphwright.backends.tvm.build
import graphwright.frontend.capture
import graphwright.passes.pipeline
from graphwright.backends.reference import ReferenceEngine
from graphwright.ir.errors import GraphwrightError
from graphwright.ir.tolerance import TOLERANCES, error_ratio

if TYPE_CHECKING:
    from graphwright.compiler import Compiled

__all__ = ["Result", "prepare", "run_subject"]

CHUNK = 16
STEPS = 12
RAGGED = (13, 1, 7)
CHUNKED = 21  # a step of 16 tokens and one of 5

Reference = Callable[[list[int]], torch.Tensor]


@dataclass
class Result:
    """What became of one entry. error: the largest, as a share of what the tolerance allows."""

    model: str
    cls: str
    quant: str = "f32"
    status: str = "crashed"
    reason: str = ""
    layers: str = ""
    rung: str = ""
    nodes: int = 0
    error: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)


def prepare() -> None:
    """One thread and no chatter in this process."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()


def run_subject(model_type: str, quant: str = "f32") -> Result:
    """Everything that can be said of `model_type`; raises nothing that a model can cause."""
    result = Result(model_type, MODEL_TYPES[model_type], quant)
    rungs: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: rungs.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("graphwright.frontend").addHandler(handler)
    logging.getLogger("graphwright.frontend").setLevel(logging.INFO)
    try:
        _run(result)
    except NotADecoderError as error:
        result.status, result.reason = "no decoder", str(error)
    except GraphwrightError as error:
        result.status, result.reason = "refused", f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001  (whatever it is, it is the result)
        result.status = "crashed"
        result.reason = "\n".join(traceback.format_exc().strip().splitlines()[-12:])
    captured = next((text for text in rungs if text.startswith("captured")), "")
    result.rung = captured.partition(" by ")[2]
    return result


def _run(result: Result) -> None:
    model = tiny_decoder(result.model)
    config = tiny_config(result.model)
    result.layers = layer_kinds(config)
    check_is_decoder(model)
    compiled = graphwright.compile(model, quant=result.quant, check=False, chunk=CHUNK)
    result.seconds = {stage: round(value, 2) for stage, value in compiled.seconds.items()}
    result.nodes = compiled.program.log[0].nodes_before
    reference: Reference = lambda tokens: eager_logits(model, tokens)  # noqa: E731
    error: Callable[[torch.Tensor, torch.Tensor], float] = _float_error
    if result.quant != "f32":
        reference, error = _own_reference(compiled), _quantized_error
    problems = []
    for what, got, want in _comparisons(compiled, reference):
        ratio = error(got, want)
        result.error = max(result.error, ratio)
        if not ratio <= 1:
            problems.append(f"{what}: {_describe(got, want, error)}")
    result.status = "wrong" if problems else "exact"
    result.reason = "; ".join(problems)
    result.error = min(result.error, 1e30)


def _comparisons(
    compiled: Compiled, reference: Reference
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """(what, logits of the engine, logits of the reference) [rows, V]."""
    greedy = graphwright.SamplingParams(temperature=0.0, max_tokens=STEPS, ignore_eos=True)
    engine = compiled.load(threads=1)
    for lengths in (RAGGED, (CHUNKED,)):
        prompts = [random_prompt(length) for length in lengths]
        outputs = engine.generate(prompts, greedy, return_logits=True)
        for prompt, output in zip(prompts, outputs, strict=True):
            assert output.logits is not None
            got = torch.from_numpy(output.logits.copy())
            assert output.token_ids == got.argmax(-1).tolist()
            want = reference([*prompt, *output.token_ids])[len(prompt) - 1 : -1]
            yield f"{STEPS} steps after a prompt of {len(prompt)}", got, want
    prompt = random_prompt(CHUNKED)
    got = torch.from_numpy(engine.logits(prompt))
    yield f"prefill of {CHUNKED} in chunks of {CHUNK}", got, reference(prompt)


def _own_reference(compiled: Compiled) -> Reference:
    """Logits by the references of the program's own ops, one sequence at once."""
    engine = ReferenceEngine(compiled.program)
    return lambda tokens: engine.logits_of([torch.tensor(tokens)], [[len(tokens)]])[0]


def _float_error(got: torch.Tensor, want: torch.Tensor) -> float:
    return error_ratio(got, want, TOLERANCES["reassociating", torch.float32])


def _quantized_error(got: torch.Tensor, want: torch.Tensor) -> float:
    """An activation between two int8 steps may round the other way: rare, and then a step off."""
    error = (got - want).abs() / want.abs().max()
    return max(float(error.median()) / 1e-4, float(error.max()) / 0.03)


def _describe(
    got: torch.Tensor, want: torch.Tensor, error: Callable[[torch.Tensor, torch.Tensor], float]
) -> str:
    rows = [row for row in range(len(got)) if not error(got[row], want[row]) <= 1]
    worst = float((got - want).abs().max())
    return (
        f"off by {worst:.3g} ({error(got, want):.3g} times the tolerance), "
        f"wrong rows {rows} of {len(got)}, logits' spread {float(want.std()):.2g}"
    )


def main() -> None:
    """Prints the result of the model named on the command line as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=sorted(MODEL_TYPES), metavar="MODEL_TYPE")
    parser.add_argument("--quant", default="f32")
    arguments: Any = parser.parse_args()
    prepare()
    print(json.dumps(asdict(run_subject(arguments.model, arguments.quant))))


if __name__ == "__main__":
    main()
