"""Small decoders whose modules carry states, kept in every way that a model can keep them.

A mixer says what it does for one token, `step(x [B, D], *states) -> (y [B, D], *states)`. Over a
sequence it loops; what it keeps of a sequence, and where, is up to its `Keeper`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from graphwright.frontend.capture import capture_module
from graphwright.ir import Program
from graphwright.ir.interpreter import run_program
from graphwright.ir.scan_step import ScanStep
from graphwright.ir.tolerance import check_close

__all__ = [
    "VOCAB",
    "WIDTH",
    "Attributes",
    "Decoder",
    "Dictionary",
    "Gated",
    "InModules",
    "Items",
    "Keeper",
    "Mixer",
    "Outer",
    "Tuples",
    "check_capture",
    "random_tokens",
    "scans",
    "steps_of",
]

VOCAB, WIDTH = 23, 12
LENGTHS = (1, 2, 9)


class Keeper:
    """A cache: an object with a list of tuples, one for each mixer."""

    def __init__(self, mixers: int) -> None:
        self.kept: list[Any] = [None] * mixers

    def load(self, mixer: Any) -> Any:
        return self.kept[mixer.index]

    def save(self, mixer: Any, states: Sequence[Tensor]) -> None:
        self.kept[mixer.index] = tuple(states)


class Attributes(Keeper):
    """Each state is an attribute of an object in a list."""

    class Layer:
        pass

    def __init__(self, mixers: int) -> None:
        self.layers = [Attributes.Layer() for _ in range(mixers)]

    def load(self, mixer: Any) -> Any:
        return list(vars(self.layers[mixer.index]).values()) or None

    def save(self, mixer: Any, states: Sequence[Tensor]) -> None:
        for number, state in enumerate(states):
            setattr(self.layers[mixer.index], f"state_{number}", state)


class Dictionary(dict[str, Any]):
    """The cache is a dictionary of dictionaries, and counts the positions."""

    def __init__(self, mixers: int) -> None:
        self["states"] = {}
        self["seen"] = 0

    def load(self, mixer: Any) -> Any:
        return self["states"].get(mixer.index)

    def save(self, mixer: Any, states: Sequence[Tensor]) -> None:
        self["states"][mixer.index] = list(states)


class Tuples(tuple[Any, ...]):
    """What is kept is a tuple with a list of states for each mixer."""

    def __new__(cls, mixers: Any) -> Any:
        return super().__new__(cls, [[] for _ in range(mixers)] if type(mixers) is int else mixers)

    def load(self, mixer: Any) -> Any:
        return self[mixer.index] or None

    def save(self, mixer: Any, states: Sequence[Tensor]) -> None:
        self[mixer.index][:] = states


class InModules(Keeper):
    """States are plain attributes of the modules that compute them; a single token goes on."""

    going_on = False

    def load(self, mixer: Any) -> Any:
        return getattr(mixer, "state", None) if self.going_on else None

    def save(self, mixer: Any, states: Sequence[Tensor]) -> None:
        mixer.state = tuple(states)


class Items(Keeper):
    """States are made in full before the first token, and written in place from then on."""

    def save(self, mixer: Any, states: Sequence[Tensor]) -> None:
        old = self.kept[mixer.index]
        if old is None:
            return super().save(mixer, states)
        for mine, new in zip(old, states, strict=True):
            mine.copy_(new)


class Mixer(nn.Module):
    """y = step(x, states) for each token, one after the other. sizes: of the states of a
    sequence."""

    sizes: tuple[tuple[int, ...], ...] = ((WIDTH,),)
    start = 0.0

    def __init__(self, index: int = 0) -> None:
        super().__init__()
        self.index = index
        self.gate, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def initial(self, batch: int) -> list[Tensor]:
        """The states before the first token."""
        return [torch.full((batch, *sizes), self.start) for sizes in self.sizes]

    def step(self, x: Tensor, *states: Tensor) -> Sequence[Tensor]:
        """The result for a token of each sequence, and the new states."""
        raise NotImplementedError

    def forward(self, x: Tensor, cache: Any = None) -> Any:
        states = cache.load(self) if cache is not None else None
        if states is None:
            states = self.initial(x.shape[0])
            if isinstance(cache, Items):
                cache.save(self, states)
        results = []
        for token in range(x.shape[1]):
            y, *states = self.step(x[:, token], *states)
            results.append(y)
        if cache is not None:
            cache.save(self, states)
        return torch.stack(results, 1)


class Gated(Mixer):
    """s = g s + (1 - g) x and y = out(s)."""

    def step(self, x: Tensor, *states: Tensor) -> Sequence[Tensor]:
        g = self.gate(x).sigmoid()
        new = g * states[0] + (1 - g) * x
        return self.out(new), new


class Outer(Mixer):
    """Three heads, each with a state [4, 5]: S = f S + k v' and y = q S."""

    sizes = ((3, 4, 5),)

    def __init__(self, index: int = 0) -> None:
        super().__init__(index)
        self.value, self.up = nn.Linear(WIDTH, 15), nn.Linear(15, WIDTH)

    def step(self, x: Tensor, *states: Tensor) -> Sequence[Tensor]:
        key, query = (layer(x).reshape(-1, 3, 4) for layer in (self.gate, self.out))
        value = self.value(x).reshape(-1, 3, 5)
        new = states[0] * 0.9 + key[..., None] * value[:, :, None]
        return self.up(torch.einsum("bhkv,bhk->bhv", new, query).flatten(1)), new


class Block(nn.Module):
    """A residual mixer, whose result is or holds the stream."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, h: Tensor, cache: Any, **more: Any) -> Any:
        found = self.mixer(h, cache, **more)
        if isinstance(found, dict):
            found = found["stream"]
        return h + (found[0] if isinstance(found, tuple) else found)


class Decoder(nn.Module):
    """Embedding, residual mixers, head. Returns what it keeps under the name of its argument."""

    def __init__(
        self, mixers: Callable[[int], nn.Module] = Gated, layers: int = 2, keeper: Any = Keeper
    ) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, VOCAB)
        self.layers = nn.ModuleList(Block(mixers(index)) for index in range(layers))
        self._keeper = keeper
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise / max(parameter.shape[-1], 1) ** 0.5)

    def forward(self, input_ids: Tensor, kept: Any = None, use_cache: bool = False) -> Any:
        cache = kept
        if use_cache and kept is None:
            cache = self._keeper(len(self.layers))
        if isinstance(cache, InModules):
            cache.going_on = input_ids.shape[1] == 1
        h = self.table(input_ids)
        for layer in self.layers:
            h = self.mix(layer, h, cache)
        if isinstance(cache, Dictionary):
            cache["seen"] += input_ids.shape[1]
        result = {"logits": self.head(h)}
        if use_cache:
            result["kept"] = cache
        return result

    def mix(self, layer: nn.Module, h: Tensor, cache: Any) -> Any:
        return layer(h, cache)


def random_tokens(length: int) -> Tensor:
    return torch.randint(0, VOCAB, (length,), generator=torch.Generator().manual_seed(length))


def logits_of(result: Any) -> Tensor:
    logits: Tensor = result["logits"][0] if isinstance(result, dict) else result[0]
    return logits


def check_capture(model: nn.Module, lengths: Sequence[int] = LENGTHS) -> Program:
    """The program of `model`, which gives the same logits for sequences of these lengths."""
    program = capture_module(model, max_context=64)
    for length in lengths:
        tokens = random_tokens(length)
        got = run_program(program, {"tokens": tokens, "positions": torch.arange(length)})
        with torch.no_grad():
            want = logits_of(model.float()(tokens[None]))
        check_close(got, want)
    return program


def scans(program: Program) -> list[Any]:
    return [n for n in program.graph.nodes if n.target is torch.ops.gw.scan_along_tokens.default]


def steps_of(program: Program) -> list[ScanStep]:
    return [ScanStep.parse(str(node.kwargs["step"])) for node in scans(program)]
