"""Live chat as a person meets it: Chromium speaks into a fake microphone and hears the started app answer."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from benchmarks.page import PATIENCE, ROOT, free_port
from benchmarks.report import Row

ROUNDS = 3
DUCK_S = 0.06  # of loud sound before the page silences an answer (DUCK_FRAMES in assets/web/live.js)
DUCK_MS, FADE_MS = 700, 40  # how long a duck waits for the server, and how long its fade takes
MICROPHONE_RATE = 48_000  # Hz; Chromium's fake device takes no less
PLAYER = "[...window.parleyPlayers.players].find(player => player.mic)"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
]


def rows() -> list[Row]:
    """Answer time, transport time and barge-in, each the median of a few rounds."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        return [
            Row(what, None, target, unit, "no Chromium on this machine")
            for what, target, unit in (ANSWER, TRANSPORT, BARGE_IN)
        ]
    from playwright.sync_api import sync_playwright

    answers, transports, silences = [], [], []
    with tempfile.TemporaryDirectory() as folder, _app() as url, sync_playwright() as playwright:

        def opened(lead: float) -> Iterator[Any]:
            microphone = _microphone(Path(folder) / f"{lead}.wav", lead)
            flags = [*FLAGS, f"--use-file-for-fake-audio-capture={microphone}%noloop"]
            browser = playwright.chromium.launch(executable_path=chromium, args=flags)
            for _ in range(ROUNDS):
                page = browser.new_page()
                page.goto(f"{url}?language=en")
                page.get_by_role("tab", name="Live chat").click()
                yield page
                page.close()
            browser.close()

        for page in opened(1.5):
            soon, transport = _ask(page)
            answers.append(soon)
            transports.append(transport)
        for page in opened(0.2):
            silences.append(_interrupt(page))
    notes = f"median of {ROUNDS}, in Chromium on the same cores"
    return [
        Row(*ANSWER[:1], statistics.median(answers), *ANSWER[1:], notes),
        Row(*TRANSPORT[:1], statistics.median(transports), *TRANSPORT[1:], notes),
        Row(*BARGE_IN[:1], statistics.median(silences), *BARGE_IN[1:], notes),
    ]


ANSWER = ("end of speech → first sound (Live chat)", 3.5, "s")
TRANSPORT = ("chunk leaves the server → sound in the browser", 350.0, "ms")
BARGE_IN = ("barge-in → silent", 300.0, "ms")


def _ask(page: Any) -> tuple[float, float]:
    """Speak a question; seconds from its end to the first sound, and ms from the server to the loudspeaker."""
    page.click("#parley-live [data-part=button]")
    _until(page, f"() => {PLAYER}.stats.chunks > 0")
    transport = _until(page, f"() => {PLAYER}.state === 'idle' && {PLAYER}.stats.serverToSound")
    soon = page.locator("#parley-live-chat [data-after-speech]").get_attribute("data-after-speech")
    return float(soon) + transport / 1000, float(transport)


def _interrupt(page: Any) -> float:
    """Speak while a long answer sounds; ms from the first loud sample to silence."""
    page.fill("#parley-live-text textarea", "Please count aloud from one to forty.")
    page.keyboard.press("Enter")
    _until(page, f"() => {PLAYER}.stats.chunks > 0")
    page.click("#parley-live [data-part=button]")
    confirmed, duck = _until(
        page, f"() => {PLAYER}.stats.silencedAt && [{PLAYER}.stats.silencedAt, {PLAYER}.mic.stats.lastDuck]"
    )
    # A duck is silence; where the server confirms it in time, nothing of the answer is heard again.
    silent = duck + FADE_MS if confirmed - duck <= DUCK_MS else confirmed
    return silent - duck + 1000 * DUCK_S


def _until(page: Any, script: str) -> Any:
    end = time.monotonic() + PATIENCE
    while not (value := page.evaluate(script)):
        if time.monotonic() > end:
            raise TimeoutError(script)
        page.wait_for_timeout(20)
    return value


def _microphone(path: Path, lead: float) -> Path:
    """A wav that asks a question after `lead` seconds and is silent from then on."""
    speech, rate = soundfile.read(ROOT / "assets" / "examples" / "question_en.ogg", dtype="float32")
    sound = np.concatenate([np.zeros(round(rate * lead), np.float32), speech, np.zeros(rate * 120, np.float32)])
    soundfile.write(path, soxr.resample(sound, rate, MICROPHONE_RATE), MICROPHONE_RATE, subtype="PCM_16")
    return path


@contextmanager
def _app() -> Iterator[str]:
    """The app with the compact models preloaded; its address."""
    port = free_port()
    command = [sys.executable, "app.py", "--host", "127.0.0.1", "--port", str(port), "--preload", "compact"]
    app = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert app.stdout
        for line in app.stdout:
            if "is ready" in line:
                break
        else:
            raise RuntimeError("the app ended at its start")
        yield f"http://127.0.0.1:{port}/"
    finally:
        app.terminate()
        app.wait()
