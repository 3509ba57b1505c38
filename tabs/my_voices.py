"""A person's own voices, kept for the visit: a recorded or uploaded reference clip can be kept under a name in one tab
and chosen in every other. They are gone when the page is closed; nobody else sees them.

    reference = speech_input(t("cloning.reference"))
    keep_voices(reference, tab)
"""

from __future__ import annotations

import threading
from collections import defaultdict
from typing import Any

import gradio as gr

from models.errors import UserError
from models.text import say
from tabs.house import GLUE
from tabs.i18n import language_of, t
from tabs.requests import waveform_of
from tabs.visits import visits

LONGEST_NAME = 40
MOST = 20  # voices of one visit


class MyVoices:
    """The kept voices of every open page: name → path of the clip. Thread-safe; one for the app."""

    def __init__(self) -> None:
        self._voices: dict[str, dict[str, str]] = defaultdict(dict)
        self._lock = threading.Lock()

    def add(self, request: gr.Request, name: str, path: str) -> str:
        """Keep a clip until the visit ends; returns the name it got. UserError where it cannot serve."""
        waveform_of(path, "reference")
        visit = request.session_hash or ""
        with self._lock:
            if visit not in self._voices:
                visits.at_end(request, lambda: self._forget(visit))
            voices = self._voices[visit]
            number = len(voices) + 1
            name = name.strip()[:LONGEST_NAME] or say("my_voices.numbered", language_of(request), number=number)
            if name not in voices and len(voices) >= MOST:
                raise UserError("my_voices_full", most=MOST)
            voices[name] = path
        visits.keep(request, path)
        return name

    def of(self, request: gr.Request) -> dict[str, str]:
        """The voices of the page that sent `request`, in the order they were kept."""
        with self._lock:
            return dict(self._voices.get(request.session_hash or "", {}))

    def _forget(self, visit: str) -> None:
        with self._lock:
            self._voices.pop(visit, None)


my_voices = MyVoices()


def keep_voices(clip: gr.Audio, tab: gr.Tab) -> gr.Dropdown:
    """Draw, under a reference clip, what keeps it for the visit and what chooses a kept one (which fills the clip)."""
    with gr.Row(visible=False, elem_classes="parley-keep") as row:
        name = gr.Textbox(
            placeholder=t("my_voices.name"), show_label=False, container=False, max_length=LONGEST_NAME, scale=3,
            min_width=140,
        )  # fmt: skip
        keep = gr.Button(t("my_voices.keep"), size="sm", scale=2, min_width=130)
    chosen = gr.Dropdown([], label=t("my_voices.title"), visible=False, filterable=False)

    def shown(request: gr.Request, selected: str | None = None) -> dict[str, Any]:
        names = list(my_voices.of(request))
        return gr.update(choices=names, visible=bool(names), value=selected if selected in names else None)

    def add(path: str | None, wanted: str, request: gr.Request) -> tuple[Any, Any]:
        try:
            kept = my_voices.add(request, wanted or "", path or "")
        except UserError as error:
            gr.Warning(error.sentence(language_of(request)))
            return gr.skip(), gr.skip()
        return "", shown(request, kept)

    def fill(name: str | None, request: gr.Request) -> Any:
        return my_voices.of(request).get(name or "", gr.skip())

    def refresh(selected: str | None, request: gr.Request) -> dict[str, Any]:
        return shown(request, selected)

    clip.change(None, clip, row, js="clip => ({visible: !!clip, __type__: 'update'})", api_visibility="private")
    gr.on([keep.click, name.submit], add, [clip, name], [name, chosen], **GLUE)
    chosen.input(fill, chosen, clip, **GLUE)
    tab.select(refresh, chosen, chosen, **GLUE)  # another tab may have kept one
    return chosen
