"""How fast the page is there, and what it costs while nobody asks anything."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil

from benchmarks.report import Row

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 120  # seconds


def rows() -> list[Row]:
    """Start the app once, ask for its page, look at its memory and at what it has imported."""
    port = free_port()
    start = time.perf_counter()
    app = subprocess.Popen([sys.executable, "app.py", "--host", "127.0.0.1", "--port", str(port)], cwd=ROOT)
    try:
        seconds = _until_answer(f"http://127.0.0.1:{port}/", start)
        time.sleep(3)
        process = psutil.Process(app.pid)
        memory = process.memory_info().rss / 1e6
        torch = any("libtorch" in region.path for region in process.memory_maps())
    finally:
        app.terminate()
        app.wait()
    return [
        Row("start → page answers", seconds, 6.0, "s", f"torch {'is' if torch else 'not'} imported"),
        Row("idle memory", memory, 400, "MB", "resident"),
    ]


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _until_answer(url: str, start: float) -> float:
    while time.perf_counter() - start < PATIENCE:
        try:
            urllib.request.urlopen(url, timeout=5).read()
            return time.perf_counter() - start
        except OSError:
            time.sleep(0.05)
    raise TimeoutError(f"the page did not answer in {PATIENCE} s")
