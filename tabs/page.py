"""The page: head, tabs, endpoints, over one registry; and how it is served."""

from __future__ import annotations

import argparse
import threading
from importlib import import_module
from typing import Any

import gradio as gr

from models import zerogpu
from models.capabilities import Capability
from models.catalog import CATALOG
from models.errors import UserError
from models.registry import Registry
from models.text import say
from models.weights import WeightStore
from tabs import endpoints
from tabs.chat_route import chat_route
from tabs.house import GLUE, House
from tabs.i18n import language_of, set_default_language
from tabs.look import badge_html, head_row, launch_options
from tabs.visits import visits

TABS = (
    "mimicry",
    "roleplay",
    "assistant",
    "understanding",
    "voice_creation",
    "cloning",
    "live_chat",
    "models",
)
UPLOAD_LIMIT = "200mb"  # 30 minutes of 24-bit stereo at 44.1 kHz are 475 MB; as mp3, flac or 16-bit mono they fit
KEPT_SECONDS = 3600  # what is left of visits that ended without a word is deleted after this
BADGE_SECONDS = 3.0


def open_house(options: argparse.Namespace) -> House:
    """The registry as the command line wants it."""
    store = WeightStore(options.cache, options.offline, options.model_folder)
    catalog = [spec for spec in CATALOG if not options.models or spec.id in options.models]
    budget = int(options.memory_budget * 1e9) if options.memory_budget else None
    return House(Registry(store, catalog, options.device, budget, options.precision), options)


def build(house: House) -> gr.Blocks:
    """The whole page."""
    with gr.Blocks(title="Parley", analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)) as page:
        badge = head_row()
        with gr.Tabs(elem_classes="parley-tabs"):
            for name in TABS:
                import_module(f"tabs.{name}").build(house)
        endpoints.build(house.registry)

        def running(request: gr.Request) -> str:
            return what_runs(house, language_of(request))

        page.load(running, None, badge, **GLUE)
        gr.Timer(BADGE_SECONDS).tick(running, None, badge, **GLUE)
        page.unload(visits.end)
    return page


def what_runs(house: House, language: str) -> str:
    """The badge: the models in memory and where; else what "auto" would load."""
    status = house.registry.status()
    loaded = [model for model in status if model["state"] in ("loading", "ready", "answering")]
    if not loaded:
        try:
            ready = house.registry.choose("auto", Capability.LIVE)
        except UserError:
            return badge_html([])
        return badge_html([ready.title, say("page.on_demand", language)])
    busy = any(model["state"] == "loading" for model in loaded)
    parts = [f"{model['title']} · {model['device'].upper()} · {model['precision']}" for model in loaded]
    return badge_html(parts, busy=busy)


def serve(options: argparse.Namespace) -> None:
    """Build the page, say where it is, serve it until interrupted."""
    set_default_language(options.language)
    house = open_house(options)
    if zerogpu.ACTIVE:
        house.registry.place_for_zerogpu()
    page = build(house).queue(max_size=options.max_queue, default_concurrency_limit=None)
    user = tuple(options.auth.split(":", 1)) if options.auth else None
    launched: dict[str, Any] = launch_options()
    launched["app_kwargs"]["routes"] = [chat_route(house.registry, options.max_queue, options.auth)]
    page.launch(
        server_name=options.host,
        server_port=options.port,
        share=options.share,
        auth=user,  # type: ignore[arg-type]
        ssl_certfile=options.ssl_certfile and str(options.ssl_certfile),
        ssl_keyfile=options.ssl_keyfile and str(options.ssl_keyfile),
        ssl_keyfile_password=options.ssl_keyfile_password,
        ssl_verify=False,  # the launcher's own check of its address; a certificate of one's own would fail it
        max_file_size=UPLOAD_LIMIT,
        max_threads=80,
        quiet=True,
        prevent_thread_lock=True,
        **launched,
    )
    print(f"Parley is at {page.local_url}" + (f" and at {page.share_url}" if page.share_url else ""), flush=True)
    for model in options.preload:
        threading.Thread(target=_preload, args=(house.registry, model), name=f"preload {model}", daemon=True).start()
    try:
        page.block_thread()
    finally:
        house.registry.close()


def _preload(registry: Registry, model: str) -> None:
    said = None
    try:
        for event in registry.load(model):
            phase = getattr(event, "phase", None)
            if phase not in (None, "starting", said):
                said = phase
                print(f"Preloading {model}: {phase}", flush=True)
        print(f"{model} is ready", flush=True)
    except Exception as error:  # the page keeps serving; the first visitor sees the same sentence
        print(f"{model} could not be preloaded: {error}", flush=True)
