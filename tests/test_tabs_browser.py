"""Mimicry, Understanding, Voice creation and Cloning in Chromium, with the real compact models, a click an answer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from models.compact.describe import parse
from models.text import say
from tests.conftest import CHROMIUM, CHROMIUM_FLAGS, App, errors_of

sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = [pytest.mark.browser, pytest.mark.compact]

PATIENCE = 240_000  # ms: the machine may be busy and the models not yet loaded


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)


@pytest.fixture
def page(app: App, browser: Any) -> Iterator[Any]:
    opened = browser.new_page(viewport={"width": 1280, "height": 1000})
    opened.set_default_timeout(PATIENCE)
    errors = errors_of(opened)
    opened.goto(f"{app.url}?language=en")
    yield opened
    opened.close()
    assert not errors


def show(page: Any, tab: str) -> Any:
    """Choose a tab; what is visible then."""
    page.get_by_role("tab", name=tab, exact=True).click()
    return page.locator(f"#parley-{tab.lower().replace(' ', '-')}")


def press(place: Any, name: str) -> None:
    place.get_by_role("button", name=name, exact=True).click()


def finished(place: Any) -> None:
    place.locator('.parley-status[data-phase="finished"]').wait_for()


def test_mimicry_repeats_an_example_and_compares(page: Any):
    tab = show(page, "Mimicry")
    press(tab, "A day at the coast (English)")
    tab.locator(".parley-similarity").wait_for()
    finished(tab)
    assert "lighthouse" in tab.locator(".parley-said").inner_text()
    assert float(tab.get_by_role("meter").get_attribute("aria-valuenow")) > 0.6  # the example is a voice of the library
    assert "not a clone" in tab.locator(".parley-similarity").inner_text()
    assert tab.locator(".parley-pair figure").count() == 2
    assert tab.locator(".parley-pitch path").count() == 2
    assert all(box["width"] > 100 for box in (shape.bounding_box() for shape in tab.locator(".mel i").all()))
    assert "seed" in tab.locator(".parley-figures").inner_text()


def test_understanding_asks_for_a_question_only_where_it_needs_one(page: Any):
    tab = show(page, "Understanding")
    question = tab.locator("#parley-understanding-question")
    assert not question.is_visible()
    tab.get_by_text(say("understanding.ask"), exact=True).click()
    question.wait_for()
    press(tab, say("understanding.run"))
    error = tab.get_by_role("alert")
    error.wait_for()
    assert error.inner_text() == say("errors.no_audio")
    tab.get_by_text(say("understanding.speaker"), exact=True).click()
    question.wait_for(state="hidden")


def test_understanding_draws_the_sounds_of_an_example(page: Any):
    tab = show(page, "Understanding")
    press(tab, "Sound in one English word · A harbour: waves, a siren, a bell")
    tab.locator(".parley-tags .area").first.wait_for()
    names = " ".join(tab.locator(".parley-tags dt").all_inner_texts())
    assert "Siren" in names
    assert tab.locator(".parley-said").inner_text() in names


def test_voice_creation_makes_takes_that_differ(page: Any):
    tab = show(page, "Voice creation")
    tab.locator("#parley-creation-takes").get_by_text("2", exact=True).click()
    press(tab, "Surprised man, low voice")
    takes = tab.locator(".parley-takes .parley-recording")
    takes.nth(1).wait_for()
    finished(tab)
    seeds = [re.findall(r"seed (\d+)", text) for text in takes.all_inner_texts()]
    assert len(seeds) == 2 and seeds[0] != seeds[1]
    struck = tab.locator('.parley-chips li[data-honoured="false"]').all_inner_texts()
    assert any("surprised" in text for text in struck)


def test_voice_creation_writes_what_is_put_together(page: Any):
    tab = show(page, "Voice creation")
    tab.get_by_text(say("voice_creation.builder")).click()
    tab.locator("#parley-creation-sentence textarea").fill("Mind the step.")
    tab.get_by_label(say("voice_creation.gender")).click()
    page.get_by_role("option", name="female", exact=True).click()
    page.wait_for_function(
        "() => /female.*Mind the step/.test(document.querySelector('#parley-creation-instruction textarea').value)"
    )
    described = parse(tab.locator("#parley-creation-instruction textarea").input_value())
    assert (described.gender, described.sentence) == ("female", "Mind the step.")


def test_cloning_reads_converts_and_keeps_a_voice(page: Any):
    tab = show(page, "Cloning")
    press(tab, say("cloning.run"))
    tab.get_by_role("alert").wait_for()
    assert tab.get_by_role("alert").inner_text() == say("errors.no_reference")
    press(tab, say("cloning.example_en"))
    tab.locator(".parley-similarity").wait_for()
    finished(tab)
    assert tab.locator(".parley-said").inner_text() == say("cloning.sample_text")
    tab.get_by_placeholder(say("my_voices.name")).fill("Keeper")
    press(tab, say("my_voices.keep"))
    kept = tab.get_by_label(say("my_voices.title"))
    kept.wait_for()
    assert kept.input_value() == "Keeper"


def test_stop_ends_all_takes(page: Any):
    tab = show(page, "Voice creation")
    tab.locator("#parley-creation-takes").get_by_text("3", exact=True).click()
    long = " ".join(["The lighthouse keeper counted the ships each evening."] * 30)
    tab.locator("#parley-creation-instruction textarea").fill(f'A man says slowly: "{long}"')
    press(tab, say("voice_creation.run"))
    tab.locator('.parley-status[data-phase="speaking"]').wait_for()
    press(tab, "Stop")
    tab.locator('.parley-status[data-phase="stopped"]').wait_for()
    page.wait_for_timeout(1500)  # in which the next take would have begun
    assert tab.locator('.parley-status[data-phase="stopped"]').is_visible()
    assert tab.locator(".parley-takes .parley-recording").count() <= 1
