"""Both ways to write are tested: the walk over columns, which small batches would avoid, and value by value."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True, params=[0, 8], ids=["columns", "values"])
def scalar_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Up to how many rows are written value by value."""
    monkeypatch.setattr("schemas.columnar.SCALAR_ROWS", request.param)
    rows: int = request.param
    return rows
