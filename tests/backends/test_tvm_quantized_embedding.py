"""The table of int8 rows, from both layouts, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from graphwright.backends.tvm.kernels.linear_w8 import pack_w8
from graphwright.backends.tvm.kernels.quantized_embedding import quantized_embedding
from graphwright.backends.tvm.kernels.standalone import standalone
from graphwright.backends.tvm.target import host_cpu
from graphwright.ir.op import get_op
from graphwright.ir.schemes import quantize_weight


@pytest.mark.parametrize("layout", ["rows", "linear"])
@pytest.mark.parametrize(
    ("k", "scheme"), [(30, "w8"), (512, "w8"), (64, "w8g32"), (1024, "w8g128")]
)
def test_quantized_embedding(k: int, scheme: str, layout: str) -> None:
    torch.manual_seed(0)
    weight, scale = quantize_weight(torch.randn(37, k), scheme)
    ids = torch.tensor([0, 36, 17, 16, 15, 3, 3])
    want = get_op("quantized_embedding").reference(weight, scale, ids, scheme=scheme)
    arrays = [weight.numpy(), scale.numpy()]
    if layout == "linear":
        arrays = list(pack_w8(weight.numpy(), scale.numpy()))
    cpu = host_cpu()
    kernel = quantized_embedding(k, scale.shape[1], layout=layout, cpu=cpu)
    run = standalone(kernel, ["int64", "int8", "float32", "float32"], cpu)
    for rows, threads in ((7, 1), (7, 3), (1, 2), (0, 2)):
        out = np.full((7, k), 9, np.float32)
        run(rows, threads, ids.numpy(), *arrays, out)
        assert (out[:rows] == want.numpy()[:rows]).all()
        assert (out[rows:] == 9).all()
