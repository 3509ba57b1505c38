"""Examples that run in one click: a row of buttons, each of which fills a tab's inputs and starts its answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import gradio as gr
import yaml
from gradio.i18n import I18nData

from tabs.house import GLUE, STREAMING
from tabs.i18n import both, phrase
from tabs.shared import ASSETS

FOLDER = ASSETS / "examples"


@dataclass(frozen=True)
class Clip:
    """A clip of assets/examples/examples.yaml; `what` names its uses (speech, voice, sound)."""

    id: str
    path: str
    title: Mapping[str, str]
    what: tuple[str, ...]

    @property
    def label(self) -> I18nData:
        """Its title, in the page's language."""
        return phrase(self.title["en"], self.title["zh"])


@lru_cache(maxsize=1)
def clips() -> dict[str, Clip]:
    """The clips to try, by id."""
    found = yaml.safe_load((FOLDER / "examples.yaml").read_text(encoding="utf-8"))
    return {c["id"]: Clip(c["id"], str(FOLDER / c["file"]), c["title"], tuple(c["what"])) for c in found}


def clips_for(use: str) -> list[Clip]:
    """The clips that a tab may use for "speech", "voice" or "sound"."""
    return [clip for clip in clips().values() if use in clip.what]


def example_buttons(labels: Sequence[I18nData]) -> list[gr.Button]:
    """Draw a row of buttons, one an example; wire each with `wire_example`."""
    gr.HTML(f'<p class="parley-small-title">{both("page.examples")}</p>', apply_default_css=False)
    with gr.Row(elem_classes="parley-examples"):
        return [gr.Button(label, size="sm", min_width=60) for label in labels]


def wire_example(
    button: gr.Button,
    values: Mapping[Any, Any],
    run: Callable[..., Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
) -> None:
    """One click: give each component of `values` its value, then run as the tab's own button does."""
    filled = button.click(lambda: dict(values), None, list(values), **GLUE)
    filled.then(run, list(inputs), list(outputs), **STREAMING)
