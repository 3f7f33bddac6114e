"""What tests of real processes share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    """Where programs of ``counting_jobs`` leave word of themselves."""
    (tmp_path / "marks").mkdir()
    return tmp_path / "marks"
