"""Experts while tracing: the option of a configuration, and loops that are run once."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from expert_models import LOOPS, ExpertDecoder, Loop, MaskOfEach, Matrices, OnlyThoseHit, PassedOn
from sorted_experts import SORTED, SlicedByCounts
from torch import nn
from torch.export import ExportedProgram
from torch.nn import functional

from graphwright.frontend.capture import capture_module
from graphwright.frontend.experts import gathered_experts, traceable_experts
from graphwright.frontend.stateless import StatelessForward, float32_parameters
from graphwright.ir import FrontendError, Program
from graphwright.ir.interpreter import run_program
from graphwright.ir.tolerance import check_close


def test_every_configuration_asks_for_gathered_experts_meanwhile() -> None:
    inner = SimpleNamespace(_experts_implementation="eager")
    outer = SimpleNamespace(_experts_implementation=None, text=inner, other=3)
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model.config = outer  # type: ignore[assignment]
    model[1].config = SimpleNamespace(other=1)  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="inside"), gathered_experts(model):
        assert outer._experts_implementation == inner._experts_implementation == "batched_mm"
        raise RuntimeError("inside")
    assert (outer._experts_implementation, inner._experts_implementation) == (None, "eager")


def logits(program: Program, tokens: torch.Tensor) -> torch.Tensor:
    inputs = {"tokens": tokens, "positions": torch.arange(len(tokens))}
    result: torch.Tensor = run_program(program, inputs)
    return result


@pytest.mark.parametrize("block", (*LOOPS, *SORTED), ids=lambda block: block.__name__)
def test_loops_are_traced_as_products_by_routed_experts(block: type[Loop]) -> None:
    model = ExpertDecoder(block)
    program = capture_module(model)
    products = [n for n in program.graph.nodes if n.target is torch.ops.gw.routed_linear.default]
    assert len(products) == 2 * (3 if hasattr(block(), "experts") and block is not Matrices else 2)
    assert not any("nonzero" in str(node.target) for node in program.graph.nodes)
    for length in (1, 2, 30):
        tokens = torch.randint(0, 128, (length,))
        with torch.no_grad():
            check_close(logits(program, tokens), model(tokens[None])[0])
    assert all("forward" not in vars(module) for module in model.modules())


def test_the_search_for_experts_that_were_hit_needs_no_second_trace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is left behind when the loop is run once, in ops that nothing else uses."""

    def again(self: ExportedProgram, *args: Any) -> None:
        raise AssertionError("traced again")

    monkeypatch.setattr(ExportedProgram, "run_decompositions", again)
    program = capture_module(ExpertDecoder(OnlyThoseHit))
    assert not any("one_hot" in str(node.target) for node in program.graph.nodes if node.users)


def test_nothing_is_replaced_in_a_model_without_loops() -> None:
    class Dense(Loop):
        def mix(self, x: torch.Tensor) -> torch.Tensor:
            weights = self.router(x).softmax(-1)
            parts = torch.stack([expert(x) for expert in self.experts], 1)
            return torch.where(parts > 0, parts, 0.1 * parts).mul(weights[:, :, None]).sum(1)

    model = ExpertDecoder(Dense)
    forward = StatelessForward(model)
    with float32_parameters(model), traceable_experts(forward):
        assert all("forward" not in vars(module) for module in model.modules())


def test_one_block_of_each_kind_shows_what_the_others_do() -> None:
    ran: list[int] = []

    class Sometimes(MaskOfEach):
        """A loop, or all experts, as an attribute says; blocks are alike but for that."""

        def mix(self, x: torch.Tensor) -> torch.Tensor:
            ran.append(id(self))
            if self.chosen == self.count:
                return torch.stack([expert(x) for expert in self.experts]).mean(0)
            return super().mix(x)

    model = ExpertDecoder(Sometimes)
    model.layers.extend(copy.deepcopy(model.layers))
    dense, loop, *same = [layer.get_submodule("block") for layer in model.layers]
    assert isinstance(dense, Loop)
    dense.chosen = dense.count
    run = StatelessForward(model)
    with traceable_experts(run):
        watched = list(dict.fromkeys(ran))
        ran.clear()
        run(torch.arange(9))
    assert watched == [id(dense), id(loop)]
    assert ran == [id(block) for block in (dense, loop, *same)]
    products = [str(node.target) for node in capture_module(model).graph.nodes]
    assert products.count("gw.routed_linear.default") == 3 * 3
    assert not any("nonzero" in target for target in products)


class Numbered(Loop):
    def mix(self, x: torch.Tensor) -> torch.Tensor:
        weights, chosen = torch.topk(self.router(x), self.chosen)
        y = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            token, slot = torch.where(chosen == number)
            y[token] += weights[token, slot, None] * expert(x[token]) * (number + 1)
        return y


class Capacity(Numbered):
    """Only the first four tokens of each expert count."""

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        weights, chosen = torch.topk(self.router(x), self.chosen)
        y = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            token, slot = (places[:4] for places in torch.where(chosen == number))
            y.index_add_(0, token, weights[token, slot, None] * expert(x[token]))
        return y


class MeanOfRows(Numbered):
    """What an expert sees of a token depends on the others it got."""

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        weights, chosen = torch.topk(self.router(x), self.chosen)
        y = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            token, slot = torch.where(chosen == number)
            rows = x[token]
            y[token] += weights[token, slot, None] * expert(rows - rows.mean(0))
        return y


class Overwrites(Numbered):
    def mix(self, x: torch.Tensor) -> torch.Tensor:
        chosen = torch.topk(self.router(x), self.chosen)[1]
        y = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            token, _ = torch.where(chosen == number)
            y[token] = expert(x[token])
        return y


class LeavesOneOut(Numbered):
    def mix(self, x: torch.Tensor) -> torch.Tensor:
        weights, chosen = torch.topk(self.router(x), self.chosen)
        y = torch.zeros_like(x)
        for number, expert in enumerate(list(self.experts)[:-1]):
            token, slot = torch.where(chosen == number)
            y[token] += weights[token, slot, None] * expert(x[token])
        return y


class PassedOnTwice(PassedOn):
    """Experts without matrices return what they get, each another multiple of it."""

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        weights, chosen = self.router(x).softmax(-1).topk(self.chosen)
        mask = functional.one_hot(chosen, self.count).permute(2, 1, 0)
        y = torch.zeros_like(x)
        for found in torch.greater(mask.sum(dim=(-1, -2)), 0).nonzero():
            number = int(found.item())
            slot, token = torch.where(mask[number])
            part = x[token] * max(1, number - self.real + 1)
            if number < self.real:
                part = functional.linear(part, self.up[number]).relu()
                part = functional.linear(part, self.down[number])
            y.index_add_(0, token, part * weights[token, slot, None])
        return y


class PassedOnInPlace(PassedOn):
    def mix(self, x: torch.Tensor) -> torch.Tensor:
        weights, chosen = self.router(x).softmax(-1).topk(self.chosen)
        mask = functional.one_hot(chosen, self.count).permute(2, 1, 0)
        y = torch.zeros_like(x)
        for found in torch.greater(mask.sum(dim=(-1, -2)), 0).nonzero():
            slot, token = torch.where(mask[int(found.item())])
            y[token] += x[token] * weights[token, slot, None]
        return y


class ByPlace(SlicedByCounts):
    """What a slot counts depends on its place among all."""

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        _, chosen = torch.topk(self.router(x), self.chosen)
        hits = chosen.new_zeros((x.shape[0], self.count)).scatter_(1, chosen, 1)
        order = chosen.view(-1).argsort()
        rows = x[order // self.chosen].split(hits.sum(0).tolist())
        parts = [expert(part) for expert, part in zip(self.experts, rows, strict=True)]
        places = torch.arange(order.shape[0]) / 16
        y = torch.zeros(order.shape[0], x.shape[1])
        y[order] = torch.cat(parts) * places[:, None].cos()
        return y.view(*chosen.shape, -1).sum(1)


class Shuffled(SlicedByCounts):
    """Results stay in the order of experts."""

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        _, chosen = torch.topk(self.router(x), self.chosen)
        hits = chosen.new_zeros((x.shape[0], self.count)).scatter_(1, chosen, 1)
        order = chosen.view(-1).argsort()
        rows = x[order // self.chosen].split(hits.sum(0).tolist())
        parts = [expert(part) for expert, part in zip(self.experts, rows, strict=True)]
        return torch.cat(parts).view(*chosen.shape, -1).sum(1)


class OfOthers(SlicedByCounts):
    """The order of the slots takes rows of something else."""

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        _, chosen = torch.topk(self.router(x), self.chosen)
        hits = chosen.new_zeros((x.shape[0], self.count)).scatter_(1, chosen, 1)
        order = chosen.view(-1).argsort()
        rows = torch.cat([x, x, x])[order].split(hits.sum(0).tolist())
        parts = [expert(part) for expert, part in zip(self.experts, rows, strict=True)]
        return torch.cat(parts).view(*chosen.shape, -1).sum(1)


@pytest.mark.parametrize(
    ("block", "reason"),
    (
        (ByPlace, "run once for all slots it gives other values"),
        (Shuffled, "run once for all slots it gives other values"),
        (OfOthers, "the order of its slots by expert is used for something else"),
        (PassedOnTwice, "run once for all slots it gives other values"),
        (PassedOnInPlace, "experts of several kinds write their results in place"),
        (Numbered, "run once for all slots it gives other values"),
        (MeanOfRows, "run once for all slots it gives other values"),
        (Overwrites, "it overwrites what another expert gave the same token"),
        (LeavesOneOut, "expert 3 of 4 never has its turn"),
    ),
)
def test_loops_that_are_none_are_refused(block: type[Loop], reason: str) -> None:
    with pytest.raises(FrontendError) as error:
        capture_module(ExpertDecoder(block))
    assert f"'layers.0.block' ({block.__name__}) cannot be traced: {reason}" in str(error.value)


def test_experts_that_drop_tokens_are_refused() -> None:
    with pytest.raises(FrontendError):
        capture_module(ExpertDecoder(Capacity))


def test_proving_leaves_the_model_as_it_was() -> None:
    model = ExpertDecoder(LOOPS[0])
    before: dict[str, Any] = copy.deepcopy(model.state_dict())
    capture_module(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
