"""Objectives are compared in float64, unless a test asks for less."""

import pytest


@pytest.fixture(autouse=True)
def in_float64(float64: None) -> None:
    """For all tests of this folder."""
