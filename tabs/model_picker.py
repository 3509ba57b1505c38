"""Choosing a model, and what to know of it before: a quiet note under the picker."""

from __future__ import annotations

from typing import Any

import gradio as gr

from models.capabilities import Capability
from models.catalog import ModelSpec
from tabs.house import GLUE, House
from tabs.i18n import both, t


def model_picker(house: House, capability: Capability) -> gr.Dropdown:
    """A model's id, or "auto", among those offered that can do `capability`; with a note where there is one."""
    offered = house.registry.models_for(capability)
    choices: list[Any] = [(t("page.model_auto"), "auto"), *((spec.title, spec.id) for spec in offered)]
    picker = gr.Dropdown(choices, value="auto", label=t("page.model"), filterable=False)
    notes = {spec.id: spec.notes[capability] for spec in offered if capability in spec.notes}
    if notes:
        note = gr.HTML(visible=False, apply_default_css=False, elem_classes="parley-line parley-model-note")

        def tell(chosen: str) -> dict[str, Any]:
            words = f'<p class="parley-notice">{both(notes[chosen])}</p>' if chosen in notes else ""
            return gr.update(value=words, visible=bool(words))

        picker.change(tell, picker, note, **GLUE)
    return picker


def spec_of(house: House, capability: Capability, chosen: str) -> ModelSpec | None:
    """The chosen model; None for "auto" and for what is not offered (the registry will say so)."""
    return next((spec for spec in house.registry.models_for(capability) if spec.id == chosen), None)


def fast_encoder(house: House, capability: Capability, picker: gr.Dropdown) -> gr.Checkbox:
    """Whether to skip most of the silence behind a clip (see TalkRequest); shown where the chosen model can do so."""
    able = {spec.id: house.registry.status_of(spec.id) for spec in house.registry.models_for(capability)}
    able = {model: status for model, status in able.items() if status["fast_encoder"]}
    box = gr.Checkbox(True, label=t("page.fast_encoder"), info=t("page.fast_encoder_info"), visible=False)

    def show(chosen: str) -> dict[str, Any]:
        return gr.update(visible=chosen in able, value=able[chosen]["device"] != "cuda" if chosen in able else True)

    picker.change(show, picker, box, **GLUE)
    return box


def fast_wish(house: House, capability: Capability, chosen: str, ticked: bool) -> bool | None:
    """What the box says, for a request; None where the chosen model shows none."""
    spec = spec_of(house, capability, chosen)
    return bool(ticked) if spec is not None and spec.fast_encoder else None
