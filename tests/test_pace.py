"""When sound may start: at once where it is made fast enough, else so late that it never stops in between."""

from __future__ import annotations

import numpy as np
import pytest

from models.capabilities import AudioChunk, Stats, Status, TextDelta
from tabs.pace import LETTER_S, Pace

RATE = 1000
FRAME = 0.085  # s, of Mini-Omni
ANSWER = "It takes about five hours to walk up there, so take water and a hat with you. "


def sound(seconds: float) -> AudioChunk:
    return AudioChunk(np.ones(round(seconds * RATE), np.int16), RATE)


class Machine:
    """A clock that only the making of things moves, and what a listener then hears."""

    def __init__(self, usual: dict[str, float] | None = None):
        self.now, self.heard = 100.0, []
        self.pace = Pace(lambda: self.now, {} if usual is None else usual)
        self.see(Status("starting", {"what": "Mini-Omni"}))

    def see(self, event, work: float = 0.0) -> AudioChunk | None:
        self.now += work
        return self._hear(self.pace.see(event))

    def _hear(self, ready: AudioChunk | None) -> AudioChunk | None:
        if ready is not None:
            self.heard.append((self.now, len(ready.pcm) / RATE))
        return ready

    def end(self) -> float:
        """Seconds for which a listener heard nothing between first and last sound."""
        self._hear(self.pace.end())
        silent, ends = 0.0, self.heard[0][0]
        for at, seconds in self.heard:
            silent += max(0.0, at - ends)
            ends = max(at, ends) + seconds
        return silent

    def speak(self, rtf: float, text: str, letters: int = 4) -> None:
        """As Mini-Omni does: `letters` of text a frame until it ends, then sound alone; frames in pairs, at an RTF."""
        seconds = LETTER_S * len(text)
        for k in range(round(seconds / FRAME / 2)):
            delta = text[2 * k * letters : 2 * (k + 1) * letters]
            if delta:
                self.see(TextDelta(delta))
            self.see(sound(2 * FRAME), 2 * FRAME * rtf)


@pytest.mark.parametrize("rtf", [0.3, 0.75, 0.85])
def test_a_fast_machine_starts_at_once_when_it_is_known(rtf):
    machine = Machine({"Mini-Omni": 1 / rtf})
    machine.see(TextDelta("It takes "))
    assert machine.see(sound(4 * FRAME), 1.0) is not None
    machine.speak(rtf, ANSWER)
    assert machine.end() < 0.001


def test_a_fast_machine_that_is_not_known_starts_with_the_second_chunk():
    machine = Machine()
    assert machine.see(sound(4 * FRAME), 1.0) is None
    together = machine.see(sound(2 * FRAME), 2 * FRAME * 0.7)
    assert len(together.pcm) == round(6 * FRAME * RATE)
    assert machine.pace.slow is None


def test_a_first_clause_tells_how_fast_a_machine_is():
    machine = Machine()
    machine.see(TextDelta("It takes about five hours"))
    machine.see(Status("speaking"))
    assert machine.see(sound(1.5), 0.9) is not None, "made in less time than it sounds"
    slow = Machine()
    slow.see(Status("speaking"))
    assert slow.see(sound(1.5), 1.6) is None
    assert slow.pace.slow == Status("too_slow", {"rate": "0.9"})


@pytest.mark.parametrize("rtf", [0.95, 1.0, 1.3, 1.7, 2.5, 5.0])
@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("known", [False, True])
def test_a_slow_machine_never_stops_in_between(rtf, repeats, known):
    machine = Machine({"Mini-Omni": 1 / rtf} if known else None)
    start = machine.now
    machine.speak(rtf, ANSWER * repeats)
    ended = machine.now
    assert machine.end() < 0.001
    assert machine.heard[0][0] < ended or rtf > 4, "and does not wait until all is there where it need not"
    needed = (rtf - 1) * LETTER_S * len(ANSWER) * repeats  # the least that one must wait from the start of the work
    assert machine.heard[0][0] - start > needed


def test_an_underestimated_text_waits_while_it_grows():
    machine = Machine({"Mini-Omni": 0.7})
    for _ in range(40):
        machine.see(TextDelta("a few words "))
        assert machine.see(sound(2 * FRAME), 2 * FRAME / 0.7) is None
    assert machine.pace.slow == Status("too_slow", {"rate": "0.7"})


def test_everything_is_let_go_when_no_more_sound_comes():
    for last in (None, Status("thinking")):
        machine = Machine({"Mini-Omni": 0.1})
        machine.see(TextDelta("word " * 50))
        assert machine.see(sound(0.5), 5.0) is None and machine.see(sound(0.5), 5.0) is None
        ready = machine.pace.end() if last is None else machine.see(last)
        assert len(ready.pcm) == RATE
        assert machine.pace.slow is None and machine.pace.end() is None


def test_chinese_sounds_longer_a_character():
    english, chinese = Machine(), Machine()
    english.see(TextDelta("go"))
    chinese.see(TextDelta("你好"))
    assert chinese.pace.text_s > 3 * english.pace.text_s


def test_what_was_measured_is_used_for_the_next_answer():
    usual: dict[str, float] = {}
    machine = Machine(usual)
    machine.speak(0.5, ANSWER)
    assert usual["Mini-Omni"] == pytest.approx(2, rel=0.1)
    assert Machine(usual).see(sound(FRAME), 9.0) is not None
    other = Machine(usual)
    other.see(Status("starting", {"what": "Compact"}))
    assert other.see(sound(FRAME), 9.0) is None, "another model's rate is its own"


def test_what_is_no_sound_lets_nothing_go():
    machine = Machine({"Mini-Omni": 2.0})
    for event in (None, Status("speaking"), Stats({}), TextDelta("a"), AudioChunk(np.zeros(0, np.int16), RATE)):
        assert machine.see(event) is None
    assert machine.pace.end() is None
