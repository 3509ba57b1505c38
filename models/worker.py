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

log = logging.getLogger(__name__)

HEARTBEAT = 0.2  # seconds between the Nones of a stream without news: its reader can be closed only between events
UNREAD_LIMIT = 256  # events a reader may lag behind before its request is not advanced any further


class Stream:
    """One request's way through a worker. Iterate it for events; `cancel` stops the model at its next step."""

    def __init__(self, request: Request):
        self.request = request
        self.place = 0
        self._events: queue.SimpleQueue[Event | BaseException | type[StopIteration]] = queue.SimpleQueue()
        self._cancelled = threading.Event()

    def cancel(self) -> None:
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
        self._thread = threading.Thread(target=self._run, name=f"worker {title}", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> Stream | None:
        """Queue a request; None if the worker is on its way out (then ask the registry for another)."""
        stream = Stream(request)
        with self._changed:
            if self._closing or self.state == "gone":
                return None
            if self.state == "loading":
                stream.put(Status("loading", {"what": self.title}))
            self.last_used = time.monotonic()
            self._waiting.append(stream)
            self._changed.notify()
        return stream

    @property
    def busy(self) -> bool:
        return self.state == "loading" or bool(self._open or self._waiting)

    def memory_bytes(self) -> int:
        model = self._model
        return model.memory_bytes() if model else 0

    def wait_loaded(self, timeout: float | None = None) -> bool:
        """Whether loading has ended within `timeout` seconds (look at `state` for how)."""
        with self._changed:
            return self._changed.wait_for(lambda: self.state != "loading", timeout)

    def close(self, *, wait: bool = True) -> None:
        """Cancel what is open, unload the model, end the thread."""
        with self._changed:
            self._closing = True
            for stream in (*self._waiting, *self._open):
                stream.cancel()
            self._changed.notify()
        if wait and threading.current_thread() is not self._thread:
            self._thread.join()

    # --- on the worker's own thread -----------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._model = self._load()
        except Exception as caught:  # the streams' readers are told; the registry stays usable
            self.error = caught
            log.warning("%s could not be loaded", self.title, exc_info=caught)
        with self._changed:
            self.state = "gone" if self.error else "ready"
            self._changed.notify_all()
        if not self.error:
            while self._serve():
                pass
            with self._changed:
                self.state = "gone"
            assert self._model is not None
            self._model.unload()
            self._model = None
        for stream in self._waiting:
            stream.end(self.error)
        self._on_gone(self)

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
            stream.end()
        while self._waiting and len(self._open) < self._at_once and not self._closing:
            stream = self._waiting.pop(0)
            self._open[stream] = self._model.stream(stream.request)
        for place, stream in enumerate(self._waiting, 1):
            if stream.place != place:
                stream.place = place
                stream.put(Status("queued", {"place": place}))

    def _advance(self, stream: Stream, steps: Iterator[Event | None]) -> None:
        try:
            if stream.cancelled:
                steps.close()  # type: ignore[attr-defined]
            elif stream.lagging:
                return
            else:
                event = next(steps)
                if event is not None:
                    stream.put(event)
                return
            error = None
        except StopIteration:
            error = None
        except Exception as caught:  # one request's failure is its own; its reader is told
            error = caught
        with self._changed:
            del self._open[stream]
            self.last_used = time.monotonic()
        stream.end(error)
