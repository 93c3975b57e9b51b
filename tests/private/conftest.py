"""What tests of private runs share."""

from __future__ import annotations

import pytest

from condense_private import accounting


@pytest.fixture
def rdp_only(monkeypatch):
    """Statements by RDP alone: PRV starts a process of its own, seconds for every run that ends."""
    monkeypatch.setattr(accounting.Prv, "__call__", lambda prv, releases, delta: None)
