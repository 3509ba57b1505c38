"""Times one answer: first sound, sound in all, and the real-time factor (answering time over sounding time)."""

from __future__ import annotations

import time

from models.capabilities import AudioChunk, Event, Status


class Meter:
    """Fed with every event of an answer, as it leaves."""

    WAITS = ("connecting", "downloading", "waiting_for_memory", "loading", "queued")

    def __init__(self) -> None:
        self._start = self._last = time.monotonic()
        self._waiting_since: float | None = None
        self._waited = self._audio = 0.0
        self._first: float | None = None

    def see(self, event: Event | None) -> None:
        now = time.monotonic()
        if event is None:
            return
        if self._waiting_since is not None:
            self._waited, self._waiting_since = self._waited + now - self._waiting_since, None
        if isinstance(event, Status) and event.phase in self.WAITS:
            self._waiting_since = now
        elif isinstance(event, AudioChunk):
            self._first = self._first or now
            self._last, self._audio = now, self._audio + len(event.pcm) / event.rate

    def values(self) -> dict[str, float | None]:
        answering = self._last - self._start - self._waited
        return {
            "time_to_first_audio_s": round(self._first - self._start, 3) if self._first else None,
            "waited_s": round(self._waited, 3),  # of it for download, memory, load and a place in the queue
            "audio_s": round(self._audio, 3),
            "rtf": round(answering / self._audio, 3) if self._audio else None,
            "total_s": round(time.monotonic() - self._start, 3),
        }
