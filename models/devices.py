"""What this machine has, found out without importing torch, so that the page can say it at once."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from functools import lru_cache

import psutil

from models import zerogpu

ZEROGPU_MEMORY = 70 * 10**9  # bytes one ZeroGPU call may use


@dataclass(frozen=True)
class Device:
    """`kind` is "cuda", "mps" or "cpu"; `memory` the bytes in all; `name` what a person calls it."""

    kind: str
    name: str
    memory: int


@lru_cache(maxsize=1)
def devices() -> tuple[Device, ...]:
    """The devices of this machine, best first; the CPU is always the last."""
    found = []
    gpu = Device("cuda", "ZeroGPU", ZEROGPU_MEMORY) if zerogpu.ACTIVE else _nvidia()
    if gpu:
        found.append(gpu)
    memory = psutil.virtual_memory().total
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        found.append(Device("mps", "Apple GPU", int(memory * 0.7)))  # unified memory; macOS keeps its share
    found.append(Device("cpu", f"CPU, {os.cpu_count()} cores", memory))
    return tuple(found)


def allowed(wanted: str = "auto") -> tuple[Device, ...]:
    """The devices a model may be placed on, best first. `wanted` is "auto", "cuda", "mps" or "cpu".

    The CPU stays allowed beside a wanted GPU: the compact models run nowhere else.
    """
    return tuple(device for device in devices() if wanted == "auto" or device.kind in (wanted, "cpu"))


def _nvidia() -> Device | None:
    tool = shutil.which("nvidia-smi")
    if not tool or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return None
    query = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=5, check=True).stdout
        name, mebibytes = answer.strip().splitlines()[0].rsplit(",", 1)
        return Device("cuda", name.strip(), int(mebibytes) * 2**20)
    except (subprocess.SubprocessError, OSError, ValueError, IndexError):
        return None  # a driver that does not answer cannot run a model either
