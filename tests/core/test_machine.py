"""Facts of the machine: the peak of memory is that of what was just done, not of what the process did before."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from condense.api import carry_out
from condense.machine import fresh_peak, peak_memory

CPU, MANY = torch.device("cpu"), 256 * 2**20
resettable = pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the system keeps one peak")


def height() -> int:
    """The peak once MANY bytes were held, and given back."""
    held = torch.ones(MANY, dtype=torch.uint8)
    found = peak_memory(CPU)
    del held
    return found


@resettable
def test_a_fresh_peak_forgets_what_was_held_before():
    high = height()
    assert peak_memory(CPU) >= high
    fresh_peak(CPU)
    assert peak_memory(CPU) <= high - MANY // 2
    assert height() >= high - MANY // 2, "and sees what is held after"


@resettable
def test_the_peak_of_a_run_is_its_own(toy_plan, tmp_path):
    carry_out(toy_plan, tmp_path / "first")  # what is loaded once
    high = height()
    made = carry_out(toy_plan, tmp_path / "second")
    assert made.provenance["peak_memory_bytes"] <= high - MANY // 2


def test_where_the_system_keeps_one_peak_it_stays(monkeypatch):
    def refused(self, text):
        raise PermissionError

    monkeypatch.setattr(Path, "write_text", refused)
    fresh_peak(CPU)
    assert peak_memory(CPU) > 0
