"""The answer card's driver: pure event streams in, component updates out."""

from __future__ import annotations

import base64
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from models.capabilities import AudioChunk, Heard, Stats, Status, TextDelta
from models.errors import UserError
from models.text import say
from tabs import answer as driver
from tabs import pace
from tabs.answer import Answer, answer, figures_html, status_sentence, stop, text_html
from tabs.player import SoundStream

RATE = 24_000
NAMES = ("status", "error", "text", "player", "audio", "mp3", "figures")


class Audio:
    """Stands for the gr.Audio of a card: a key of updates, and the folder of its files."""

    def __init__(self, folder: str):
        self.GRADIO_CACHE = folder


@pytest.fixture
def card(tmp_path: Path) -> Any:
    parts: dict[str, Any] = {name: name for name in NAMES}
    parts["audio"] = Audio(str(tmp_path))
    return SimpleNamespace(**parts)


def chunk(start: int, n: int = 2400) -> AudioChunk:
    return AudioChunk(np.arange(start, start + n, dtype=np.int16), RATE)


def run(card: Any, events: Any, language: str = "en", made: Answer | None = None) -> list[dict[Any, Any]]:
    return list(answer(lambda: iter(events), card, language, None, made))


def last(updates: list[dict[Any, Any]], component: Any) -> Any:
    return [update[component] for update in updates if component in update][-1]


def played(updates: list[dict[Any, Any]]) -> list[int]:
    """The numbers of the chunks, in the order in which a player that drops repeats takes them."""
    seen: list[int] = []
    for update in updates:
        for seq, _ in update.get("player", {}).get("chunks", []):
            if not seen or seq > seen[-1]:
                seen.append(seq)
    return seen


def test_text_sound_and_figures(card: Any) -> None:
    made = Answer()
    stats = Stats({"model": "Compact", "device": "cpu", "seed": 7, "time_to_first_audio_s": 1.234, "rtf": 0.5})
    said = [TextDelta("good "), Status("speaking"), chunk(0), TextDelta("day"), chunk(2400)]
    updates = run(card, [Status("thinking"), Heard("hello?"), *said, stats], made=made)
    assert made.text == "good day"
    assert made.heard == "hello?"
    assert "good day" in last(updates, "text")
    assert played(updates) == [1, 2]
    assert last(updates, "player")["end"] is True
    assert last(updates, "error") == ""
    for part in ("Compact · cpu · seed 7", "first sound 1.2 s", "RTF 0.50", 'data-seed="7"'):
        assert part in last(updates, "figures")
    assert made.path is not None
    pcm, rate = soundfile.read(made.path, dtype="int16")
    assert rate == RATE
    assert np.array_equal(pcm, np.arange(4800))
    assert last(updates, card.audio)["value"] == made.path


def test_sound_before_text_and_no_sound_at_all(card: Any) -> None:
    assert played(run(card, [chunk(0), TextDelta("late")])) == [1]
    updates = run(card, [TextDelta("only words")])
    assert "only words" in last(updates, "text")
    assert last(updates, card.audio)["value"] is None
    assert last(updates, "player")["chunks"] == []


def test_every_chunk_is_sent_at_once(card: Any) -> None:
    """A chunk must not wait for the next event: its update comes before the stream is asked again."""
    asked = []

    def events() -> Any:
        yield Status("speaking")
        for k in range(3):
            asked.append(k)
            yield chunk(k)

    sent = 0
    for update in answer(events, card, "en"):
        if update.get("player", {}).get("chunks") and "end" not in update["player"]:
            sent += 1
            assert len(asked) == sent


def test_sound_made_too_slowly_waits_and_the_page_says_so(card: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "_usual", {"": 0.6})
    updates = run(card, [Status("speaking"), TextDelta("a long answer " * 20), chunk(0), chunk(2400)])
    (whole,) = (
        update for update in updates if update.get("player", {}).get("chunks") and "end" not in update["player"]
    )
    assert len(base64.b64decode(whole["player"]["chunks"][0][1])) == 2 * 4800, "all of it, once all of it is there"
    told = [k for k, update in enumerate(updates) if "0.6 × real time" in update.get("status", "")]
    assert told and told[0] < updates.index(whole)
    assert "Done" in last(updates, "status")


def test_text_updates_are_throttled_but_the_last_word_is_shown(card: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(k / 1000 for k in range(1, 10_000))  # every look at the clock is one ms later
    monkeypatch.setattr(driver.time, "monotonic", lambda: 100 + next(clock))
    updates = run(card, [TextDelta(f"{k} ") for k in range(300)])
    shown = [update for update in updates if "text" in update]
    assert len(shown) < 20
    assert "299" in shown[-1]["text"]


def test_heartbeat_shows_text_that_was_held_back(card: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(driver.time, "monotonic", lambda: now[0])
    stream = answer(lambda: iter([TextDelta("a"), TextDelta("b"), None, TextDelta("c")]), card, "en")
    next(stream)
    assert "a" in next(stream)["text"]
    now[0] += 0.01
    # "b" comes too soon; the heartbeat is late enough
    ticks = iter([100.01, 101.0, 101.0, 102.0])
    monkeypatch.setattr(driver.time, "monotonic", lambda: next(ticks, 103.0))
    assert ">ab<" in next(stream)["text"]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_user_error_keeps_what_was_answered(card: Any, language: str) -> None:
    def events() -> Any:
        yield TextDelta("half an ans")
        yield chunk(0)
        raise UserError("audio_silent")

    made = Answer()
    updates = list(answer(events, card, language, None, made))
    assert say("errors.audio_silent", language) in last(updates, "error")
    assert "half an ans" in last(updates, "text")
    assert made.path is not None
    assert last(updates, "status") == ""


def test_an_error_before_the_stream_is_open_stands_in_the_card(card: Any) -> None:
    def refuse() -> Any:
        raise UserError("audio_zero_bytes")

    assert "0 bytes" in last(list(answer(refuse, card, "en")), "error")


def test_an_unknown_error_is_calm_and_logged(card: Any, caplog: pytest.LogCaptureFixture) -> None:
    def events() -> Any:
        yield TextDelta("so far")
        raise ZeroDivisionError("secret detail")

    updates = list(answer(events, card, "en"))
    assert say("status.unknown_error", "en") in last(updates, "error")
    assert "secret detail" not in last(updates, "error")
    assert "secret detail" in caplog.text
    assert "so far" in last(updates, "text")


def test_closing_the_answer_closes_the_stream(card: Any) -> None:
    closed = []

    def events() -> Any:
        try:
            while True:
                yield chunk(0)
        finally:
            closed.append(True)

    stream = answer(events, card, "en")
    next(stream)
    next(stream)
    stream.close()
    assert closed == [True]
    assert not driver._running


def test_stop_ends_the_stream_and_keeps_what_was_answered(card: Any) -> None:
    closed = []

    def events() -> Any:
        try:
            yield TextDelta("kept")
            yield chunk(0)
            while True:
                yield None
        finally:
            closed.append(True)

    visit, other = SimpleNamespace(session_hash="a"), SimpleNamespace(session_hash="b")
    made = Answer()
    stream = answer(events, card, "en", visit, made)  # type: ignore[arg-type]
    for _ in range(3):
        next(stream)
    stop(card, other)  # type: ignore[arg-type]  # another visitor's Stop is not ours
    assert not made.stopped
    stop(card, visit)  # type: ignore[arg-type]
    updates = list(stream)
    assert made.stopped
    assert closed == [True]
    assert made.path is not None
    assert say("status.stopped", "en") in last(updates, "status")
    assert last(updates, "player")["flush"]
    assert not driver._running


def test_markup_of_a_model_stays_text() -> None:
    html = text_html("<img src=x onerror=alert(1)>", "<script>alert(1)</script>")
    assert "<img" not in html
    assert "<script" not in html


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize(
    ("phase", "facts"),
    [
        ("starting", {"what": "Compact"}),
        ("connecting", {"what": "Kokoro"}),
        ("queued", {"place": 3}),
        ("downloading", {"what": "Kokoro", "done": 12_300_000, "total": 92_000_000, "seconds_left": 20.4}),
        ("downloading", {"what": "Kokoro", "done": 12_300_000, "total": 92_000_000, "seconds_left": None}),
        ("waiting_for_memory", {"what": "Compact"}),
        ("loading", {"what": "Compact"}),
        ("listening", {}),
        ("thinking", {}),
        ("speaking", {}),
    ],
)
def test_every_wait_has_a_sentence(phase: str, facts: dict[str, Any], language: str) -> None:
    sentence = status_sentence(Status(phase, facts), language)
    assert "{" not in sentence
    if phase == "downloading":
        assert "12" in sentence
        assert "92" in sentence
        assert ("20" in sentence) == (facts["seconds_left"] is not None)
    if phase == "queued":
        assert "3" in sentence


def test_figures_of_nothing_are_nothing() -> None:
    assert figures_html({}, "en") == ""


def test_a_flushed_stream_stays_silent() -> None:
    """A chunk that was under way when the stream was flushed repeats the flush: it must not replace it in the page."""
    stream = SoundStream()
    stream.chunk(np.zeros(10, np.int16), RATE)
    flushed = stream.flush()["flush"]
    assert stream.chunk(np.zeros(10, np.int16), RATE)["flush"] == flushed == stream.id
