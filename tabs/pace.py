"""When an answer's sound may start, so that it then plays to its end without a pause.

A machine that makes speech faster than it sounds starts at once. A slower one waits until what is made lasts while the
rest is made: `made ≥ (1 - rate) × length`, with the rate in seconds of sound a second of work, and the whole length
estimated from the text once it has stopped growing; or until everything is there. Knows nothing of pages or players.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, MutableMapping

import numpy as np

from models.capabilities import AudioChunk, Event, Status, TextDelta

SAFE = 0.9  # of the measured rate is counted on: other work may come
LONGER = 1.2  # times the estimate: some speak slowly
MEASURED_S = 0.5  # s of sound from which on a rate is the answer's own; before, the model's usual one counts
LETTER_S, HANZI_S = 0.065, 0.22  # s that a character sounds: 15 letters or 4.5 Chinese characters a second
HANZI = re.compile("[\u3400-\u9fff]")

_usual: dict[str, float] = {}  # what is made → seconds of sound a second, as last measured here


class Pace:
    """Holds one answer's sound back: give it every event, play what it lets go. `usual` keeps rates between answers."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, usual: MutableMapping[str, float] | None = None):
        self._clock, self._usual = clock, _usual if usual is None else usual
        self._model = ""
        self._held: list[AudioChunk] = []
        self._started = False
        self._begun: float | None = None  # when the model began to speak
        self._first: float | None = None  # when the first sound was there
        self._after_first = self.made = self.text_s = 0.0  # s
        self._growing = False
        self.rate: float | None = None

    @property
    def slow(self) -> Status | None:
        """What to tell a person while sound is held back because it is made too slowly."""
        if self._started or not self._held or self.rate is None:
            return None
        return Status("too_slow", {"rate": f"{self.rate:.1f}"})

    def see(self, event: Event | None) -> AudioChunk | None:
        """The sound that may be played now."""
        if isinstance(event, TextDelta):
            hanzi = len(HANZI.findall(event.text))
            self.text_s += HANZI_S * hanzi + LETTER_S * (len(event.text) - hanzi)
            self._growing = True
        elif isinstance(event, AudioChunk) and len(event.pcm):
            self._add(event)
            self._growing = False
            return self._release(self._may_start())
        elif isinstance(event, Status) and event.phase == "starting":
            self._model = str(event.facts.get("what", ""))
        elif isinstance(event, Status) and event.phase == "speaking":
            self._begun = self._begun or self._clock()
        elif isinstance(event, Status) and self.made:  # it goes on to something else: all the sound is there
            return self.end()
        return None

    def end(self) -> AudioChunk | None:
        """Nothing more comes: what was held back."""
        return self._release(True)

    def _add(self, chunk: AudioChunk) -> None:
        now, seconds = self._clock(), len(chunk.pcm) / chunk.rate
        self._held.append(chunk)
        self.made += seconds
        if self._first is None:
            self._first = now
            self.rate = self._usual.get(self._model)
            if self.rate is None and self._begun is not None:
                self.rate = seconds / max(now - self._begun, 1e-3)  # at least: some of that time was not for sound
            return
        self._after_first += seconds
        if self._after_first >= MEASURED_S or self.rate is None:
            self.rate = self._after_first / max(now - self._first, 1e-3)
        if self._after_first >= MEASURED_S:
            self._usual[self._model] = self.rate

    def _may_start(self) -> bool:
        if self.rate is None:  # nothing is known of this model yet: the second chunk will tell
            return False
        missing = 1 - SAFE * self.rate
        if missing <= 0:
            return True
        if self._growing or not self.text_s:  # nobody knows how long it will be
            return False
        return self.made >= missing * max(self.made, LONGER * self.text_s)

    def _release(self, start: bool) -> AudioChunk | None:
        self._started = self._started or start
        if not self._started or not self._held:
            return None
        held, self._held = self._held, []
        return AudioChunk(np.concatenate([chunk.pcm for chunk in held]), held[0].rate)
