"""Chromium with a fake microphone speaks in Live chat and in the Assistant, and hears the compact models answer."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr

from tests.conftest import CHROMIUM, CHROMIUM_FLAGS, App, errors_of

sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = [pytest.mark.browser, pytest.mark.compact]

EXAMPLES = Path(__file__).resolve().parent.parent / "assets" / "examples"
MICROPHONE_RATE = 48_000  # Hz; Chromium's fake device takes no less
PATIENCE = 240_000  # ms: the machine may be busy and the models not yet loaded
FLAGS = [
    *CHROMIUM_FLAGS,
    "--autoplay-policy=no-user-gesture-required",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
]
LIVE_PLAYER = "[...window.parleyPlayers.players].find(player => player.mic)"


@pytest.fixture
def microphone(tmp_path: Path) -> Path:
    """A wav that asks for a recipe in English after 1.5 s, then is silent for longer than any test takes."""
    speech, rate = soundfile.read(EXAMPLES / "question_en.ogg", dtype="float32")
    silence = np.zeros(rate, np.float32)
    speech = np.concatenate([silence, silence[: rate // 2], speech, np.tile(silence, 300)])
    path = tmp_path / "microphone.wav"
    soundfile.write(path, soxr.resample(speech, rate, MICROPHONE_RATE), MICROPHONE_RATE, subtype="PCM_16")
    return path


@pytest.fixture
def page(app: App, microphone: Path) -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        flags = [*FLAGS, f"--use-file-for-fake-audio-capture={microphone}%noloop"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        opened = browser.new_page(viewport={"width": 1280, "height": 1000})
        opened.set_default_timeout(PATIENCE)
        errors = errors_of(opened)
        opened.goto(f"{app.url}?language=en")
        opened.get_by_role("tab", name="Live chat").wait_for()
        yield opened
        browser.close()
        assert not errors


def until(page: Any, script: str, meanwhile: Callable[[], None] = lambda: None) -> Any:
    """Wait until a script is true; give its value."""
    end = time.monotonic() + PATIENCE / 1000
    while not (value := page.evaluate(script)):
        assert time.monotonic() < end, f"never came true: {script}"
        meanwhile()
        page.wait_for_timeout(100)
    return value


def test_live_chat_hears_a_spoken_question_and_answers_aloud(page: Any):
    page.get_by_role("tab", name="Live chat").click()
    page.click("#parley-live [data-part=button]")
    until(page, f"() => {LIVE_PLAYER}.stats.chunks > 0")
    stats = until(page, f"() => {LIVE_PLAYER}.state === 'idle' && {LIVE_PLAYER}.stats")
    assert stats["samples"] > 0.5 * stats["rate"] and stats["gaps"] == 0
    messages = page.locator("#parley-live-transcript .message").all_inner_texts()
    assert "mountain" in messages[0].lower()
    assert re.search(r"\w{3}", messages[1])
    soon = float(page.get_attribute("#parley-live-chat [data-after-speech]", "data-after-speech"))
    print(f"end of speech → first sound: {soon} s")
    microphone = page.evaluate(f"() => {LIVE_PLAYER}.mic.stats")
    assert microphone["chunks"] > 10


def test_live_chat_falls_silent_when_it_is_interrupted(page: Any):
    page.get_by_role("tab", name="Live chat").click()
    page.fill("#parley-live-text textarea", "Please count aloud from one to forty.")
    page.keyboard.press("Enter")
    first = until(page, f"() => {LIVE_PLAYER}.stats.chunks > 0 && {LIVE_PLAYER}.stream")
    page.click("#parley-live [data-part=button]")
    until(page, f"() => {LIVE_PLAYER}.silenced.has({json.dumps(first)})")
    until(page, f"() => {LIVE_PLAYER}.stream !== {json.dumps(first)} && {LIVE_PLAYER}.stats.chunks > 0")
    messages = page.locator("#parley-live-transcript .message").all_inner_texts()
    assert messages[0].startswith("Please count")
    assert any("mountain" in message.lower() for message in messages[1:])


def test_assistant_answers_a_recording_and_keeps_both_to_play_again(page: Any):
    page.get_by_role("tab", name="Assistant").click()
    page.locator("#parley-assist-speech").get_by_role("button", name="Record", exact=True).click()
    page.wait_for_timeout(6000)
    page.locator("#parley-assist-speech").get_by_role("button", name="Stop", exact=True).click()
    playing = "() => window.parleyPlayers.stats().find(stats => stats.chunks > 0)"
    stats = until(page, playing)
    page.locator("#parley-assistant .parley-figures").wait_for()
    assert stats["samples"] > 0
    messages = page.locator("#parley-assist-chat .message").all_inner_texts()
    assert "mountain" in " ".join(messages).lower()
    assert page.locator("#parley-assist-chat .minimal-audio-player").count() == 2
