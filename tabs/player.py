"""The player of streamed sound: a gr.HTML component that starts a chunk a few tens of milliseconds after its arrival.

Python side: one `SoundStream` an answer; yield `stream.chunk(pcm, rate)` into the component as the sound is made,
`stream.end()` after the last chunk, and `flush_value(stream.id)` to silence it at once. A new stream silences what
played before, in this player and in every other one of the page. `window.parleyPlayers.stats()` tells tests what was
played; `window.parleyPlayers.silence()` is what a Stop button calls in the browser, without waiting for the server.

Gradio may join two updates that reach the browser together into one, so a value carries the chunks of the last moment
again: the player drops those that it has.
"""

from __future__ import annotations

import base64
import time
import uuid
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from models.text import LANGUAGES, say
from tabs.i18n import both

WEB = Path(__file__).resolve().parent.parent / "assets" / "web"
REPEAT_S = 0.3  # s: chunks sent within this time are sent again with the next one
REPEAT_BYTES = 200_000

HTML = f"""
<div class="parley-player" data-part="player" data-state="idle">
  <button type="button" class="icon" data-part="mute"><span class="speaker" aria-hidden="true"></span></button>
  <canvas data-part="bars" aria-hidden="true"></canvas>
  <button type="button" class="hint" data-part="hint" hidden>{both("page.tap_to_hear")}</button>
  <input type="range" data-part="volume" min="0" max="1" step="0.05">
</div>
"""


def words(*names: str) -> dict[str, dict[str, str]]:
    """{language: {name: sentence of page.yaml}}, for scripts."""
    return {code: {name: say(f"page.{name}", code) for name in names} for code in LANGUAGES}


def player(**options: Any) -> gr.HTML:
    """A player component. `options` go to gr.HTML (elem_id, visible …). Its scripts come with the page's head."""
    return gr.HTML(
        value=None,
        html_template=HTML,
        js_on_load="window.parley.player(element, props, watch)",
        words=words("mute", "unmute", "volume"),
        apply_default_css=False,
        **options,
    )


def chunk_value(
    seq: int, pcm: np.ndarray, rate: int, stream_id: str, earlier: Iterable[tuple[int, str]] = ()
) -> dict[str, Any]:
    """The value that plays `pcm` (int16 [n], mono, `rate` Hz) as chunk number `seq`, counted from 1, of a stream.

    `earlier` are chunks sent shortly before, as (seq, base64). `sent` is the server's clock in ms since 1970.
    """
    chunks = [*earlier, (seq, _encode(pcm))]
    return {"stream": stream_id, "rate": int(rate), "chunks": [list(chunk) for chunk in chunks], "sent": _now_ms()}


def flush_value(stream_id: str) -> dict[str, Any]:
    """The value that silences a stream at once; what still arrives of it is dropped."""
    return {"flush": stream_id, "sent": _now_ms()}


class SoundStream:
    """Numbers the chunks of one answer. Not shared between threads."""

    def __init__(self, stream_id: str | None = None):
        self.id = stream_id or uuid.uuid4().hex[:12]
        self.seq = 0
        self.rate = 0
        self.flushed = False
        self._recent: deque[tuple[float, int, str]] = deque()

    def start(self) -> dict[str, Any]:
        """The value that silences what played before and announces this stream."""
        return {"stream": self.id, "chunks": [], "sent": _now_ms()}

    def chunk(self, pcm: np.ndarray, rate: int) -> dict[str, Any]:
        """The value that plays the next `pcm` (int16 [n]); once the stream is flushed, the flush again.

        A chunk that was under way must not take the place of the flush in the browser.
        """
        if self.flushed:
            return self.flush()
        self.seq, self.rate = self.seq + 1, rate
        value = chunk_value(self.seq, pcm, rate, self.id, self._repeat())
        self._recent.append((time.monotonic(), self.seq, value["chunks"][-1][1]))
        return value

    def end(self) -> dict[str, Any]:
        """The value that says that no more follows; what was sent plays on."""
        return {
            "stream": self.id,
            "rate": self.rate,
            "chunks": [list(chunk) for chunk in self._repeat()],
            "end": True,
            "sent": _now_ms(),
        }

    def flush(self) -> dict[str, Any]:
        """The value that silences this stream at once, for good."""
        self.flushed = True
        return flush_value(self.id)

    def _repeat(self) -> list[tuple[int, str]]:
        oldest = time.monotonic() - REPEAT_S
        while self._recent and (
            self._recent[0][0] < oldest or sum(len(text) for _, _, text in self._recent) > REPEAT_BYTES
        ):
            self._recent.popleft()
        return [(seq, text) for _, seq, text in self._recent]


def _encode(pcm: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(pcm, dtype="<i2").tobytes()).decode("ascii")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
