"""The self-check passes here, and names what is wrong with kernels that are.

Mutation tried: `passed` true for NaN.
"""

import pytest
import torch

from saekit.sae.kernels import Reference
from saekit.sae.kernels.self_check import Check, check_kernels, compare

CPU = torch.device("cpu")


def test_the_kernels_of_this_machine_pass():
    _, checks = check_kernels(CPU)
    assert len(checks) == 9 and all(check.passed for check in checks)


class Wrong(Reference):
    """Slopes and their gradients are wrong; Adam is not finite."""

    def forward_backward(self, *args, **kwargs):
        result = super().forward_backward(*args, **kwargs)
        result.slopes *= 1.001
        return result

    def adam_rows(self, weights, *args, **kwargs):
        weights.fill_(torch.nan)


def test_wrong_kernels_are_named():
    failed = {check.name for check in compare(Wrong(), CPU) if not check.passed}
    assert failed == {
        "gradient of activations", "gradient of W_enc", "gradient of b_enc", "Adam's step"
    }  # fmt: skip


class WrongChoice(Reference):
    def largest(self, pre, k):
        return super().largest(-pre, k)


def test_a_wrong_choice_is_named():
    assert [c.name for c in compare(WrongChoice(), CPU) if not c.passed] == ["k largest"]


@pytest.mark.parametrize("error, passed", [(0.0, True), (1.1e-4, False), (float("nan"), False)])
def test_the_limit(error, passed):
    assert Check("x", error).passed is passed
