"""Choosing a model, and what to know of it before: a quiet note under the picker, and who answers at once instead."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from models.capabilities import Capability
from models.catalog import ModelSpec
from models.text import say
from models.weights import readable
from tabs.house import GLUE, House
from tabs.i18n import language_of, t

USUAL_SPEED = 12.5e6  # bytes/s: 100 Mbit/s, for an idea of how long a download takes before it has begun


def model_picker(house: House, capability: Capability) -> gr.Dropdown:
    """A model's id, or "auto", among those offered that can do `capability`; with a note where there is one."""
    offered = house.registry.models_for(capability)
    choices: list[Any] = [(t("page.model_auto"), "auto"), *((spec.title, spec.id) for spec in offered)]
    picker = gr.Dropdown(choices, value="auto", label=t("page.model"), filterable=False)
    note = gr.HTML(visible=False, apply_default_css=False, elem_classes="parley-line parley-model-note")
    instead = gr.Button(visible=False, size="sm", elem_classes="parley-model-instead")

    def tell(chosen: str, request: gr.Request) -> tuple[dict[str, Any], dict[str, Any]]:
        words, spec = language_of(request), spec_of(house, capability, chosen)
        if spec is None:
            return gr.update(visible=False), gr.update(visible=False)
        known = [say(spec.notes[capability], words)] if capability in spec.notes else []
        waits = what_delays(house, spec, capability, words)
        other = house.registry.ready(capability) if waits else None
        offer = other is not None and other is not spec
        shown = "".join(f'<p class="parley-notice">{escape(sentence)}</p>' for sentence in (*known, *waits))
        label = say("models.instead", words, model=other.title) if other and offer else ""
        return gr.update(value=shown, visible=bool(shown)), gr.update(value=label, visible=offer)

    def take_other() -> str:
        other = house.registry.ready(capability)
        return other.id if other else "auto"

    picker.change(tell, picker, [note, instead], **GLUE)
    instead.click(take_other, None, picker, **GLUE)
    return picker


def what_delays(house: House, spec: ModelSpec, capability: Capability, language: str) -> list[str]:
    """What stands between a person and this model's answer: that it does not fit, a download, a slow device."""
    registry = house.registry
    if obstacle := registry.obstacle(spec):
        return [obstacle.sentence(language)]
    told = []
    if size := sum(weights.bytes for weights in spec.weights_for(capability) if registry.store.path(weights) is None):
        minutes = max(1, round(size / USUAL_SPEED / 60))
        known = {"model": spec.title, "size": readable(size), "minutes": minutes}
        told.append(say("models.to_fetch_offline" if registry.store.offline else "models.to_fetch", language, **known))
    if (device := registry.status_of(spec.id)["device"]) in spec.slow_on:
        told.append(say("models.slow_here", language, model=spec.title, device=str(device).upper()))
    return told


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
