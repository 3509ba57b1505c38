"""The player, the live component and the answer card in Chromium, with synthetic streams and a fake microphone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest

from models.capabilities import AudioChunk, Event, Heard, Sampling, Stats, Status, TextDelta
from models.errors import UserError
from models.text import say
from tabs.answer import answer
from tabs.i18n import language_of, t
from tabs.live_audio import heard, heard_chunk, live_audio, live_value
from tabs.look import badge_html, head_row, launch_options
from tabs.player import SoundStream
from tabs.shared import AdvancedSettings, advanced_settings, answer_card, run_buttons, two_columns, wire_stop
from tests.conftest import CHROMIUM, CHROMIUM_FLAGS, errors_of

sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.browser

RATE = 24_000
FLAGS = [
    *CHROMIUM_FLAGS,
    "--use-fake-device-for-media-stream",
]
HEARD: list[tuple[str, int, int, bool]] = []  # visit, seq, samples, end: of every microphone chunk
EVENTS: list[str] = []
SETTINGS: list[Sampling] = []  # of the last answer


def tone(seconds: float, pause: float = 0.0, piece: float = 0.1) -> Iterator[AudioChunk]:
    """A 220 Hz tone in pieces, each after a pause."""
    n = round(piece * RATE)
    for start in range(0, round(seconds * RATE), n):
        time.sleep(pause)
        at = np.arange(start, start + n) / RATE
        yield AudioChunk((3000 * np.sin(2 * np.pi * 220 * at)).astype(np.int16), RATE)


def script(kind: str) -> Iterator[Event | None]:
    yield Status("thinking")
    yield Heard("a question")
    if kind == "refuse":
        raise UserError("audio_silent")
    yield TextDelta("An answer <b>with</b> signs.")
    yield Status("speaking")
    if kind == "burst":  # far faster than the page can draw
        yield from tone(3.0, 0, 0.02)
    elif kind == "endless":
        yield from tone(60.0, 0.02)
    else:
        yield from tone(2.0, 0.04)
    yield Stats({"model": "Test", "device": "cpu", "seed": 4711, "audio_s": 2.0, "rtf": 0.4})


def build() -> gr.Blocks:
    with gr.Blocks(title="test") as demo:
        head_row(badge_html(["Test"]))
        with gr.Tabs():
            for name in ("one", "two"):
                with gr.Tab(name):
                    left, right = two_columns()
                    with left:
                        kind = gr.Textbox("steady", elem_id=f"kind-{name}", label="kind")
                        pick = gr.Dropdown([(t("page.auto"), "auto")], label=t("page.model"), elem_id=f"pick-{name}")
                        settings = advanced_settings()
                        buttons = run_buttons()
                    with right:
                        card = answer_card()
                    wire_stop(buttons, card)
                    _wire(buttons.run, kind, pick, settings, card)
            with gr.Tab("live"):
                live = live_audio()
                speak = gr.Button("speak")
                confirm = gr.Button("confirm")
                _wire_live(live, speak, confirm)
    return demo


def _wire(run: gr.Button, kind: Any, pick: Any, settings: AdvancedSettings, card: Any) -> None:
    def go(kind: str, _model: str, request: gr.Request, *values: Any) -> Iterator[Any]:
        SETTINGS[:] = [settings.sampling(*values)]
        yield from answer(lambda: script(kind), card, language_of(request), request)

    run.click(go, [kind, pick, *settings.inputs], card.outputs, concurrency_limit=None, show_progress="hidden")


def _wire_live(live: gr.HTML, speak: gr.Button, confirm: gr.Button) -> None:
    streams: list[SoundStream] = []

    def on_chunk(event: gr.EventData) -> dict[str, Any]:
        chunk = heard_chunk(event)
        HEARD.append((chunk.visit, chunk.seq, len(chunk.pcm), chunk.end))
        return heard(chunk)

    def talk() -> Iterator[dict[str, Any]]:
        stream = SoundStream()
        streams.append(stream)
        for chunk in tone(20.0, 0.05):
            if stream.flushed:
                return  # as a session that was interrupted
            yield live_value("thinking", stream.chunk(chunk.pcm, chunk.rate))

    many: dict[str, Any] = {"trigger_mode": "multiple", "concurrency_limit": None, "show_progress": "hidden"}
    live.chunk(on_chunk, None, live, **many)
    live.start(lambda: EVENTS.append("start"), None, None, **many)
    live.stop(lambda: EVENTS.append("stop"), None, None, **many)
    live.interrupt(lambda: EVENTS.append("interrupt"), None, None, **many)
    live.trouble(lambda: EVENTS.append("trouble"), None, None, **many)
    speak.click(talk, None, live, **many)
    confirm.click(lambda: live_value("listening", streams[-1].flush()), None, live, **many)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    demo = build()
    demo.queue(default_concurrency_limit=None)
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **launch_options())
    yield url
    demo.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser: Any, address: str) -> Iterator[Any]:
    contexts, watched = [], []

    def opened(locale: str = "en-US", query: str = "", microphone: bool = True) -> Any:
        context = browser.new_context(locale=locale, permissions=["microphone"] if microphone else [])
        contexts.append(context)
        page = context.new_page()
        watched.append(errors_of(page))
        page.goto(address + query)
        page.wait_for_selector(".parley-player")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not [error for errors in watched for error in errors]


def stats(page: Any, index: int = 0) -> dict[str, Any]:
    return page.evaluate("window.parleyPlayers.stats()")[index]


def run(page: Any, kind: str, tab: str = "one") -> None:
    page.fill(f"#kind-{tab} textarea, #kind-{tab} input", kind)
    page.locator(".parley-run button.primary:visible").click()


def wait(page: Any, condition: str) -> None:
    page.wait_for_function(condition, timeout=20_000)


def test_every_chunk_sounds_once_in_order(open_page: Any) -> None:
    page = open_page()
    run(page, "steady")
    page.wait_for_selector(".parley-figures")
    seen = stats(page)
    assert seen["gaps"] == 0
    assert seen["chunks"] == 20
    assert seen["samples"] == 2 * RATE
    assert seen["rate"] == RATE
    assert seen["serverToSound"] is not None
    text = page.locator(".parley-said").first.inner_text()
    assert text == "An answer <b>with</b> signs."
    assert page.locator(".parley-figures").first.get_attribute("data-seed") == "4711"


def test_a_burst_loses_nothing(open_page: Any) -> None:
    page = open_page()
    run(page, "burst")
    page.wait_for_selector(".parley-figures")
    seen = stats(page)
    assert (seen["gaps"], seen["samples"]) == (0, 3 * RATE)


def test_stop_silences_and_keeps_what_was_answered(open_page: Any) -> None:
    page = open_page()
    run(page, "endless")
    wait(page, "window.parleyPlayers.stats()[0].state === 'playing'")
    page.locator(".parley-run button.secondary:visible").click()
    wait(page, "window.parleyPlayers.stats()[0].state === 'idle'")
    page.wait_for_selector(".parley-status[data-phase=stopped]")
    assert page.locator(".parley-said").first.inner_text().startswith("An answer")
    page.wait_for_selector(".parley-recording")  # the part that was made


def test_two_players_never_sound_together(open_page: Any) -> None:
    page = open_page()
    run(page, "endless")
    wait(page, "window.parleyPlayers.stats()[0].state === 'playing'")
    page.get_by_role("tab", name="two").click()
    run(page, "steady", "two")
    wait(page, "window.parleyPlayers.stats()[1].state === 'playing'")
    assert stats(page, 0)["state"] == "idle"
    page.wait_for_selector(".parley-figures:visible")


def test_settings_count_once_they_are_wanted(open_page: Any) -> None:
    page = open_page()
    run(page, "refuse")
    page.wait_for_selector(".parley-error:visible")
    assert SETTINGS[0] == Sampling()
    page.locator(".parley-advanced button:visible").first.click()
    page.get_by_label(say("page.model_default", "en")).locator("visible=true").uncheck()
    page.get_by_label(say("page.temperature", "en")).locator("visible=true").first.fill("0.3")
    page.get_by_role("button", name=say("page.dice", "en")).locator("visible=true").click()
    page.wait_for_function("Number([...document.querySelectorAll('.parley-seed input')][0].value) >= 0")
    run(page, "steady")
    page.wait_for_selector(".parley-figures")
    assert (SETTINGS[0].temperature, SETTINGS[0].top_k) == (0.3, 40)
    assert SETTINGS[0].seed >= 0


def test_mp3_is_made_on_demand(open_page: Any) -> None:
    page = open_page()
    run(page, "steady")
    page.wait_for_selector(".parley-figures")
    with page.expect_download(timeout=20_000) as download:
        page.get_by_role("button", name="Save as MP3").click()
    assert download.value.suggested_filename.endswith(".mp3")
    assert Path(download.value.path()).read_bytes()[:2] in (b"ID", b"\xff\xfb", b"\xff\xf3")


@pytest.mark.parametrize(("locale", "language"), [("en-GB", "en"), ("zh-CN", "zh"), ("zh-HK", "zh"), ("fr-FR", "en")])
def test_page_and_handlers_speak_the_browsers_language(open_page: Any, locale: str, language: str) -> None:
    page = open_page(locale)
    assert page.locator(".parley-run button.primary:visible").inner_text() == say("page.run", language)
    assert page.locator("#pick-one input").input_value() == say("page.auto", language)
    assert page.locator(".parley-empty:visible").inner_text() == say("page.answer_empty", language)
    run(page, "refuse")
    page.wait_for_selector(".parley-error:visible")
    assert page.locator(".parley-error:visible").inner_text() == say("errors.audio_silent", language)


def test_the_switch_wins_over_the_browser(open_page: Any) -> None:
    page = open_page("en-US")
    page.get_by_role("button", name="简体中文").click()
    page.wait_for_selector("html[data-language=zh] .parley-player")
    assert page.locator(".parley-run button.primary:visible").inner_text() == say("page.run", "zh")
    page.goto(page.url.split("?")[0])  # remembered without the address
    page.wait_for_selector("html[data-language=zh] .parley-player")
    run(page, "refuse")
    page.wait_for_selector(".parley-error:visible")
    assert page.locator(".parley-error:visible").inner_text() == say("errors.audio_silent", "zh")


def open_live(page: Any) -> None:
    page.get_by_role("tab", name="live").click()
    page.locator(".parley-live .big").click()
    page.wait_for_selector(".parley-live[data-state=listening]")


MIC = "[...window.parleyPlayers.players].find(player => player.mic)"


def test_microphone_chunks_arrive_in_order(open_page: Any) -> None:
    HEARD.clear()
    page = open_page()
    open_live(page)
    wait(page, f"{MIC}.mic.stats.chunks >= 20")
    page.locator(".parley-live .big").click()
    page.wait_for_selector(".parley-live[data-state=idle]")
    sent = page.evaluate(f"{MIC}.mic.stats")
    deadline = time.monotonic() + 10
    while len(HEARD) < sent["chunks"] and time.monotonic() < deadline:
        page.wait_for_timeout(50)
    assert sorted(seq for _, seq, _, _ in HEARD) == list(range(1, sent["chunks"] + 1))
    assert {samples for _, _, samples, _ in HEARD} == {3840}  # 240 ms at 16 kHz
    assert sent["dropped"] == 0


def test_loud_speech_ducks_and_comes_back_without_a_confirmation(open_page: Any) -> None:
    page = open_page()
    open_live(page)
    page.get_by_role("button", name="speak").click()
    page.wait_for_selector(".parley-live[data-state=speaking]")
    page.evaluate(f"for (let k = 0; k < 4; k++) {MIC}.mic.onframe({{pcm: new Int16Array(320), rms: 0.3}})")
    assert page.evaluate(f"{MIC}.ducked") is True
    wait(page, f"!{MIC}.ducked")
    assert page.evaluate(f"{MIC}.state") == "playing"


def test_a_confirmed_barge_in_is_silent(open_page: Any) -> None:
    page = open_page()
    open_live(page)
    page.get_by_role("button", name="speak").click()
    page.wait_for_selector(".parley-live[data-state=speaking]")
    page.get_by_role("button", name="confirm").click()
    page.wait_for_selector(".parley-live[data-state=listening]")
    page.wait_for_timeout(300)  # chunks of the flushed stream still arrive
    assert page.evaluate(f"{MIC}.state") == "idle"


def test_escape_interrupts_and_push_to_talk_ends_a_turn(open_page: Any) -> None:
    HEARD.clear()
    EVENTS.clear()
    page = open_page()
    open_live(page)
    page.locator(".parley-live .modes [data-mode=push]").click()
    page.get_by_role("button", name="speak").click()
    page.wait_for_selector(".parley-live[data-state=speaking]")
    page.locator(".parley-live .state").click()
    page.keyboard.press("Escape")
    wait(page, f"{MIC}.state === 'idle'")
    page.locator(".parley-live .state").click()
    page.evaluate("document.activeElement.blur()")
    before = len(HEARD)
    page.keyboard.down("Space")
    page.wait_for_timeout(500)
    page.keyboard.up("Space")
    page.wait_for_timeout(1000)
    spoken = sorted(HEARD[before:], key=lambda chunk: chunk[1])
    assert [end for *_, end in spoken] == [False] * (len(spoken) - 1) + [True]
    assert sum(samples for _, _, samples, _ in spoken) >= 0.3 * 16_000
    assert "interrupt" in EVENTS


def test_a_refused_microphone_is_explained(open_page: Any) -> None:
    page = open_page(microphone=False)
    page.get_by_role("tab", name="live").click()
    page.locator(".parley-live .big").click()
    page.wait_for_selector(".parley-live .parley-error:visible")
    assert page.locator(".parley-live .parley-error").inner_text() == say("page.live_denied", "en")
    assert page.locator(".parley-live").get_attribute("data-state") == "idle"


def test_a_slow_server_does_not_grow_a_queue(open_page: Any) -> None:
    page = open_page()
    open_live(page)
    page.evaluate(f"window.sent = {MIC}.mic.stats.chunks")
    page.evaluate(
        f"for (let k = 0; k < 2000; k++) {MIC}.mic.onframe({{pcm: new Int16Array(320), rms: 0.001}})"
    )  # 40 s of speech in one moment: no confirmation can arrive in between
    seen = page.evaluate(f"{MIC}.mic.stats")
    assert seen["chunks"] - page.evaluate("window.sent") <= 26
    assert seen["dropped"] >= 2000 - 26 * 6 - 256


def test_a_refused_rate_is_resampled_without_clicks(open_page: Any) -> None:
    page = open_page()
    worst = page.evaluate(
        """() => {
          const resampler = new window.parley.Resampler(24000, 44100), out = [];
          for (let start = 0; start < 24000; start += 777) {
            const piece = new Float32Array(Math.min(777, 24000 - start));
            for (let k = 0; k < piece.length; k++) piece[k] = Math.sin(2 * Math.PI * 220 * (start + k) / 24000);
            out.push(...resampler.push(piece));
          }
          let worst = Math.abs(out.length - 44100) > 3 ? 99 : 0;
          out.forEach((value, k) => {
            worst = Math.max(worst, Math.abs(value - Math.sin(2 * Math.PI * 220 * k / 44100)));
          });
          return worst;
        }"""
    )
    assert worst < 0.002
