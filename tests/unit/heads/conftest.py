"""The planted models, once for all tests of the heads."""

import pytest

from tests.unit.heads.planted import planted_model


@pytest.fixture(scope="session")
def planted():
    """Copiers at L0-H1 and L1-H2, suppressor L2-H0, relation head L1-H3; all others empty."""
    return planted_model()


@pytest.fixture(scope="session")
def half_planted():
    """As `planted`, but only tokens 0 to 59 are copied."""
    return planted_model(half=True)
