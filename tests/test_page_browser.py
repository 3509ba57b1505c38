"""The whole page in Chromium: every tab, both languages and themes, desk and phone; examples, keys, ends of visits."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
from gradio_client import Client

from models.text import say
from tests.conftest import CHROMIUM, CHROMIUM_FLAGS, App, errors_of

sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = [pytest.mark.browser, pytest.mark.compact]

PATIENCE = 240_000  # ms: the machine may be busy and the models not yet loaded
FLAGS = [
    *CHROMIUM_FLAGS,
    "--autoplay-policy=no-user-gesture-required",
]
TABS = ("mimicry", "roleplay", "assistant", "understanding", "voice_creation", "cloning", "live_chat", "models")
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
SOUNDING = "window.parleyPlayers.stats().some(player => player.state === 'playing')"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def visit(app: App, browser: Any) -> Iterator[Callable[..., Any]]:
    """Open the page as a new visitor; in the end, nothing may have been written to the console as an error."""
    contexts, watched = [], []

    def opened(url: str = app.url, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": DESK, "locale": "en-GB", **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        errors = errors_of(page)
        page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
        watched.append(errors)
        page.goto(url)
        page.locator(".parley-head").wait_for()
        page.locator(".parley-run button.primary >> visible=true").first.wait_for()
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not [error for errors in watched for error in errors]


def show(page: Any, tab: str, language: str = "en") -> Any:
    """Open a tab, which on a phone may stand in the menu of those that do not fit; what is visible then."""
    name = say(f"{tab}.title", language)
    button = page.get_by_role("tab", name=name, exact=True).locator("visible=true")
    if not button.count():
        page.locator(".overflow-menu > button").click()
        button = page.locator(".overflow-dropdown button", has_text=name)
    button.first.click()
    panel = page.locator("[role=tabpanel] >> visible=true").first
    panel.wait_for()
    return panel


def until(condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + PATIENCE / 1000
    while not (value := condition()):
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.05)
    return value


def idle(app: App) -> None:
    """Wait until the model answers nobody."""
    client = Client(app.url, verbose=False)
    until(lambda: all(model["state"] not in ("answering", "loading") for model in client.predict(api_name="/models")))
    client.close()


# --- every tab --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_tab_opens_and_fits(visit, language, theme, size):
    page = visit(viewport=size, color_scheme=theme, locale={"en": "en-GB", "zh": "zh-CN"}[language])
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    light = sum(int(part) for part in re.findall(r"\d+", ground)[:3]) / 3
    assert light > 200 if theme == "light" else light < 60
    for tab in TABS:
        panel = show(page, tab, language)
        words = panel.inner_text()
        assert bool(re.search("[\u4e00-\u9fff]{4}", words)) or language == "en"
        assert not re.search(r"\b(page|status|mimicry|cloning|models)\.[a-z_]+\b", words), "a key instead of a sentence"
        wide = page.evaluate("[document.scrollingElement.scrollWidth, innerWidth]")
        assert wide[0] <= wide[1], f"{tab} is wider than the screen"


def test_the_switch_changes_the_language_for_good(visit, app):
    page = visit(locale="en-GB")
    page.get_by_role("button", name="简体中文").click()
    page.locator("html[data-language=zh] .parley-head").wait_for()
    page.goto(app.url)
    page.locator("html[data-language=zh] .parley-head").wait_for()
    panel = show(page, "mimicry", "zh")
    panel.get_by_role("button", name=say("mimicry.run", "zh")).click()
    panel.get_by_role("alert").wait_for()
    assert panel.get_by_role("alert").inner_text() == say("errors.no_audio", "zh")
    page.get_by_role("button", name="English").click()
    page.locator("html[data-language=en] .parley-head").wait_for()


# --- one click --------------------------------------------------------------------------------------------------------

FIRST = ".parley-examples button"
EXAMPLES = {  # tab → (its first example, where the answer's text is)
    "mimicry": (FIRST, ".parley-said"),
    "voice_creation": (FIRST, ".parley-said"),
    "cloning": (FIRST, ".parley-said"),
    "assistant": (".example", ".parley-chat .bot.message"),
}


@pytest.mark.parametrize("tab", EXAMPLES)
def test_an_example_runs_to_its_end_and_is_heard(visit, tab):
    page = visit()
    panel = show(page, tab)
    example, text = EXAMPLES[tab]
    if tab == "assistant":
        few_tokens(panel)
    panel.locator(example).first.click()
    page.wait_for_function(SOUNDING, timeout=PATIENCE)
    panel.locator(".parley-status[data-phase=finished]").wait_for()
    assert len(panel.locator(text).last.inner_text().split()) >= 1
    figures = panel.locator(".parley-figures").first.inner_text()
    assert figures.startswith("Compact · cpu · ")
    assert "RTF" in figures
    played = next(player for player in page.evaluate("window.parleyPlayers.stats()") if player["chunks"])
    assert played["gaps"] == 0
    with page.expect_download() as download:
        panel.locator(".parley-recording a[download], .parley-recording button[aria-label*=ownload]").last.click()
    seconds = soundfile.info(download.value.path()).duration
    assert seconds == pytest.approx(played["samples"] / played["rate"], abs=0.1)
    if tab == "voice_creation":
        with page.expect_download() as download:
            panel.get_by_role("button", name=say("page.mp3")).click()
        assert soundfile.info(download.value.path()).duration == pytest.approx(seconds, abs=0.2)


def test_an_example_of_understanding_gives_its_text(visit):
    page = visit()
    panel = show(page, "understanding")
    panel.locator(FIRST).first.click()
    panel.locator(".parley-status[data-phase=finished]").wait_for()
    assert "lighthouse" in panel.locator(".parley-said").inner_text()
    assert panel.locator(".parley-figures").first.inner_text().startswith("Compact · cpu · ")


def few_tokens(panel: Any) -> None:
    """A short answer will do."""
    panel.locator(".parley-advanced button").first.click()
    panel.get_by_label(say("page.model_default")).uncheck()
    panel.get_by_label(say("page.max_length")).locator("visible=true").first.fill("32")
    panel.get_by_label(say("page.max_length")).locator("visible=true").first.press("Tab")


# --- keys, Stop -------------------------------------------------------------------------------------------------------

LONG = 'A man says slowly: "' + "The lighthouse keeper counted the ships each evening. " * 40 + '"'


def focus_by_tab(page: Any, wanted: Any) -> None:
    """Press Tab until `wanted` has the focus."""
    for _ in range(40):
        page.keyboard.press("Tab")
        if wanted.evaluate("element => element === document.activeElement"):
            return
    raise AssertionError("Tab does not reach it")


def test_the_keyboard_is_enough(visit, app):
    page = visit()
    panel = show(page, "voice_creation")
    panel.locator("#parley-creation-instruction textarea").click()
    page.keyboard.insert_text(LONG)
    run = panel.locator(".parley-run button.primary")
    for key in ("Enter", "Space"):
        focus_by_tab(page, run)
        assert run.evaluate(
            "e => getComputedStyle(e).outlineStyle !== 'none' || getComputedStyle(e).boxShadow !== 'none'"
        )
        page.keyboard.press(key)
        page.wait_for_function(SOUNDING, timeout=PATIENCE)
        page.keyboard.press("Escape")
        panel.locator(".parley-status[data-phase=stopped]").wait_for()
        assert not page.evaluate(SOUNDING)
        panel.locator("#parley-creation-instruction textarea").focus()
    idle(app)


def test_enter_sends_what_is_typed_and_stop_leaves_the_next_turn_free(visit, app):
    page = visit()
    panel = show(page, "assistant")
    box = panel.locator("#parley-assist-text textarea, #parley-assist-text input").first
    box.fill("Tell me a very long story about a lighthouse.")
    box.press("Enter")
    panel.locator(".parley-chat .bot.message").wait_for()
    panel.locator(".parley-run button.secondary").click()
    panel.locator(".parley-status[data-phase=stopped]").wait_for()
    idle(app)
    few_tokens(panel)
    box.fill("What is two and two?")
    box.press("Enter")
    panel.locator(".parley-status[data-phase=finished]").wait_for()
    assert panel.locator(".parley-chat .user.message").count() == 2  # what was stopped is kept


def test_an_error_stands_where_the_answer_would(visit):
    page = visit()
    panel = show(page, "voice_creation")
    panel.locator("#parley-creation-instruction textarea").fill("a deep voice")
    panel.locator(".parley-run button.primary").click()
    error = panel.locator(".parley-card").get_by_role("alert")
    error.wait_for()
    assert error.inner_text() == say("errors.no_sentence")
    assert page.locator(".toast-wrap").count() == 0 or not page.locator(".toast-wrap").inner_text()
    assert panel.locator("#parley-creation-instruction textarea").input_value() == "a deep voice"  # kept


# --- a visit ends -----------------------------------------------------------------------------------------------------


def files_of(app: App) -> set[Path]:
    return {path for path in app.uploads.rglob("*") if path.is_file()}


def test_nothing_of_a_visit_outlives_it(visit, app, tmp_path):
    before = files_of(app)
    page = visit()
    panel = show(page, "mimicry")
    clip = tmp_path / "mine.wav"
    samples, rate = soundfile.read(Path(__file__).parent / "fixtures" / "kokoro_en.flac")
    soundfile.write(clip, 0.9 * samples, rate)
    panel.locator("#parley-mimicry-speech .source-selection button").first.click()  # from the microphone to a file
    panel.locator("#parley-mimicry-speech input[type=file]").set_input_files(clip)
    until(lambda: [path for path in files_of(app) - before if path.name == "mine.wav"])
    panel.locator("#parley-mimicry-speech .waveform-container, #parley-mimicry-speech audio").first.wait_for(
        state="attached"
    )
    panel.locator(".parley-run button.primary").click()
    panel.locator(".parley-similarity").wait_for()
    panel.get_by_role("button", name=say("page.mp3")).click()
    until(lambda: [path for path in files_of(app) - before if path.suffix == ".mp3"])
    page.close()
    until(lambda: not files_of(app) - before)


def test_a_closed_page_cancels_its_answer(visit, app):
    page = visit()
    panel = show(page, "voice_creation")
    panel.locator("#parley-creation-instruction textarea").fill(LONG)
    panel.locator(".parley-run button.primary").click()
    page.wait_for_function(SOUNDING, timeout=PATIENCE)
    page.close()
    idle(app)


# --- no weights, no network -------------------------------------------------------------------------------------------


def test_offline_without_weights_the_page_says_what_is_missing(visit, tmp_path):
    offline = App(tmp_path, "--offline", PARLEY_CACHE=str(tmp_path / "cache"))
    try:
        page = visit(offline.url)
        panel = show(page, "voice_creation")
        panel.locator(FIRST).first.click()
        panel.get_by_role("alert").wait_for()
        assert "Parley runs offline" in panel.get_by_role("alert").inner_text()
        models = show(page, "models").inner_text()
        assert say("models.state_not_installed") in models
        page.close()
    finally:
        offline.stop()
