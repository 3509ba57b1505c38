"""A small real SpeechModel for the tests of worker and registry: it answers text with a tone a word.

What a request's text says it does: each word is one step, "fail" and "crash" raise, "wait" pauses until `go` is set.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from models.capabilities import AudioChunk, Capability, Event, Stats, TalkRequest, TextDelta
from models.catalog import ModelSpec
from models.errors import UserError

RATE = 16_000


@dataclass
class Log:
    """What happened to the models of one id, and the test's hold on them."""

    loads: list[tuple[str, str]] = field(default_factory=list)  # device, precision
    unloads: int = 0
    steps: list[str] = field(default_factory=list)  # "text/word", in the order they were taken
    closed: list[tuple[str, str]] = field(default_factory=list)  # text, thread that closed its generator
    seeds: list[int] = field(default_factory=list)
    may_load: threading.Event = field(default_factory=threading.Event)
    says: str = ""  # what a request without text is answered with
    go: threading.Event = field(default_factory=threading.Event)
    held: list[Iterator[Event | None]] = field(default_factory=list)
    on_load: Callable[[], None] = lambda: None


LOGS: dict[str, Log] = {}


class ToneModel:
    def __init__(self, log: Log):
        self.log = log

    def stream(self, request: Any) -> Iterator[Event | None]:
        if request.capability is Capability.CLONE:
            raise UserError("no_audio")  # before the first step, as a plain function may
        steps = self._steps(request)
        self.log.held.append(steps)  # so that only close() can close it, never the end of its last reference
        return steps

    def _steps(self, request: Any) -> Iterator[Event | None]:
        text = getattr(request, "text", "") or self.log.says
        self.log.seeds.append(request.sampling.seed)
        try:
            for word in text.split():
                while word == "wait" and not self.log.go.wait(0.005):
                    yield None
                if word == "fail":
                    raise UserError("audio_silent")
                if word == "crash":
                    raise ValueError("a defect")
                self.log.steps.append(f"{text}/{word}")
                yield TextDelta(word + " ")
                yield AudioChunk((np.sin(np.arange(RATE // 10) / 6) * 9000).astype(np.int16), RATE)
            yield Stats({"words": len(text.split())})
        finally:
            self.log.closed.append((text, threading.current_thread().name))

    def unload(self) -> None:
        self.log.unloads += 1

    def memory_bytes(self) -> int:
        return 1000 + len(self.log.steps)


def load(spec: ModelSpec, path_of: Callable, device: str, precision: str) -> ToneModel:
    log = LOGS[spec.id]
    log.loads.append((device, precision))
    log.may_load.wait()
    for weights in spec.weights:
        path_of(weights.id).read_bytes()
    log.on_load()
    return ToneModel(log)


def new(
    model: str, memory: int | dict[str, int] = 10, at_once: int = 2, weights: tuple = (), **more: Any
) -> tuple[ModelSpec, Log]:
    """A model of its own, free to load."""
    log = LOGS[model] = Log()
    log.may_load.set()
    settings: dict[str, Any] = {
        "id": model,
        "title": model.title(),
        "licence": "MIT",
        "homepage": "",
        "capabilities": (Capability.ASSIST, Capability.LIVE, Capability.CLONE),
        "languages": ("en",),
        "loader": "tone_model:load",
        "weights": weights,
        "needs": {},
        "memory": memory if isinstance(memory, dict) else {"fp32": memory},
        "precisions": {"cpu": ("fp32",)},
        "at_once": at_once,
    }
    return ModelSpec(**{**settings, **more}), log


def ask(text: str, **more: Any) -> TalkRequest:
    return TalkRequest(**{"capability": Capability.ASSIST, "text": text, **more})
