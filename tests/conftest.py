"""The started app, once for all tests that speak to it, and the reasons of what is skipped."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from models.catalog import COMPACT
from models.errors import UserError
from models.weights import WeightStore

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
START_SECONDS = 120


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Cheap tests first; browser tests where there is a browser."""
    items.sort(key=lambda item: (bool(item.get_closest_marker("browser")), bool(item.get_closest_marker("compact"))))
    if CHROMIUM is None:
        for item in items:
            if item.get_closest_marker("browser"):
                item.add_marker(pytest.mark.skip(reason="no Chromium on this machine"))


@pytest.fixture(scope="session")
def compact_weights() -> WeightStore:
    """The store with the compact weights in it, fetched if need be; skips where no source answers."""
    store = WeightStore()
    for weights in COMPACT.weights:
        try:
            for _ in store.fetch(weights, lambda: False):
                pass
        except UserError as error:
            pytest.skip(f"the compact weights cannot be had here: {error}")
    return store


def errors_of(page: Any) -> list[str]:
    """The page's uncaught errors, as they come.

    Not an AbortError: Gradio's audio player gives up the loading of a clip that another one replaces, or that leaves
    with the page, and nobody catches its fetch's rejection.
    """
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)) if error.name != "AbortError" else None)
    return errors


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class App:
    """`python app.py` as a process of its own, listening on 127.0.0.1."""

    def __init__(self, folder: Path, *arguments: str, **environment: str):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/"
        self.uploads = folder / "gradio"
        self._log = (folder / "app.log").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, "app.py", "--host", "127.0.0.1", "--port", str(self.port), *arguments],
            cwd=ROOT,
            env={**os.environ, "GRADIO_TEMP_DIR": str(self.uploads), "PYTHONUNBUFFERED": "1", **environment},
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        self.pid = self._process.pid
        self._wait()

    def _wait(self) -> None:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise RuntimeError(f"the app ended at its start:\n{self.log()}")
            try:
                urllib.request.urlopen(self.url, timeout=5).read()
                return
            except OSError:
                time.sleep(0.2)
        self.stop()
        raise RuntimeError(f"the app did not answer in {START_SECONDS} s:\n{self.log()}")

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


@pytest.fixture(scope="session")
def app(compact_weights: WeightStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """The app with the compact models, for every test that speaks to it."""
    started = App(tmp_path_factory.mktemp("app"))
    yield started
    started.stop()
    trouble = [line for line in started.log().splitlines() if "Traceback" in line]
    assert not trouble, f"the app's log holds a traceback:\n{started.log()}"
