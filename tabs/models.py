"""The Models tab: what is installed, loaded, where, how big; download, load, unload, delete; disk and memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from html import escape
from typing import Any

import gradio as gr
import psutil

from models.capabilities import Event, Status
from models.catalog import CATALOG, ModelSpec
from models.devices import devices
from models.errors import UserError
from models.text import say
from models.weights import readable
from tabs.answer import error_html, status_html
from tabs.house import GLUE, STREAMING, House
from tabs.i18n import language_of, t

REFRESH_SECONDS = 3.0
ON_A_SPACE = bool(os.environ.get("SPACE_ID"))  # many strangers share it: nobody deletes files there


def build(house: House) -> None:
    """Draw the tab and wire it."""
    with gr.Tab(t("models.title"), id="models") as tab:
        gr.Markdown(t("models.intro"))
        machine = gr.HTML(apply_default_css=False, elem_classes="parley-line")
        offered = [spec for spec in CATALOG if not house.options.models or spec.id in house.options.models]
        cards = [_model(house, spec) for spec in offered]

        def refresh(request: gr.Request) -> list[str]:
            language = language_of(request)
            status = {model["id"]: model for model in house.registry.status()}
            return [machine_html(house, language), *(card_html(status[spec.id], language) for spec in offered)]

        gr.on([tab.select, gr.Timer(REFRESH_SECONDS).tick], refresh, None, [machine, *cards], **GLUE)


def _model(house: House, spec: ModelSpec) -> gr.HTML:
    """One model: its card, its buttons, its news."""
    with gr.Column(elem_classes=["parley-card", "parley-model"]):
        card = gr.HTML(card_html(house.registry.status_of(spec.id), "en"), apply_default_css=False)
        news = gr.HTML("", apply_default_css=False, elem_classes="parley-line")
        with gr.Row(elem_classes="parley-model-buttons"):
            download = gr.Button(t("models.download"), size="sm", min_width=110)
            load = gr.Button(t("models.load"), size="sm", min_width=110, variant="primary")
            unload = gr.Button(t("models.unload"), size="sm", min_width=110)
            delete = gr.Button(t("models.delete"), size="sm", min_width=110, visible=not ON_A_SPACE)
            stop = gr.Button(t("page.stop"), size="sm", min_width=90)

    def follow(steps: Callable[[], Iterator[Event | None]], request: gr.Request) -> Iterator[dict[Any, Any]]:
        language = language_of(request)
        yield {news: ""}
        try:
            for event in steps():
                shown = {news: status_html(event, language)} if isinstance(event, Status) else {news: gr.skip()}
                yield shown
            done = {news: ""}
        except UserError as error:
            done = {news: error_html(error, language)}
        yield {**done, card: card_html(house.registry.status_of(spec.id), language)}

    def fetch(request: gr.Request) -> Iterator[dict[Any, Any]]:
        yield from follow(lambda: house.registry.download(spec.id), request)

    def start(request: gr.Request) -> Iterator[dict[Any, Any]]:
        yield from follow(lambda: house.registry.load(spec.id), request)

    def refuse_if_busy() -> Iterator[Event | None]:
        if house.registry.status_of(spec.id)["state"] in ("answering", "loading"):
            raise UserError("model_busy", model=spec.title)
        house.registry.unload(spec.id)
        yield from ()

    def free(request: gr.Request) -> Iterator[dict[Any, Any]]:
        yield from follow(refuse_if_busy, request)

    def remove(request: gr.Request) -> Iterator[dict[Any, Any]]:
        def steps() -> Iterator[Event | None]:
            yield from refuse_if_busy()
            for weights in spec.weights:
                house.registry.store.remove(weights)

        yield from follow(steps, request)

    running: list[Any] = [
        button.click(handler, None, [news, card], **STREAMING)
        for button, handler in ((download, fetch), (load, start), (unload, free), (delete, remove))
    ]
    stop.click(lambda: "", None, news, cancels=running, **GLUE)
    return card


# --- HTML -----------------------------------------------------------------------------------------------------------


def machine_html(house: House, language: str) -> str:
    """Devices, memory and disk of this machine, on one line."""
    memory = psutil.virtual_memory()
    facts = [
        *(f"{device.name} · {readable(device.memory)}" for device in devices()),
        say("models.memory_free", language, free=readable(memory.available)),
        say("models.disk_free", language, free=readable(house.registry.store.free_disk())),
    ]
    return f'<p class="parley-machine">{escape(" · ".join(facts))}</p>'


def card_html(model: dict[str, Any], language: str) -> str:
    """A model's card: title, state, where it runs, its parts with sizes and licences."""
    state = model["state"]
    facts = [say("models.download_size", language, size=readable(model["download_bytes"]))]
    if model["device"]:
        need = readable(model["needs_memory_bytes"])
        facts.append(say("models.runs_on", language, device=model["device"].upper(), precision=model["precision"]))
        facts.append(say("models.needs_memory", language, size=need))
    else:
        facts.append(say("models.needs_gpu_memory", language, size=readable(model["needs_memory_bytes"])))
    if model["memory_bytes"]:
        facts.append(say("models.in_memory", language, size=readable(model["memory_bytes"])))
    if model["disk_bytes"]:
        facts.append(say("models.on_disk", language, size=readable(model["disk_bytes"])))
    if model["idle_seconds"] is not None and state == "ready":
        facts.append(say("models.idle", language, seconds=round(model["idle_seconds"])))
    title, licence = escape(model["title"]), escape(model["licence"])
    chip = f'<span class="parley-state" data-state="{state.replace(" ", "-")}">{escape(_state(state, language))}</span>'
    head = f'<div class="parley-model-head"><strong>{title}</strong>{chip}</div>'
    lines = f'<p class="parley-figures">{escape(" · ".join(facts))}</p>'
    lines += f'<p class="parley-figures">{escape(say("models.licence", language))}: {licence}</p>'
    parts = "".join(_part(part, language) for part in model["parts"])
    # A model that fits nowhere here is shown all the same: the sentence says what it needs.
    why = model["obstacle"] and UserError(model["obstacle"]["code"], **model["obstacle"]["facts"]).sentence(language)
    notes = [why] if why else [say(model["note"], language)] if model["note"] else []
    note = "".join(f'<p class="parley-notice">{escape(sentence)}</p>' for sentence in notes)
    listed = f'<ul class="parley-parts">{parts}</ul>' if len(model["parts"]) > 1 else ""
    return f"{head}{lines}{note}{listed}"


def _state(state: str, language: str) -> str:
    return say(f"models.state_{state.replace(' ', '_')}", language)


def _part(part: dict[str, Any], language: str) -> str:
    mark = "✓" if part["installed"] else "○"
    words = say("models.part_installed" if part["installed"] else "models.part_missing", language)
    link = f'<a href="{escape(part["homepage"])}" target="_blank" rel="noopener">{escape(part["title"])}</a>'
    bar = ""
    if part["progress"]:
        share = part["progress"]["done"] / max(1, part["progress"]["total"])
        bar = f'<progress max="1" value="{share:.3f}"></progress>'
    return (
        f'<li data-installed="{str(part["installed"]).lower()}"><span title="{escape(words)}">{mark}</span> {link}'
        f"<small>{readable(part['bytes'])} · {escape(part['licence'])} · {escape(words)}</small>{bar}</li>"
    )
