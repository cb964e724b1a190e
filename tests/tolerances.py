"""Tolerances for comparing results: one table for all tests.

A comparison names its class. If it needs a tolerance other than those, it has its own numbers and
says why.
"""
from typing import NamedTuple, Optional

import torch


class Tolerance(NamedTuple):
    """|actual - expected| <= atol + rtol * |expected|, for every element."""
    rtol: float
    atol: float


SAME = Tolerance(0, 0)  # the same sums in the same order
DOUBLE = Tolerance(1e-12, 1e-12)  # an operator in float64, by two methods
DOUBLE_LAYERS = Tolerance(1e-10, 1e-12)  # layers, transforms and derivatives in float64
SINGLE = Tolerance(1e-5, 1e-5)  # an operator in float32
SINGLE_LAYERS = Tolerance(1e-4, 1e-5)  # layers in float32, with another order of sums
HALVED = Tolerance(2e-2, 2e-2)  # with intermediate results in bfloat16 or float16

# For sums in float32 (float64 for itself) that are rounded once: relative to the largest value.
ROUNDED_ONCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.float16: 1e-3,
                torch.bfloat16: 8e-3}


def assert_close(actual, expected, tolerance: Optional[Tolerance] = None, **options) -> None:
    """``torch.testing.assert_close`` with a class of the table; None: torch's for the dtype."""
    if tolerance is not None:
        options = {**tolerance._asdict(), **options}
    torch.testing.assert_close(actual, expected, **options)


def assert_near(actual, expected, share: float, least: float = 0.) -> None:
    """Assert that no difference exceeds a share of the largest expected value.

    For sums of terms of either sign, whose errors depend on the size of the terms.

    Args:
        actual: Tensor, or a sequence or dict of tensors.
        expected: Likewise; usually float64.
        share: Share of the largest expected value.
        least: Lower bound for the largest expected value.
    """
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
    elif isinstance(expected, torch.Tensor):
        actual, expected = {'': actual}, {'': expected}
    else:
        assert len(actual) == len(expected)
        actual, expected = dict(enumerate(actual)), dict(enumerate(expected))
    for name, value in expected.items():
        assert actual[name].shape == value.shape, name
        error = (actual[name].double() - value.double()).abs().max().item()
        largest = max(value.abs().max().item(), least)
        assert error <= share * largest, f'{name}: {error:.1e} beside {largest:.1e}'
