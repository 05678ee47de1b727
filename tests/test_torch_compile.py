"""`torch.compile(model, backend="graphwright")`, end to end: results are those of the model."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from tiny_models import MORE_MODELS, TINY_MODELS, tiny_model
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed
from transformers import DynamicCache, StaticCache

from graphwright.passes.base import Exactness
from graphwright.passes.verification import promise_ratio
from graphwright.torch_backend import packed_weights, part_call
from graphwright.torch_backend.backend import graphwright, reports
from graphwright.torch_backend.compile_graph import GraphReport

ROUNDING = 1e-5  # of the standard deviation, for a few layers in float32
WIDTH = 64

Made = Callable[[], list[GraphReport]]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """No test finds what another one compiled in torch; native code of like parts is shared."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def made() -> Made:
    """The reports since the test began."""
    before = len(reports())
    return lambda: reports()[before:]


@pytest.fixture
def regions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes in bytes of the weights regions that parts use, one for each time they are packed."""
    sizes: list[int] = []
    packed = packed_weights.packed

    def noted(*given: Any) -> Any:
        made = packed(*given)
        sizes.append(made.region.nbytes)
        return made

    monkeypatch.setattr(part_call, "packed", noted)
    return sizes


class Block(nn.Module):
    """A residual block of a norm and two products."""

    def __init__(self, width: int = WIDTH, hidden: int = 96) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = x + self.down(nn.functional.gelu(self.up(self.norm(x))))
        return made


def quiet(module: nn.Module, seed: int = 0) -> nn.Module:
    """`module` with random weights that want no gradients, of the sizes that training leaves."""
    generator = torch.Generator().manual_seed(seed)
    for weight in module.parameters():
        noise = torch.randn(weight.shape, generator=generator)
        weight.data = noise / weight.shape[-1] ** 0.5 if weight.dim() > 1 else 1 + 0.1 * noise
    return module.requires_grad_(False).eval()


def blocks(count: int = 2, width: int = WIDTH, hidden: int = 96) -> nn.Module:
    return quiet(nn.Sequential(*(Block(width, hidden) for _ in range(count))))


def rows(*sizes: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed))


def tokens(batch: int, length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(batch)
    return torch.randint(3, 120, (batch, length), generator=generator)


def native(model: Any, *, dynamic: bool | None = None, full: bool = False, **options: Any) -> Any:
    """`model` compiled by the backend; passes are not checked by numbers unless `check` says so."""
    options = {"check": False, "threads": 2, **options}
    return torch.compile(
        model, backend="graphwright", dynamic=dynamic, fullgraph=full, options=options
    )


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    """The largest difference as a share of the standard deviation."""
    assert got.shape == want.shape
    return float((got.double() - want.double()).abs().max() / want.double().std())


def check_same(got: torch.Tensor, want: torch.Tensor) -> None:
    assert got.dtype == want.dtype
    assert error(got, want) <= ROUNDING


def check_all_taken(found: list[GraphReport]) -> None:
    """Every product with a weight runs in a native part."""
    assert found
    for report in found:
        assert report.parts and not report.left, str(report)
        assert report.weight_bytes_in_parts == report.weight_bytes


# ---- models


def test_torch_finds_the_backend_by_name() -> None:
    assert "graphwright" in torch._dynamo.list_backends(())
    assert torch._dynamo.lookup_backend("graphwright") is graphwright


def test_blocks_of_norms_and_products_run_in_one_part(made: Made) -> None:
    model, x = blocks(), rows(5, WIDTH)
    check_same(native(model, check=True)(x), model(x))
    check_all_taken(made())
    assert [report.parts for report in made()] == [1]
    assert made()[0].products == 4
    assert "with 100% of the weights that products read" in str(made()[0])


FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt2": {},
    "gemma2": {"sliding_window": 4},
    "qwen3-moe": {},
    "deepseek-v3": {},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_decodes_on_its_cache(family: str, made: Made) -> None:
    """Prefill, of two shapes where that takes no long time, then a token at a time."""
    model = tiny_model(family, num_layers=1, **FAMILIES[family]).requires_grad_(False)
    compiled = native(model)
    shapes = [(2, 7, 0), (3, 5, 3)] if family == "llama" else [(3, 5, 3)]
    for batch, length, steps in shapes:
        given = tokens(batch, length)
        caches = [DynamicCache(config=model.config) for _ in range(2)]
        for _ in range(steps + 1):
            got = compiled(given, past_key_values=caches[0]).logits
            want = model(given, past_key_values=caches[1]).logits
            check_same(got, want)
            given = want[:, -1:].argmax(-1)
    check_all_taken(made())


@pytest.mark.slow
@pytest.mark.parametrize("family", [*TINY_MODELS, *MORE_MODELS])
def test_every_family(family: str, made: Made) -> None:
    """Two shapes of a prompt, then a token at a time, with the numbers of each pass compared."""
    model = tiny_model(family).requires_grad_(False)
    compiled = native(model, check=True)
    for batch, length, steps in ((1, 9, 0), (2, 7, 3)):
        given = tokens(batch, length)
        caches = [DynamicCache(config=model.config) for _ in range(2)]
        for _ in range(steps + 1):
            got = compiled(given, past_key_values=caches[0]).logits
            want = model(given, past_key_values=caches[1]).logits
            check_same(got, want)
            given = want[:, -1:].argmax(-1)
    for report in made():
        assert report.weight_bytes_in_parts == report.weight_bytes, str(report)


def test_layers_that_are_alike_share_their_code(made: Made) -> None:
    """Of the parts between the attentions of four layers, two are of one kind."""
    model = tiny_model("llama", num_layers=4).requires_grad_(False)
    given = tokens(2, 6)
    check_same(native(model)(given, use_cache=False).logits, model(given, use_cache=False).logits)
    check_all_taken(made())
    assert [(report.parts, report.kinds) for report in made()] == [(5, 3)]


def test_generate_chooses_the_same_tokens(made: Made) -> None:
    model: Any = tiny_model("llama", num_layers=1)
    given = {"inputs": tokens(2, 7), "max_new_tokens": 9, "do_sample": False, "pad_token_id": 0}
    want = model.generate(**given)
    model.forward = native(model.forward)
    assert torch.equal(model.generate(**given), want)
    check_all_taken(made())


def test_a_static_cache_in_inference_mode(made: Made) -> None:
    """The keys and values are written in place, in one graph for every step."""
    model = tiny_model("llama", num_layers=1)
    compiled = native(model, full=True)
    with torch.inference_mode():
        caches = [StaticCache(config=model.config, max_cache_len=32) for _ in range(2)]
        for cache in caches:
            given = model(tokens(2, 7), past_key_values=cache).logits[:, -1:].argmax(-1)
        for _ in range(4):
            got = compiled(given, past_key_values=caches[0]).logits
            want = model(given, past_key_values=caches[1]).logits
            check_same(got, want)
            given = want[:, -1:].argmax(-1)
    check_all_taken(made())
    assert len(made()) == 1


# ---- shapes


def test_one_graph_for_every_number_of_rows(made: Made) -> None:
    model = blocks()
    compiled = native(model, dynamic=True, full=True, quant="f32")
    for count in (2, 5, 8, 9, 512, 513, 1030):
        check_same(compiled(x := rows(count, 3, WIDTH)), model(x))
    check_all_taken(made())
    assert len(made()) == 1


def test_many_rows_are_left_to_torch_where_the_weights_are_as_they_were() -> None:
    model = blocks(1)
    compiled = native(model, dynamic=True)
    for count in (2, 255, 256, 257, 600):
        check_same(compiled(x := rows(count, WIDTH)), model(x))


@pytest.mark.parametrize("shape", [(0, WIDTH), (2, 0, WIDTH), (1, WIDTH), (1, 1, WIDTH), (WIDTH,)])
def test_no_row_and_one_row(shape: tuple[int, ...]) -> None:
    model = blocks(1)
    for dynamic in (None, True):
        got, want = native(model, dynamic=dynamic)(x := rows(*shape)), model(x)
        assert got.shape == want.shape
        if got.numel():
            check_same(got, want)


STRIDED: dict[str, Callable[[], torch.Tensor]] = {
    "transposed": lambda: rows(WIDTH, 5).t(),
    "batch second": lambda: rows(5, 3, WIDTH).transpose(0, 1),
    "one row for all": lambda: rows(1, WIDTH).expand(4, WIDTH),
    "every second value": lambda: rows(3, 2 * WIDTH)[:, ::2],
    "unaligned": lambda: rows(4 * WIDTH + 1)[1:].view(4, WIDTH),
}


@pytest.mark.parametrize("case", STRIDED)
def test_rows_may_lie_anyhow(case: str) -> None:
    model, x = blocks(1), STRIDED[case]()
    check_same(native(model)(x), model(x))


# ---- graphs


class Function(nn.Module):
    """`apply` with a block, a table and two buffers."""

    steps: torch.Tensor
    scale: torch.Tensor

    def __init__(self, apply: Callable[..., Any]) -> None:
        super().__init__()
        self.block = Block()
        self.table = nn.Embedding(50, WIDTH)
        self.register_buffer("steps", torch.zeros(1))
        self.register_buffer("scale", torch.ones(WIDTH))
        self.apply_to = apply

    def forward(self, *given: Any) -> Any:
        return self.apply_to(self, *given)


def of(apply: Callable[..., Any]) -> Function:
    made = quiet(Function(apply))
    assert isinstance(made, Function)
    return made


def test_a_graph_break_in_the_middle(made: Made) -> None:
    def apply(self: Function, x: torch.Tensor) -> torch.Tensor:
        x = self.block(x)
        torch._dynamo.graph_break()
        made: torch.Tensor = self.block(2 * x)
        return made

    model, x = of(apply), rows(5, WIDTH)
    check_same(native(model)(x), model(x))
    assert len(made()) == 2
    check_all_taken(made())


def test_the_way_depends_on_a_value(made: Made) -> None:
    """The graphs of both ways, and the one before them."""

    def apply(self: Function, x: torch.Tensor) -> torch.Tensor:
        x = self.block(x)
        made: torch.Tensor = self.block(-x) if float(x.sum()) > 0 else self.block(x) + 1
        return made

    model = of(apply)
    compiled, first = native(model), rows(5, WIDTH)
    for x in (first, first - 9, first + 9):
        check_same(compiled(x), model(x))
    assert len(made()) >= 3
    check_all_taken(made())


def test_buffers_that_the_graph_writes() -> None:
    """`scale` is read by the part itself, before and after it changes."""

    def apply(self: Function, x: torch.Tensor) -> torch.Tensor:
        self.steps.add_(1)
        before = self.block(x * self.scale)
        self.scale.mul_(1.5).add_(self.steps)
        made: torch.Tensor = before + self.block(x * self.scale)
        return made

    ours, theirs = of(apply), of(apply)
    compiled = native(ours)
    for seed in range(4):
        check_same(compiled(x := rows(3, WIDTH, seed=seed)), theirs(x))
    assert torch.equal(ours.steps, theirs.steps) and torch.equal(ours.scale, theirs.scale)


def test_a_weight_that_the_graph_writes(made: Made) -> None:
    def apply(self: Function, x: torch.Tensor) -> torch.Tensor:
        self.block.up.weight.mul_(0.5)
        made: torch.Tensor = self.block(x)
        return made

    ours, theirs = of(apply), of(apply)
    compiled = native(ours)
    for _ in range(3):
        check_same(compiled(x := rows(3, WIDTH)), theirs(x))
    assert any("no weight" in why for why in made()[0].left)


def test_inputs_that_the_graph_writes() -> None:
    def apply(self: Function, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.block(x)
        x.add_(made)
        return made

    model = of(apply)
    ours, theirs = rows(3, WIDTH), rows(3, WIDTH)
    check_same(native(model)(ours), model(theirs))
    check_same(ours, theirs)


def test_integer_inputs(made: Made) -> None:
    def apply(self: Function, ids: torch.Tensor, shift: int) -> torch.Tensor:
        made: torch.Tensor = self.block(self.table(ids + shift))
        return made

    model = of(apply)
    compiled = native(model)
    for shift in (0, 1, 2):
        check_same(compiled(x := torch.tensor([[3, 1, 4], [1, 5, 9]]), shift), model(x, shift))
    check_all_taken(made())


def test_a_graph_without_products(made: Made) -> None:
    def apply(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x + y).relu() * 3

    x = rows(3, 5)
    assert torch.equal(native(apply)(x, x), apply(x, x))
    assert [(report.parts, report.products, report.left) for report in made()] == [(0, 0, [])]
    assert "0 run in 0 native parts" in str(made()[0])


def test_products_of_other_types_are_left_to_torch(made: Made) -> None:
    model, x = blocks(1).double(), rows(3, WIDTH).double()
    assert torch.equal(native(model)(x), model(x))
    assert set(made()[0].left) == {"it is torch.float64 on cpu"}


def test_outputs_that_are_views_or_inputs_or_come_twice() -> None:
    def apply(self: Function, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        h = self.block(x + y)
        return h, h, h.view(-1), x, x.view(-1), y[0], self.scale

    model, x = of(apply), rows(3, WIDTH)
    got, want = native(model)(x, x), model(x, x)
    for ours, theirs in zip(got, want, strict=True):
        assert ours.stride() == theirs.stride()
        assert torch.allclose(ours, theirs, atol=1e-5)
    assert got[0] is got[1] and got[3] is x and got[6] is model.scale
    assert got[2].data_ptr() == got[0].data_ptr()
    assert got[4].data_ptr() == got[5].data_ptr() == x.data_ptr()


def test_several_outputs_of_a_part() -> None:
    def apply(self: Function, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        up = self.block.up(self.block.norm(x))
        return self.block.down(up), up, up.view(*x.shape[:-1], 4, 24).transpose(1, 2)

    model, x = of(apply), rows(2, 5, WIDTH)
    for ours, theirs in zip(native(model)(x), model(x), strict=True):
        check_same(ours, theirs)


def _halves(m: Function, x: torch.Tensor) -> torch.Tensor:
    left, right = m.block.up(x).chunk(2, -1)
    made: torch.Tensor = left * right.sigmoid()
    return made


def _heads(m: Function, x: torch.Tensor) -> torch.Tensor:
    heads = m.block.up(x).view(*x.shape[:-1], 4, 24).softmax(-2)
    made: torch.Tensor = m.block.down(heads.flatten(-2))
    return made


AROUND: dict[str, Callable[[Function, torch.Tensor], torch.Tensor]] = {
    "a factor of each row": lambda m, x: m.block.up(x * x.norm(dim=-1, keepdim=True)),
    "a feature as a factor": lambda m, x: m.block(x) * m.block.down(m.block.up(x))[..., -1:],
    "halves": _halves,
    "heads": _heads,
    "two products joined": lambda m, x: torch.cat([m.block.up(x), m.block.norm(x)], -1),
    "a product twice": lambda m, x: m.block(m.block(x)),
    "rows turned round": lambda m, x: m.block.down(m.block.up(x).flip(0)),
    "rows chosen": lambda m, x: m.block(m.block(x)[[1, 0, 1]]),
    "a row for all others": lambda m, x: m.block.up(x) + m.block.up(x[:1]),
    "the mean of all rows": lambda m, x: m.block.up(x) + m.block.up(x.mean(0, keepdim=True)),
    "a norm across rows": lambda m, x: m.block(m.block(x) / m.block(x).norm(dim=0)),
    "outer products": lambda m, x: m.block(x).unsqueeze(-1) * m.block(x).unsqueeze(-2),
    "a norm of two dimensions": lambda m, x: m.block.up(
        nn.functional.layer_norm(m.block(x), (4, WIDTH))
    ),
    "a row to a number": lambda m, x: m.block(x).sum(-1),
}


@pytest.mark.parametrize("case", AROUND)
def test_what_is_around_products(case: str, made: Made) -> None:
    model, x = of(AROUND[case]), rows(3, 4, WIDTH)
    check_same(native(model, dynamic=True)(x), model(x))
    check_all_taken(made())


def test_what_is_no_number_stays_in_its_row() -> None:
    model, x = blocks(), rows(4, WIDTH)
    x[1, 3], x[2] = torch.nan, torch.inf
    got, want = native(model)(x), model(x)
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.allclose(got, want, atol=1e-5, equal_nan=True)


# ---- weights


def _double(model: Any) -> None:
    model[1].down.weight.mul_(-2)


def _load(model: Any) -> None:
    state = model.state_dict()
    model.load_state_dict({key: value.flip(0) for key, value in state.items()})


def _assign(model: Any) -> None:
    state = {key: value.flip(0) for key, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def _replace(model: Any) -> None:
    old = model[0].up.weight
    model[0].up.weight = nn.Parameter(old.flip(0), requires_grad=False)


def _in_inference_mode(model: Any) -> None:
    with torch.inference_mode():
        model[0].norm.bias.add_(1)


CHANGES = [_double, _load, _assign, _replace, _in_inference_mode]


def test_weights_that_change_between_calls() -> None:
    model = blocks()
    compiled, x = native(model), rows(5, WIDTH)
    compiled(x)
    for change in [None, *CHANGES]:
        before = model(x)
        if change is not None:
            change(model)
            assert error(before, model(x)) > 0.5, change
        for _ in range(2):
            check_same(compiled(x), model(x))


def test_weights_that_change_at_every_call_are_left_to_torch(
    caplog: pytest.LogCaptureFixture, regions: list[int]
) -> None:
    model = blocks(1)
    compiled, x = native(model), rows(5, WIDTH)
    for _ in range(15):
        model[0].up.weight.mul_(1.1)  # type: ignore[index,union-attr,operator]
        check_same(compiled(x), model(x))
    assert len(regions) < 12
    found = [each.message for each in caplog.records if "weights changed" in each.message]
    assert len(found) == 1 and "torch computes with them now" in found[0]


def test_two_models_of_one_kind_keep_their_weights_apart() -> None:
    models = [quiet(Block(), seed) for seed in range(2)]
    compiled, x = [native(model) for model in models], rows(5, WIDTH)
    for _ in range(2):
        for ours, theirs in zip(compiled, models, strict=True):
            check_same(ours(x), theirs(x))


# ---- gradients


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


# ---- number formats


def test_int8_weights(regions: list[int], made: Made) -> None:
    """Less than a third of the memory, and results within what int8 is allowed."""
    model, x = blocks(2, 256, 512), rows(9, 256)
    floats = native(model)(x)
    torch._dynamo.reset()
    got = native(model, quant="w8", check=True)(x)
    check_same(floats, model(x))
    assert 0.001 < promise_ratio(got, model(x), Exactness.APPROXIMATE) <= 0.5
    matrices = 4 * 256 * 512
    assert 4 * matrices <= regions[0] and matrices <= regions[1] < regions[0] / 3
    check_all_taken(made())


def test_int4_weights(regions: list[int], made: Made) -> None:
    model, x = blocks(2, 256, 512), rows(9, 256)
    got = native(model, quant="w4g32", check=True)(x)
    assert 0.01 < promise_ratio(got, model(x), Exactness.COARSE) <= 0.5
    matrices = 4 * 256 * 512
    assert matrices / 2 <= regions[0] < matrices
    check_all_taken(made())


def test_a_recipe_that_names_weights(regions: list[int], made: Made) -> None:
    """In the language that the whole model has: the names are those of its parameters."""
    model, x = blocks(2, 256, 512), rows(9, 256)
    found = []
    for quant in ("w8", "w8:down=f32", "w8:0_(up|down)=f32,1_=f32"):
        torch._dynamo.reset()
        found.append(error(native(model, quant=quant)(x), model(x)))
    assert found[0] > 1.2 * found[1] and found[1] > ROUNDING >= found[2]
    matrices = 4 * 256 * 512
    assert regions[1] - regions[0] > matrices and regions[2] >= 4 * matrices
    check_all_taken(made())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype, made: Made) -> None:
    """Nearer to float32 than torch's own is, as a part rounds its results only."""
    model, x = blocks().to(dtype), rows(5, WIDTH).to(dtype)
    got, theirs = native(model)(x), model(x)
    want = model.float()(x.float())
    assert got.dtype == dtype
    assert error(got, want) <= error(theirs, want) + 1e-9
    assert error(got, want) <= 4 * torch.finfo(dtype).eps
    check_all_taken(made())


def test_autocast(made: Made) -> None:
    model, x = blocks(), rows(5, WIDTH)
    compiled, want = native(model), model(x)
    with torch.autocast("cpu", torch.bfloat16):
        got, theirs = compiled(x), model(x)
    assert got.dtype == theirs.dtype
    assert error(got, want) <= 2 * error(theirs, want)
    check_all_taken(made())


# ---- options


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


# ---- threads


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


def test_several_outputs_of_a_part_lie_as_those_of_torch() -> None:
    """Code after the graph may count on their strides."""

    def apply(self: Function, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        up = self.block.up(self.block.norm(x))
        return self.block.down(up), up, up.view(*x.shape[:-1], 4, 24).transpose(1, 2)

    model, x = of(apply), rows(2, 5, WIDTH)
    got, want = native(model)(x), model(x)
    for ours, theirs in zip(got, want, strict=True):
        check_same(ours, theirs)
        assert ours.stride() == theirs.stride()
    got[0].view(-1)


def test_quantized_weights_that_change_between_calls() -> None:
    model = blocks()
    compiled, x = native(model, quant="w8"), rows(5, WIDTH)
    compiled(x)
    for change in [None, *CHANGES]:
        if change is not None:
            change(model)
        for _ in range(2):
            assert promise_ratio(compiled(x), model(x), Exactness.APPROXIMATE) <= 0.5, change


def test_quantized_layers_that_are_alike_keep_their_weights_apart(made: Made) -> None:
    model = tiny_model("llama", num_layers=4).requires_grad_(False)
    given = tokens(2, 6)
    got = native(model, quant="w8")(given, use_cache=False).logits
    want = model(given, use_cache=False).logits
    assert promise_ratio(got, want, Exactness.APPROXIMATE) <= 1
    assert [(report.parts, report.kinds) for report in made()] == [(5, 3)]


def test_a_pattern_that_fits_some_parts_only(made: Made) -> None:
    model = tiny_model("llama", num_layers=2).requires_grad_(False)
    given = tokens(2, 6)
    want = model(given, use_cache=False).logits
    errors = []
    for quant in ("w8", "w8:down_proj=f32"):
        torch._dynamo.reset()
        errors.append(error(native(model, quant=quant)(given, use_cache=False).logits, want))
    check_all_taken(made())
    assert len(set(errors)) == 2


def test_weights_replaced_by_data() -> None:
    """Writes to `.data` in place leave no trace; after a reset everything is packed anew."""
    model, x = blocks(1), rows(5, WIDTH)
    compiled, block = native(model), model.get_submodule("0")
    assert isinstance(block, Block)
    compiled(x)
    block.up.weight.data.mul_(2)
    torch._dynamo.reset()
    check_same(compiled(x), model(x))
    block.up.weight.data = block.up.weight.flip(0)
    check_same(compiled(x), model(x))


def test_parts_alike_but_for_what_their_weights_are_made_of() -> None:
    """Slices of one weight; a weight as it is after one that is computed."""

    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(128, WIDTH))

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
            linear = nn.functional.linear
            return linear(x, self.weight[:64]), linear(y, self.weight[64:])

    model = quiet(Halves())
    given = rows(3, WIDTH), rows(5, WIDTH)
    for ours, theirs in zip(native(model)(*given), model(*given), strict=True):
        check_same(ours, theirs)
    applied: list[Callable[..., torch.Tensor]] = [
        lambda self, x: x @ self.table.weight.softmax(0).t(),
        lambda self, x: x @ self.table.weight.t(),
    ]
    for apply in applied:
        torch._dynamo.reset()
        one, x = of(apply), rows(3, WIDTH)
        check_same(native(one)(x), one(x))


ADDED: dict[str, Callable[..., torch.Tensor]] = {
    "one value": lambda m, x: torch.addmm(m.block.up.bias[:1], x, m.block.up.weight.t()),
    "the rows": lambda m, x: torch.addmm(x, x, m.block.up.weight[:64].t()),
    "a matrix": lambda m, x: torch.addmm(m.table.weight[:3], x, m.block.up.weight[:64].t()),
}


@pytest.mark.parametrize("case", ADDED)
def test_what_is_added_to_a_product(case: str) -> None:
    model, x = of(ADDED[case]), rows(3, WIDTH)
    check_same(native(model)(x), model(x))


def test_the_threads_of_torch_come_back_in_every_thread() -> None:
    """A graph ends in one thread while it runs in another."""
    import threading

    from graphwright.torch_backend.quiet_torch import QuietTorch

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
