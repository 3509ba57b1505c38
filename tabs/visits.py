"""A visit is one open page. What it uploads and what is made for it goes when it ends; nobody else ever sees it."""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import gradio as gr
from gradio.utils import get_upload_folder

log = logging.getLogger(__name__)


class Visits:
    """Files and clean-ups of every open page, by its session hash. Thread-safe; one for the app."""

    def __init__(self) -> None:
        self._files: dict[str, set[Path]] = defaultdict(set)
        self._endings: dict[str, list[Callable[[], None]]] = defaultdict(list)
        self._lock = threading.Lock()

    def keep(self, request: gr.Request | None, *paths: str | None) -> None:
        """Remember files of Gradio's cache that are to be deleted when the visit of `request` ends.

        A path may come from a browser: whatever else it names, an example of the app's own or worse, is left alone.
        """
        visit = getattr(request, "session_hash", None)
        cache = Path(get_upload_folder()).resolve()
        files = {Path(path).resolve() for path in paths if path}
        if visit:
            with self._lock:
                self._files[visit].update(file for file in files if cache in file.parents)

    def at_end(self, request: gr.Request, ending: Callable[[], None]) -> None:
        """Call `ending` when the visit ends."""
        if request.session_hash:
            with self._lock:
                self._endings[request.session_hash].append(ending)

    def end(self, request: gr.Request) -> None:
        """The page was closed: run the clean-ups, delete the files (wired to `demo.unload`)."""
        with self._lock:
            files = self._files.pop(request.session_hash or "", set())
            endings = self._endings.pop(request.session_hash or "", [])
            shared = set().union(*self._files.values()) if self._files else set()
        for ending in endings:
            ending()
        for path in files - shared:  # Gradio names uploads by content: two visits may have given the same clip
            try:
                path.unlink(missing_ok=True)
            except OSError:
                log.warning("could not delete a visit's file", exc_info=True)


visits = Visits()
