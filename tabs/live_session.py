"""One visit's live conversation: who is speaking, which reply is being made, and what stays in the history.

Knows nothing of Gradio or of models. Sound comes in by `hear` on one thread, the reply is made on another:

* A short pause starts a reply on the quiet (`Session.take` hands it to whoever makes it). If the person goes on, it is
  dropped; if the pause lasts, it is confirmed and may sound: the model thinks while the turn's end is still in doubt.
* Speech while an answer sounds is a barge-in: the answer is cancelled, and the history keeps only what was heard of it.
* Speech after the turn but before any sound of the answer means that the person had not finished: both pieces of
  speech make one turn.

Sound that is kept is bounded: one open turn and one reply, a minute each.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from models.audio import SPEECH_RATE, from_pcm
from models.capabilities import Turn, Waveform
from models.compact.activity import TurnEvent, Turns

SHORT_PAUSE = 0.25  # s of silence after which a reply is begun on the quiet
LEAST_SPEECH = 0.1  # s of speech that count as somebody speaking
LONGEST_TURN = 60.0  # s
LEAST_TURN = 0.3  # s; a shorter press of the button is nothing to answer
PLAYER_LEAD = 0.1  # s between a chunk's leaving and its sounding, about
MAX_EARLY = 8  # chunks that may overtake a missing one before it is given up
LOG_LENGTH = 256


class Playback:
    """What a listener has heard of an answer by now: its chunks sound one after the other, from their arrival on."""

    def __init__(self) -> None:
        self._chunks: list[tuple[float, float, int]] = []  # start (s), length (s), characters written when it left
        self.ends = 0.0

    def add(self, now: float, seconds: float, characters: int) -> None:
        start = max(self.ends, now + PLAYER_LEAD)
        self._chunks.append((start, seconds, characters))
        self.ends = start + seconds

    def characters(self, now: float) -> int:
        """How many characters of the text have sounded by `now`; within a chunk, in proportion."""
        heard = 0
        for start, seconds, written in self._chunks:
            if now < start:
                break
            share = min(1.0, (now - start) / seconds) if seconds else 1.0
            heard += int((written - heard) * share)
        return heard


def spoken_part(text: str, characters: int) -> str:
    """The first `characters` of a text, back to the last whole word (a Chinese character is one)."""
    if characters >= len(text):
        return text.strip()
    cut = text[:characters]
    if (
        cut
        and cut[-1].isascii()
        and not cut[-1].isspace()
        and text[characters].isascii()
        and text[characters].isalnum()
    ):
        cut = cut[: max(cut.rfind(" "), 0)]
    return cut.strip()


@dataclass(eq=False)
class Reply:
    """One answer: what it answers, and how far it is. `times` are of the session's clock, in seconds."""

    history: tuple[Turn, ...]
    audio: Waveform | None = None
    text: str = ""
    stream: str = field(default_factory=lambda: uuid.uuid4().hex[:12])  # the player's name of its sound
    times: dict[str, float] = field(default_factory=dict)
    heard: str = ""
    said: str = ""
    spoken: bool = True  # or in text alone, which is read as it is written
    complete: bool = False  # all of its sound is made, though something else may follow
    finished: bool = False
    confirmed: threading.Event = field(default_factory=threading.Event)
    cancelled: threading.Event = field(default_factory=threading.Event)
    playback: Playback = field(default_factory=Playback)

    @property
    def question(self) -> str:
        """What the person said or typed, as far as it is known."""
        return self.text or self.heard

    def figures(self) -> dict[str, float]:
        """Seconds from the end of the person's speech (or the sending of the text) to the first sound that left."""
        asked, sounded = self.times.get("asked"), self.times.get("first_sound")
        return {} if asked is None or sounded is None else {"after_speech_s": round(sounded - asked, 3)}


@dataclass(frozen=True)
class Reaction:
    """What is to be done at once: `reply`: a reply waits to be taken; `silence`: the stream that must be quiet."""

    reply: bool = False
    silence: str | None = None


@dataclass(frozen=True)
class Line:
    """A turn as the transcript shows it; `cut` where the answer was interrupted, `open` while it is being made.

    A spoken turn of which no transcript is made (yet) has no text.
    """

    role: str
    text: str
    cut: bool = False
    open: bool = False


class Session:
    """Thread-safe. `clock` gives seconds; `log` holds the last events as (name, seconds)."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, make_turns: Callable[..., Turns] = Turns):
        self._clock, self._make_turns = clock, make_turns
        self._lock = threading.RLock()
        self._lines: list[Line] = []
        self._reply: Reply | None = None  # being made, or still sounding
        self._waiting: Reply | None = None  # not taken yet
        self._carried: Waveform | None = None  # what was said before the person went on
        self._visit = ""
        self._pause = 0.0
        self._turns: Turns | None = None
        self._held: list[np.ndarray] = []  # push-to-talk: the speech so far
        self._ignore_held = False
        self._next, self._early = 1, {}
        self.log: deque[tuple[str, float]] = deque(maxlen=LOG_LENGTH)
        self.ended = False

    # --- the person ---------------------------------------------------------------------------------------------------

    def open(self, visit: str) -> None:
        """The microphone was opened (again); `visit` names this opening."""
        with self._lock:
            self._visit, self._next, self._early = visit, 1, {}
            self._turns, self._held, self._ignore_held = None, [], False

    def hear(self, chunk, pause_s: float) -> Reaction:
        """A chunk of speech (tabs.live_audio.HeardChunk), in any order; `pause_s` of silence end a turn."""
        with self._lock:
            if self.ended:
                return Reaction()
            if chunk.visit != self._visit:
                self.open(chunk.visit)
            if chunk.seq < self._next:
                return Reaction()
            self._early[chunk.seq] = chunk
            if chunk.seq > self._next and len(self._early) > MAX_EARLY:
                self._next = min(self._early)
            reply, silence = False, None
            while self._next in self._early:
                reaction = self._hear(self._early.pop(self._next), pause_s)
                reply, silence = reply or reaction.reply, reaction.silence or silence
                self._next += 1
            return Reaction(reply, silence)

    def write(self, text: str) -> Reaction:
        """The person typed; an answer that sounds is interrupted."""
        with self._lock:
            silence = self._interrupt("typed")
            self._begin(text=text, asked=self._clock(), confirmed=True)
            return Reaction(True, silence)

    def interrupt(self) -> Reaction:
        """Escape, space or a button: the answer is cancelled; what was heard of it is kept."""
        with self._lock:
            return Reaction(silence=self._interrupt("interrupted"))

    def close(self) -> Reaction:
        """The microphone was closed: silence, and the open turn is dropped."""
        with self._lock:
            self._turns, self._held, self._carried = None, [], None
            return Reaction(silence=self._interrupt("closed"))

    def clear(self) -> Reaction:
        """Forget the conversation."""
        with self._lock:
            silence = self._interrupt("cleared")
            self._lines, self._carried = [], None
            return Reaction(silence=silence)

    def end(self) -> None:
        """The visit is over."""
        with self._lock:
            self.close()
            self.ended = True

    # --- the reply ----------------------------------------------------------------------------------------------------

    def take(self) -> Reply | None:
        """The reply that waits to be made, if there is one; each is taken once."""
        with self._lock:
            reply, self._waiting = self._waiting, None
            return reply

    def hears(self, reply: Reply, transcript: str) -> None:
        with self._lock:
            reply.heard = transcript
            reply.times.setdefault("heard", self._clock())

    def says(self, reply: Reply, text: str) -> None:
        with self._lock:
            reply.said += text

    def sounds(self, reply: Reply, seconds: float, written: int) -> bool:
        """`seconds` of sound are about to leave, of the first `written` characters; False if they must not."""
        with self._lock:
            if reply.cancelled.is_set():
                return False
            now = self._clock()
            if "first_sound" not in reply.times:
                self._note("first_sound", reply)
            reply.playback.add(now, seconds, written)
            return True

    def finish(self, reply: Reply, failed: bool = False) -> None:
        """Nothing more comes. What failed leaves the history as it was, unless some of it was heard."""
        with self._lock:
            reply.finished = True
            if reply is not self._reply:
                return
            self._note("finished", reply)
            if failed:
                if reply.playback.ends:
                    self._keep(reply, reply.said, cut=True)
                self._reply = None

    # --- the conversation ---------------------------------------------------------------------------------------------

    def lines(self) -> list[Line]:
        """The transcript, with the turn that is going on."""
        with self._lock:
            self._settle()
            lines, reply = list(self._lines), self._reply
            if reply is not None and reply.confirmed.is_set():
                asked = reply.question or (reply.audio is not None and reply.said.strip())
                lines += [Line("user", reply.question, open=True)] if asked else []
                lines += [Line("assistant", reply.said.strip(), open=True)] if reply.said.strip() else []
            return lines

    def history(self) -> tuple[Turn, ...]:
        """What was said and heard until now, for a model."""
        with self._lock:
            self._settle()
            return tuple(Turn(line.role, line.text) for line in self._lines if line.text)

    # --- behind the lock ----------------------------------------------------------------------------------------------

    def _hear(self, chunk, pause_s: float) -> Reaction:
        self._settle()
        if chunk.mode == "push":
            return self._hear_held(chunk)
        if self._turns is None or (pause_s != self._pause and not self._turns.speaking):
            self._pause = pause_s
            self._turns = self._make_turns(
                pause_s=pause_s, short_pause_s=SHORT_PAUSE, least_speech_s=LEAST_SPEECH, longest_s=LONGEST_TURN
            )
        reply, silence = False, None
        for event in self._turns.push(chunk.pcm):
            reaction = self._follow(event)
            reply, silence = reply or reaction.reply, reaction.silence or silence
        return Reaction(reply, silence)

    def _follow(self, event: TurnEvent) -> Reaction:
        now = self._clock()
        self.log.append((event.kind, now))
        if event.kind == "speech_start":
            return Reaction(silence=self._interrupt("barge_in", went_on=True))
        if event.kind == "speech_resumed":
            self._drop()
            return Reaction()
        assert event.audio is not None
        if event.kind == "maybe_end":
            self._begin(audio=self._whole(event.audio), asked=now - SHORT_PAUSE)
            return Reaction(reply=True)
        started = self._reply is not None and not self._reply.confirmed.is_set()
        if not started:
            self._begin(audio=self._whole(event.audio), asked=now - min(self._pause, SHORT_PAUSE))
        self._confirm()
        return Reaction(reply=not started)

    def _hear_held(self, chunk) -> Reaction:
        self._turns = None
        silence = None
        if not self._held and not self._ignore_held and len(chunk.pcm):
            silence = self._interrupt("barge_in")
        if not self._ignore_held:
            self._held.append(chunk.pcm)
        seconds = sum(map(len, self._held)) / SPEECH_RATE
        if not chunk.end and seconds < LONGEST_TURN:
            return Reaction(silence=silence)
        held, self._held, self._ignore_held = self._held, [], not chunk.end
        if seconds < LEAST_TURN:
            return Reaction(silence=silence)
        self._begin(audio=self._whole(from_pcm(np.concatenate(held), SPEECH_RATE)), asked=self._clock(), confirmed=True)
        return Reaction(True, silence)

    def _begin(self, asked: float, audio: Waveform | None = None, text: str = "", confirmed: bool = False) -> None:
        self._drop()
        self._interrupt("replaced")
        self._reply = self._waiting = Reply(self.history(), audio, text, times={"asked": asked})
        self._note("begun", self._reply)
        if confirmed:
            self._confirm()

    def _confirm(self) -> None:
        assert self._reply is not None
        self._carried = None
        self._note("confirmed", self._reply)
        self._reply.confirmed.set()

    def _drop(self) -> None:
        """Give up a reply that was begun on the quiet."""
        if self._reply is not None and not self._reply.confirmed.is_set():
            self._note("dropped", self._reply)
            self._cancel(self._reply)

    def _interrupt(self, why: str, went_on: bool = False) -> str | None:
        """Cancel the reply and keep what was heard of it; the stream to silence."""
        self._settle()
        reply = self._reply
        if reply is None:
            return None
        self._note(why, reply)
        self._cancel(reply)
        if not reply.confirmed.is_set():
            return None
        if reply.complete and self._clock() >= reply.playback.ends:
            self._keep(reply, reply.said.strip())
        elif "first_sound" in reply.times:
            self._keep(reply, spoken_part(reply.said, reply.playback.characters(self._clock())), cut=True)
        elif not reply.spoken and reply.said.strip():
            self._keep(reply, reply.said.strip(), cut=True)
        elif went_on and reply.audio is not None:
            self._carried = reply.audio
        elif reply.question:
            self._lines.append(Line("user", reply.question))
        return reply.stream

    def _cancel(self, reply: Reply) -> None:
        reply.cancelled.set()
        self._reply = None
        if self._waiting is reply:
            self._waiting = None

    def _settle(self) -> None:
        """A reply that has sounded to its end becomes part of the history."""
        reply = self._reply
        if reply is not None and reply.finished and reply.confirmed.is_set() and self._clock() >= reply.playback.ends:
            self._keep(reply, reply.said.strip())
            self._reply = None

    def _keep(self, reply: Reply, said: str, cut: bool = False) -> None:
        if reply.question or reply.audio is not None:
            self._lines.append(Line("user", reply.question))
        if said:
            self._lines.append(Line("assistant", said, cut))

    def _whole(self, audio: Waveform) -> Waveform:
        """The turn with what the person had said before going on, as far as a turn may be long."""
        if self._carried is None or self._carried.seconds + audio.seconds > LONGEST_TURN:
            return audio
        return Waveform(np.concatenate([self._carried.samples, audio.samples]), audio.rate)

    def _note(self, name: str, reply: Reply) -> None:
        now = self._clock()
        reply.times.setdefault(name, now)
        self.log.append((name, now))
