"""The thread that owns a loaded model, and the streams it fills.

Everything thread-bound (torch modes, a llama context, CUDA streams) stays on this one thread: a Gradio handler may be
closed from another thread than the one that ran it, so it only ever reads a queue. The worker advances its open
requests in turn, one step each; those over `at_once` wait and see their place.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator

from models.capabilities import Event, Request, SpeechModel, Status
from models.errors import UserError

log = logging.getLogger(__name__)

HEARTBEAT = 0.2  # seconds between the Nones of a stream without news: its reader can be closed only between events
UNREAD_LIMIT = 256  # events a reader may lag behind before its request is not advanced any further


class Stream:
    """One request's way through a worker. Iterate it for events; `cancel` stops the model at its next step."""

    def __init__(self, request: Request):
        self.request = request
        self.place = 0  # in the queue, as last told to the reader
        self.told_to_wait = False
        self.reason: BaseException | None = None  # what the reader is told of a cancel that was not its own
        self._events: queue.SimpleQueue[Event | BaseException | type[StopIteration]] = queue.SimpleQueue()
        self._cancelled = threading.Event()

    def cancel(self, reason: BaseException | None = None) -> None:
        self.reason = reason
        self._cancelled.set()

    def __iter__(self) -> Iterator[Event | None]:
        """Yield events as they come, None as a heartbeat. Raises what the model raised."""
        while True:
            try:
                event = self._events.get(timeout=HEARTBEAT)
            except queue.Empty:
                yield None
                continue
            if event is StopIteration:
                return
            if isinstance(event, BaseException):
                raise event
            yield event  # type: ignore[misc]

    # what follows is the worker's side

    def put(self, event: Event) -> None:
        self._events.put(event)

    def put_wait(self, status: Status) -> None:
        self.told_to_wait = True
        self._events.put(status)

    def end(self, error: BaseException | None = None) -> None:
        self._events.put(error or StopIteration)

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    @property
    def lagging(self) -> bool:
        return self._events.qsize() > UNREAD_LIMIT


class Worker:
    """Loads a model on its own thread, then serves streams until closed.

    `state` is "loading", "ready" or "gone"; `last_used` a time.monotonic() stamp; `on_gone` is called once, on the
    worker's thread, when the model was unloaded or its load failed.
    """

    def __init__(self, title: str, load: Callable[[], SpeechModel], at_once: int, on_gone: Callable[[Worker], None]):
        self.title, self.state, self.last_used = title, "loading", time.monotonic()
        self._load, self._at_once, self._on_gone = load, at_once, on_gone
        self._waiting: list[Stream] = []
        self._open: dict[Stream, Iterator[Event | None]] = {}
        self._changed = threading.Condition()
        self._closing = False
        self.error: BaseException | None = None
        self._model: SpeechModel | None = None
        self.memory_bytes = 0  # of the model's weights, as of its last finished request
        self._thread = threading.Thread(target=self._run, name=f"worker {title}", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> Stream | None:
        """Queue a request; None if the worker is on its way out (then ask the registry for another)."""
        stream = Stream(request)
        with self._changed:
            if self._closing or self.state == "gone":
                return None
            if self.state == "loading":
                stream.put_wait(Status("loading", {"what": self.title}))
            self.last_used = time.monotonic()
            self._waiting.append(stream)
            self._changed.notify()
        return stream

    @property
    def busy(self) -> bool:
        return self.state == "loading" or bool(self._open or self._waiting)

    def close(self, *, if_idle: bool = False) -> None:
        """Cancel what is open (its readers are told), unload the model, wait for the end of the thread.

        With `if_idle`, do nothing where a request has come in between.
        """
        with self._changed:
            if if_idle and self.busy:
                return
            self._closing = True
            for stream in (*self._waiting, *self._open):
                stream.cancel(UserError("model_unloaded", model=self.title))
            self._changed.notify()
        self._thread.join()

    # --- on the worker's own thread -----------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._model = self._load()
        except Exception as caught:  # the streams' readers are told; the registry stays usable
            self.error = caught
            log.warning("%s could not be loaded", self.title, exc_info=caught)
        else:
            self._use(self._model)
        with self._changed:
            self.state = "gone"
        self._model, self.memory_bytes = None, 0
        for stream in (*self._waiting, *self._open):
            stream.end(self.error or stream.reason)
        self._on_gone(self)

    def _use(self, model: SpeechModel) -> None:
        try:
            self.memory_bytes = model.memory_bytes()
            with self._changed:
                self.state = "ready"
            while self._serve():
                pass
            model.unload()
        except Exception as caught:  # not of a request but of the model: dropping it gives its memory back all the same
            self.error = caught
            log.exception("%s broke down", self.title)

    def _serve(self) -> bool:
        """Advance every open stream by one step; False when the worker is closing and nothing is open."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._waiting or self._open)
            self._admit()
            if self._closing and not self._open:
                return False
        for stream, steps in list(self._open.items()):
            self._advance(stream, steps)
        if self._open and all(stream.lagging and not stream.cancelled for stream in self._open):
            time.sleep(0.01)
        return True

    def _admit(self) -> None:
        assert self._model is not None
        for stream in [stream for stream in self._waiting if stream.cancelled]:
            self._waiting.remove(stream)
            stream.end(stream.reason)
        while self._waiting and len(self._open) < self._at_once and not self._closing:
            stream = self._waiting.pop(0)
            if stream.told_to_wait:
                stream.put(Status("starting", {"what": self.title}))
            try:
                self._open[stream] = self._model.stream(stream.request)
            except Exception as caught:  # one request's failure is its own, here as in its steps
                stream.end(caught)
        for place, stream in enumerate(self._waiting, 1):
            if stream.place != place:
                stream.place = place
                stream.put_wait(Status("queued", {"place": place}))

    def _advance(self, stream: Stream, steps: Iterator[Event | None]) -> None:
        try:
            if stream.cancelled:
                error = stream.reason
                steps.close()  # type: ignore[attr-defined]
            elif stream.lagging:
                return
            else:
                event = next(steps)
                if event is not None:
                    stream.put(event)
                return
        except StopIteration:
            error = None
        except Exception as caught:  # one request's failure is its own; its reader is told
            error = caught
        assert self._model is not None
        self.memory_bytes = self._model.memory_bytes()
        with self._changed:
            del self._open[stream]
            self.last_used = time.monotonic()
        stream.end(error)
