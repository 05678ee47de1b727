"""The compiled code of kernels, executed without a GPU: PTX for sm_80 by ptx_machine.py.

Inline assembly, vectors, addresses and alignments are those of the code, which the interpreter
never sees; what ptxas makes of it is not checked.
"""

from __future__ import annotations

import pytest
import torch

triton = pytest.importorskip("triton")

import ptx_harness  # noqa: E402
import test_triton_linear as products  # noqa: E402
from test_triton_linear import Product  # noqa: E402

from graphwright.backends.triton.kernels.few_rows import FewRows  # noqa: E402

BF16, F16 = torch.bfloat16, torch.float16


@pytest.fixture(autouse=True)
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cases of the interpreter's tests call compiled code."""
    monkeypatch.setattr(products, "call", ptx_harness.call)


@pytest.mark.parametrize(
    "product",
    [
        Product(1, 44, 1024, "w4g128", BF16, few=FewRows(16, 2)),
        Product(1, 44, 1024, "w4g128", BF16, few=FewRows(32, 4), norm=True, gate=(0, 22)),
        Product(8, 140, 512, "w4g128", BF16, few=FewRows(64, 4), norm=True, gate=(70, 0)),
        Product(5, 44, 384, "w4g128z", BF16, few=FewRows(32, 2), activation="silu"),
        Product(16, 44, 1152, "w4g128", BF16, few=FewRows(32, 4), norm=True, gate=(0, 22)),
        Product(13, 44, 640, "w4g64", BF16, few=FewRows(32, 2)),
        Product(8, 40, 1056, "w4g32z", F16, few=FewRows(16, 8)),
        Product(2, 40, 96, "w4g32", F16, few=FewRows(16, 4), activation="gelu_tanh"),
    ],
    ids=str,
)
def test_few_rows(product: Product) -> None:
    product.check()
