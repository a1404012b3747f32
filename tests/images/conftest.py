"""What the tests of images share."""

from __future__ import annotations

import pytest


@pytest.fixture(params=[5, pytest.param(1, marks=pytest.mark.long)], ids=["some", "all"])
def stride(request: pytest.FixtureRequest) -> int:
    """Of places to damage each so-manieth is enough by default; all are left to the long tests."""
    return int(request.param)
