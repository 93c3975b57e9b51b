"""The machine that computes: facts that stand beside every number."""

from __future__ import annotations

import platform
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch


def machine(device: torch.device) -> dict[str, Any]:
    """The processor, the device that computes, the threads of torch, and the system."""
    cpu = processor()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    system = f"{platform.system()} {platform.machine()}"
    return {"device": name, "processor": cpu, "threads": torch.get_num_threads(), "system": system}


def processor() -> str:
    """The processor's name, where the system tells it."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def fast_bfloat16(device: torch.device) -> bool:
    """Has the device arithmetic units for bfloat16 (tensor cores, AMX, AVX-512 BF16)?"""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool({"amx_bf16", "avx512_bf16"} & flags())


def flags() -> set[str]:
    """The processor's features, as Linux names them; empty elsewhere."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.exists() else []
    return next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), set())


def peak_memory(device: torch.device) -> int:
    """Bytes: of the device where it is a GPU, else the largest resident size of this process; since `fresh_peak`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def fresh_peak(device: torch.device) -> None:
    """Start measuring the peak anew, where that can be done: on a GPU that is in use, and on Linux."""
    if device.type != "cuda":
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak resident size becomes the current one
    elif torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.reset_peak_memory_stats(device)
