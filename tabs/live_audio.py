"""Live chat's component: microphone and player in one, so that an interruption is quiet before the server knows of it.

The browser sends (16 kHz mono int16, echo cancelled) as events of the component; a handler takes `event: gr.EventData`:

* `start`      {visit, mode}                       the microphone is open; `visit` names this opening of it
* `chunk`      {visit, seq, pcm, mode, end, playing, sent}   about 240 ms; decode with `heard_chunk(event)`
* `interrupt`  {visit, stream}                     escape, space, or push-to-talk while an answer sounds: cancel it
* `stop`       {visit}                             the microphone is closed
* `trouble`    {kind}                              denied, no_device, busy_device, insecure or lost; the person was told

`mode` is "free" or "push"; in "push" only held speech is sent and the last chunk of a turn has `end` true. Chunks carry
`seq` from 1, and every chunk handler must confirm with `heard(chunk)` as its output: past 13 unconfirmed chunks it
waits, joins what it has, and at 5 s drops the oldest, so that no queue grows without bound.

    live = live_audio()
    live.chunk(on_chunk, None, live, trigger_mode="multiple", concurrency_limit=None, show_progress="hidden")

The server answers through the component's value: `live_value(state, sound=stream.chunk(pcm, rate))` with a
tabs.player.SoundStream, and `live_value("listening", sound=stream.flush())` to confirm a barge-in. Without such a
confirmation the ducked answer comes back to full loudness after 700 ms.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Any

import gradio as gr
import numpy as np

from tabs.i18n import both
from tabs.player import words

RATE = 16_000  # Hz
MAX_CHUNK_SECONDS = 6  # what a browser may send at once; more is not from our script

HTML = f"""
<section class="parley-live" data-part="live" data-state="" data-mode="free">
  <div class="modes" data-part="modes" role="group">
    <button type="button" data-mode="free">{both("page.live_hands_free")}</button>
    <button type="button" data-mode="push">{both("page.live_push")}</button>
  </div>
  <div class="orb">
    <canvas data-part="bars" aria-hidden="true"></canvas>
    <p class="state" data-part="label" role="status"></p>
  </div>
  <div class="talk">
    <button type="button" class="big" data-part="button"></button>
    <button type="button" class="end" data-part="end" hidden>{both("page.live_end")}</button>
  </div>
  <button type="button" class="blocked" data-part="blocked" hidden>{both("page.tap_to_hear")}</button>
  <p class="hint" data-part="hint"></p>
  <p class="parley-error" data-part="note" role="alert" hidden></p>
</section>
"""

STATES = ("idle", "starting", "listening", "thinking", "speaking")
TROUBLES = ("denied", "no_device", "busy_device", "insecure", "lost", "slow")
BUTTONS = ("start", "end", "push", "push_hint", "keys")


def live_audio(**options: Any) -> gr.HTML:
    """The component. `options` go to gr.HTML. Its scripts come with the page's head."""
    return gr.HTML(
        value=None,
        html_template=HTML,
        js_on_load="window.parley.live(element, props, watch, trigger, "
        "['start', 'chunk', 'interrupt', 'stop', 'trouble'])",
        words=words(*(f"live_{name}" for name in (*STATES, *TROUBLES, *BUTTONS))),
        heard=None,
        apply_default_css=False,
        **options,
    )


@dataclass(frozen=True, eq=False)
class HeardChunk:
    """A piece of the person's speech: `pcm` int16 [n] at RATE. `playing` says whether an answer sounded meanwhile."""

    visit: str
    seq: int
    pcm: np.ndarray
    mode: str
    end: bool
    playing: bool


def heard_chunk(event: gr.EventData) -> HeardChunk:
    """Read a `chunk` event. ValueError where it is not what our script sends."""
    data = event._data or {}
    try:
        raw = base64.b64decode(data["pcm"], validate=True)
        seq = int(data["seq"])
        visit = str(data["visit"])[:64]
    except (KeyError, TypeError, binascii.Error) as caught:
        raise ValueError("not a chunk of speech") from caught
    if len(raw) % 2 or len(raw) > 2 * RATE * MAX_CHUNK_SECONDS:
        raise ValueError("not a chunk of speech")
    return HeardChunk(
        visit, seq, np.frombuffer(raw, "<i2"), str(data.get("mode")), bool(data.get("end")), bool(data.get("playing"))
    )


def heard(chunk: HeardChunk) -> dict[str, Any]:
    """The update that confirms the chunks up to this one, and leaves what is sounding alone."""
    return gr.update(heard={"visit": chunk.visit, "seq": chunk.seq})


def live_value(state: str, sound: dict[str, Any] | None = None) -> dict[str, Any]:
    """The component's value: what the server does ("listening" or "thinking") and, maybe, sound of a SoundStream."""
    return {"state": state, **(sound or {})}
