"""Causal convolutions with rolling states, in Triton's interpreter, against their op."""

from __future__ import annotations

import pytest
import torch

from graphwright.ir.op import get_op
from graphwright.ir.tolerance import check_close

triton = pytest.importorskip("triton")

from triton_harness import batch_header, call, untouched  # noqa: E402

from graphwright.backends.triton.kernels.causal_conv import causal_conv, roll_state  # noqa: E402
from graphwright.backends.triton.kernels.token_slots import token_slots  # noqa: E402


@pytest.mark.parametrize("channels, each, taps", [(6, 1, 3), (520, 1, 2), (5, 2, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_convolutions_go_on_from_the_states_of_their_sequences(
    channels: int, each: int, taps: int, dtype: torch.dtype
) -> None:
    # Sequence 0 decodes its 10th token, 1 starts with 4, 2 is not in the step, 3 adds 2 to its 3,
    # 4 decodes its 2nd.
    torch.manual_seed(0)
    table = torch.tensor([[3, 1], [2, 5], [8, 0], [7, 6], [4, 0]], dtype=torch.int32)
    positions = torch.tensor([9, 0, 1, 2, 3, 3, 4, 1])
    start = torch.tensor([0, 1, 5, 5, 7, 8], dtype=torch.int32)
    tokens, outputs, stride = len(positions), channels * each, (taps - 1) * channels + 5
    x = torch.randn(tokens, channels).to(dtype)
    weight, bias = torch.randn(outputs, taps), torch.randn(outputs)
    pool = torch.randn(9, stride).to(dtype)
    pool[2] = torch.nan  # what a sequence that starts finds in its block
    before = pool.clone()
    state = pool[:, : stride - 5].reshape(9, taps - 1, channels).clone()
    want = get_op("causal_conv").reference(x, weight, bias, state, positions, start, table)

    sequences, slots = (untouched((tokens,), torch.int32) for _ in range(2))
    batch = batch_header(tokens, sequences=5, width=2)
    call(token_slots(), batch, positions, start, table, sequences, slots)
    out = untouched((tokens + 1, outputs), dtype)
    name = str(dtype).removeprefix("torch.")
    sizes = {"x_stride": channels, "block_stride": stride, "state": name, "dtype": name}
    kernel = causal_conv(channels, outputs, taps, bias="float32", **sizes)  # type: ignore[arg-type]
    where = (positions, sequences, start, table)
    call(kernel, batch, x, weight, bias, pool, *where, out)
    check_close(out[:tokens], want)
    assert out[tokens].isnan().all()
    assert torch.equal(pool.nan_to_num(7.5), before.nan_to_num(7.5))
    kernel = roll_state(channels, taps, sequences=7, **sizes)  # type: ignore[arg-type]
    call(kernel, batch, x, pool, positions, start, table)
    now = pool[:, : stride - 5].reshape(state.shape)
    assert torch.equal(now.nan_to_num(7.5), state.nan_to_num(7.5))
    between = [each[:, stride - 5 :].nan_to_num(7.5) for each in (pool, before)]
    assert torch.equal(*between)
