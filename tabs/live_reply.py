"""How one reply of Live chat is made: a model's events, told to the session, held back until the turn's end is sure.

Knows nothing of Gradio: tabs/live_chat.py shows what `perform` yields.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Union

from models.capabilities import AudioChunk, Event, Heard, Stats, Status, TextDelta
from tabs.live_session import Reply, Session
from tabs.pace import Pace

HEARTBEAT = 0.05  # s between two looks at a reply that is ready before the turn's end is sure


@dataclass(frozen=True)
class Written:
    """The transcript has changed."""


@dataclass(frozen=True)
class Began:
    """The turn's end is sure: from here on things may be shown."""


Step = Union[Began, Written, AudioChunk, Status, None]  # noqa: UP007


def perform(
    session: Session, reply: Reply, open_stream: Callable[[], Iterator[Event | None]], stats: dict[str, Any]
) -> Generator[Step, None, None]:
    """Make `reply` from a model's stream; ends at once when it is cancelled. Nothing but None before Began.

    `stats` is filled with what the model measured. Raises what the stream raises, once the turn's end is sure: an error
    about half a sentence is nobody's business.
    """
    held: list[tuple[Step, int]] = []  # each with the length of the text when it came
    failed: Exception | None = None
    ended = began = False
    steps = _steps(session, reply, open_stream, stats)
    try:
        while not reply.cancelled.is_set():
            if not began and reply.confirmed.is_set():
                began = True
                yield Began()
                yield from (step for step, written in held if _may_leave(session, reply, step, written))
            if ended:
                if began:
                    break
                reply.confirmed.wait(HEARTBEAT)
                yield None
                continue
            step: Step = None
            try:
                step = next(steps)
            except StopIteration:
                ended = True
            except Exception as caught:
                failed, ended = caught, True
            if not began:
                held.append((step, len(reply.said)))
                yield None
            elif _may_leave(session, reply, step, len(reply.said)):
                yield step
        if failed is not None and began:
            raise failed
    finally:
        steps.close()
        session.finish(reply, failed=failed is not None)


def _steps(
    session: Session, reply: Reply, open_stream: Callable[[], Iterator[Event | None]], stats: dict[str, Any]
) -> Generator[Step, None, None]:
    stream, pace = open_stream(), Pace()
    try:
        for event in stream:
            sounding = pace.see(event)
            if sounding is not None:
                yield sounding
            if isinstance(event, Status) and event.phase != "speaking" and pace.made:
                reply.complete = True
            if isinstance(event, Heard):
                session.hears(reply, event.text)
                yield Written()
            elif isinstance(event, TextDelta):
                session.says(reply, event.text)
                yield Written()
            elif isinstance(event, Stats):
                stats.update(event.values)
            elif isinstance(event, AudioChunk):
                yield pace.slow
            else:
                yield event
        yield pace.end()
    finally:
        close = getattr(stream, "close", None)
        if close is not None:
            close()


def _may_leave(session: Session, reply: Reply, step: Step, written: int) -> bool:
    return not isinstance(step, AudioChunk) or session.sounds(reply, len(step.pcm) / step.rate, written)
