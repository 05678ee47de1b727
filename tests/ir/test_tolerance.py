"""The tolerance table must be able to fail."""

from __future__ import annotations

import pytest
import torch

from graphwright.ir.errors import PassError
from graphwright.ir.tolerance import TOLERANCES, check_close, error_ratio


@pytest.mark.parametrize("kind", ["exact", "reassociating"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_wrong_element_in_a_thousand_fails(kind: str, dtype: torch.dtype) -> None:
    want = torch.randn(1000, generator=torch.Generator().manual_seed(0)).to(dtype)
    check_close(want.clone(), want, kind)
    got = want.clone()
    got[500] += 0.1
    with pytest.raises(PassError, match="largest difference"):
        check_close(got, want, kind)


def test_nan_and_infinity_only_match_themselves() -> None:
    row = TOLERANCES["reassociating", torch.float32]
    want = torch.tensor([1.0, float("inf"), float("nan")])
    assert error_ratio(want.clone(), want, row) == 0
    for bad in ([float("nan"), float("inf"), float("nan")], [1.0, 5.0, float("nan")]):
        assert error_ratio(torch.tensor(bad), want, row) == float("inf")


def test_shapes_and_integers_must_be_equal() -> None:
    with pytest.raises(PassError, match="shapes differ"):
        check_close(torch.zeros(3), torch.zeros(4))
    with pytest.raises(PassError, match="1 of 2 integers differ"):
        check_close(torch.tensor([1, 2]), torch.tensor([1, 3]))
