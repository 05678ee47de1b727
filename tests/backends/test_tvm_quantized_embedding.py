"""The table of integer rows, from both layouts, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from graphwright.backends.tvm.kernels.linear_quantized import weight_pointers
from graphwright.backends.tvm.kernels.quantized_embedding import quantized_embedding
from graphwright.backends.tvm.kernels.standalone import standalone
from graphwright.backends.tvm.layouts import linear_quantized_layouts, table_quantized_layouts
from graphwright.backends.tvm.target import host_cpu
from graphwright.ir.op import get_op
from graphwright.ir.schemes import Scheme, quantize_weight


@pytest.mark.parametrize("layout", ["rows", "linear"])
@pytest.mark.parametrize(
    ("k", "name"),
    [(30, "w8"), (512, "w8"), (64, "w8g32"), (1024, "w8g128"), (96, "w4g32"), (512, "w4g128z")],
)
def test_quantized_embedding(k: int, name: str, layout: str) -> None:
    torch.manual_seed(0)
    scheme = Scheme.parse(name)
    weight, scale, *zero = quantize_weight(torch.randn(37, k), name)
    ids = torch.tensor([0, 36, 17, 16, 15, 3, 3])
    want = get_op("quantized_embedding").reference(weight, scale, ids, *zero, scheme=name)
    layouts = linear_quantized_layouts if layout == "linear" else table_quantized_layouts
    parts = zip(layouts(scheme), (weight, scale, *zero), strict=True)
    arrays = [each.pack(part) for each, part in parts]
    cpu = host_cpu()
    kernel = quantized_embedding(k, scheme, layout=layout, cpu=cpu)
    dtypes = ["int64", *(dtype for _, dtype in weight_pointers(scheme)), "float32"]
    run = standalone(kernel, dtypes, cpu)
    for rows, threads in ((7, 1), (7, 3), (1, 2), (0, 2)):
        out = np.full((7, k), 9, np.float32)
        run(rows, threads, ids.numpy(), *arrays, out)
        assert (out[:rows] == want.numpy()[:rows]).all()
        assert (out[rows:] == 9).all()
