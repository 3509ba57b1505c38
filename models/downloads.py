"""A download in the background that many may wait for. Knows nothing of where the bytes come from."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from models.errors import UserError

log = logging.getLogger(__name__)

SPEED_SECONDS = 10.0  # the span over which the speed is taken


@dataclass(frozen=True)
class Progress:
    """How far a download is: bytes `done` of `total`, and an estimate of the seconds left (None while unknown).

    `source` is "modelscope", "huggingface", "release", "packages", or "elsewhere" while another process downloads;
    assets/text/weights.yaml has a name for each as source_….
    """

    source: str
    done: int
    total: int
    seconds_left: float | None


class Estimate:
    """Turns bytes so far into Progress ten times a second, with the time left at the speed of the last seconds."""

    def __init__(self, source: str, total: int) -> None:
        self.source, self.total = source, total
        self._seen: deque[tuple[float, int]] = deque()

    def at(self, done: int) -> Progress | None:
        """The progress at `done` bytes; None if the last one is too recent to say anything new."""
        now = time.monotonic()
        if self._seen and now - self._seen[-1][0] < 0.1 and done < self.total:
            return None
        self._seen.append((now, done))
        while now - self._seen[0][0] > SPEED_SECONDS and len(self._seen) > 2:
            self._seen.popleft()
        start, before = self._seen[0]
        speed = (done - before) / (now - start) if now - start >= 0.5 else 0.0
        left = max(0, self.total - done) / speed if speed > 0 else None
        return Progress(self.source, min(done, self.total), self.total, left)


class Job:
    """One thread that runs `fetch(cancelled)` to its end, or until nobody waits for it any more."""

    def __init__(self, name: str, fetch: Callable[[Callable[[], bool]], Iterator[Progress]]) -> None:
        self._fetch = fetch
        self._lock = threading.Lock()
        self._waiters = 0
        self.progress: Progress | None = None
        self.error: UserError | None = None
        self.finished = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"download {name}", daemon=True)

    def join(self) -> Download | None:
        """A handle for one more waiter; None if the job has ended or is about to, because all have left."""
        with self._lock:
            if (not self._waiters and self._thread.ident is not None) or self.finished.is_set():
                return None
            self._waiters += 1
            if self._thread.ident is None:
                self._thread.start()
            return Download(self)

    def leave(self) -> None:
        with self._lock:
            self._waiters -= 1

    def _run(self) -> None:
        try:
            for progress in self._fetch(lambda: self._waiters == 0):
                self.progress = progress
        except UserError as error:
            self.error = error
        except Exception:
            log.exception("download failed")
            self.error = UserError("unexpected")
        finally:
            self.finished.set()


class Download:
    """One waiter's hold on a shared download. When the last waiter leaves it stops, and its bytes are kept."""

    def __init__(self, job: Job) -> None:
        self._job, self._left = job, False

    @property
    def progress(self) -> Progress | None:
        """The latest news; None before the first."""
        return self._job.progress

    @property
    def error(self) -> UserError | None:
        """Why the download ended without the weights; None while it runs and after success."""
        return self._job.error

    def wait(self, timeout: float | None = None) -> bool:
        """Wait up to `timeout` seconds; whether the download has ended."""
        return self._job.finished.wait(timeout)

    def leave(self) -> None:
        """Wait no longer. May be called again, and after the end."""
        if not self._left:
            self._left = True
            self._job.leave()

    def __enter__(self) -> Download:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()
