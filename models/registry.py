"""The one place that every tab asks: which model answers, is it here, where does it run, what does it say.

Models load on first use, each on its own worker thread; the least recently used idle one makes room for the next; a
failed load leaves everything else as it was. Knows nothing of Gradio, nor of how any model works.
"""

from __future__ import annotations

import importlib
import logging
import secrets
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from models import zerogpu
from models.capabilities import (
    Capability,
    Event,
    Request,
    SpeechModel,
    Stats,
    Status,
    WarmRequest,
    use_of,
)
from models.catalog import CATALOG, ModelSpec, Weights
from models.devices import Device, allowed
from models.errors import UserError
from models.fitness import MeanwhileError, lack
from models.meter import Meter
from models.weights import WeightStore
from models.worker import HEARTBEAT, Worker

log = logging.getLogger(__name__)

MEMORY_SHARE = 0.85  # of a device's memory; the rest is the system's and the caches'


class Registry:
    """Models by id, loaded when first asked. Thread-safe; one for the whole app.

    `memory_budget` is in bytes per device kind; by default a share of what the device has. `precision` maps a model's
    id to the precision that it is to run in; a device that does not offer that one is passed over.
    """

    def __init__(
        self,
        store: WeightStore,
        catalog: Sequence[ModelSpec] = CATALOG,
        device: str = "auto",
        memory_budget: int | None = None,
        precision: Mapping[str, str] | None = None,
    ):
        self.store, self._device, self._precision = store, device, precision or {}
        self._specs = {spec.id: spec for spec in catalog}
        self._budget = memory_budget
        self._workers: dict[str, Worker] = {}
        self._errors: dict[str, str] = {}
        self._lock = threading.Lock()

    # --- choosing -----------------------------------------------------------------------------------------------------

    def models_for(self, capability: Capability) -> list[ModelSpec]:
        """The models that serve a capability, best first, whether or not they can run here."""
        return [spec for spec in self._specs.values() if capability in spec.capabilities]

    def obstacle(self, spec: ModelSpec) -> UserError | None:
        """Why the model cannot run here (no device that it fits into), or None."""
        if self._place(spec) is None:
            return UserError("model_does_not_fit", model=spec.title, **self._size(spec), has=self._largest() / 1e9)
        return None

    def choose(self, model: str, capability: Capability, request: Request | None = None) -> ModelSpec:
        """The model of this id; for "auto" the best that can run and is installed, else the last that can run.

        Installed means: the weights for this `request` (the whole capability, if it is None) are on this machine.
        "auto" takes only models that do all that the request asks, and one that speaks a single language only where the
        request says that language; and none on a device where it is too slow to talk with.

        Raises UserError where the model is unknown, cannot do this, or cannot run here.
        """
        candidates = self.models_for(capability)
        if model != "auto":
            spec = next((spec for spec in candidates if spec.id == model), None)
            if spec is None:
                raise UserError("model_unknown", model=model, known=", ".join(c.id for c in candidates))
            obstacle = self.obstacle(spec)
            if obstacle or (obstacle := request and lack(spec, request)):
                raise obstacle
            return spec
        spoken = getattr(request, "language", "auto")
        able = [spec for spec in candidates if not self.obstacle(spec) and not (request and lack(spec, request))]
        able = [spec for spec in able if self._placement(spec)[0].kind not in spec.slow_on] or able
        able = [spec for spec in able if len(spec.languages) > 1 or spoken in spec.languages] or able
        if not able:
            lacks = [lack(spec, request) for spec in candidates if request and not self.obstacle(spec)]
            raise lacks[0] if lacks and lacks[0] else UserError("no_model_fits")
        wanted = use_of(request) if request else capability
        return next((spec for spec in able if all(map(self.store.path, spec.weights_for(wanted)))), able[-1])

    def ready(self, capability: Capability, request: Request | None = None) -> ModelSpec | None:
        """The model that "auto" takes, where it can answer without a download; else None."""
        try:
            spec = self.choose("auto", capability, request)
        except UserError:
            return None
        wanted = use_of(request) if request else capability
        return spec if all(map(self.store.path, spec.weights_for(wanted))) else None

    # --- answering ----------------------------------------------------------------------------------------------------

    def stream(self, model: str, request: Request) -> Generator[Event | None, None, None]:
        """Answer a request: events, with None as a heartbeat where there is no news. Closing it cancels the model.

        Runs in the caller's thread and only waits there. Weights that are missing are downloaded, the model is loaded
        (Status events say so); the last event is a Stats that names the model, device, precision, seed, and the times.
        """
        spec = self.choose(model, request.capability, request)
        if request.sampling.seed < 0:
            request = replace(request, sampling=replace(request.sampling, seed=secrets.randbelow(2**31)))
        meter = Meter()
        device, precision = self._placement(spec)
        for event in self._answer(spec, request, in_gpu_call=zerogpu.ACTIVE and device.kind == "cuda"):
            meter.see(event)
            yield event
        seed = {"seed": request.sampling.seed}
        yield Stats({"model": spec.title, "device": device.kind, "precision": precision, **seed, **meter.values()})

    def _answer(self, spec: ModelSpec, request: Request, in_gpu_call: bool) -> Iterator[Event | None]:
        yield Status("starting", {"what": spec.title})
        if in_gpu_call:
            yield from zerogpu.stream(spec.id, request)
        else:
            try:
                yield from self._fetch(spec.weights_for(use_of(request)))
            except UserError as error:
                raise self._with_way_out(error, request) from error
            yield from self._serve(spec, request)

    def _with_way_out(self, error: UserError, request: Request) -> UserError:
        """The error, with a model that could answer at once, if there is one."""
        other = self.ready(request.capability, request)
        return MeanwhileError(error, other.title) if other else error

    def _serve(self, spec: ModelSpec, request: Request) -> Iterator[Event | None]:
        worker = yield from self._worker(spec)
        while (stream := worker.submit(request)) is None:  # it is being unloaded: another is started when it is gone
            yield None
            time.sleep(0.05)
            worker = yield from self._worker(spec)
        try:
            yield from stream
        finally:
            stream.cancel()

    def _fetch(self, wanted: Sequence[Weights]) -> Iterator[Event | None]:
        for weights in wanted:
            if self.store.path(weights):
                continue
            download = self.store.download(weights)
            try:
                while not download.wait(HEARTBEAT):
                    progress = download.progress
                    if progress is None:
                        yield Status("connecting", {"what": weights.title})
                    else:
                        facts = {"done": progress.done, "total": progress.total, "seconds_left": progress.seconds_left}
                        yield Status("downloading", {"what": weights.title, **facts})
            finally:
                download.leave()
            if download.error:
                raise download.error

    # --- loading ------------------------------------------------------------------------------------------------------

    def load(self, model: str) -> Iterator[Event | None]:
        """Fetch all of a model's weights, load it and warm every capability of it, without asking it anything."""
        for capability in self._specs[model].capabilities:
            yield from self.stream(model, WarmRequest(capability=capability))

    def download(self, model: str) -> Iterator[Event | None]:
        """Fetch all of a model's weights."""
        yield from self._fetch(self._specs[model].weights)

    def place_for_zerogpu(self) -> None:
        """Load every model that a GPU call of ZeroGPU is to serve, now and for good (see zerogpu.py)."""
        for spec in self._specs.values():
            if not self.obstacle(spec) and self._placement(spec)[0].kind == "cuda":
                for _ in self._fetch(spec.weights):
                    pass
                device, precision = self._placement(spec)
                zerogpu.PLACED[spec.id] = load_model(spec, self._path_of(spec), device.kind, precision)

    def unload(self, model: str) -> None:
        """Cancel the model's open requests and give its memory back."""
        with self._lock:
            worker = self._workers.get(model)
        if worker:
            worker.close()

    def close(self) -> None:
        """Unload everything."""
        for model in list(self._workers):
            self.unload(model)

    def _worker(self, spec: ModelSpec) -> Iterator[Event | None]:
        """Yield while memory must be waited for; return the model's worker, started if need be."""
        while True:
            with self._lock:
                worker = self._workers.get(spec.id)
                if worker and worker.state != "gone":
                    return worker
                device, precision = self._placement(spec)
                in_the_way = self._in_the_way(spec, device, precision)
                if not in_the_way:
                    load = partial(self._load, spec, device.kind, precision)
                    gone = partial(self._gone, spec)
                    self._workers[spec.id] = Worker(spec.title, load, spec.at_once, gone)
                    return self._workers[spec.id]
                idle = [worker for worker in in_the_way if not worker.busy]
            if idle:
                oldest = min(idle, key=lambda worker: worker.last_used)
                log.info("unloading %s to make room for %s", oldest.title, spec.title)
                oldest.close(if_idle=True)
            else:
                yield Status("waiting_for_memory", {"what": spec.title})
                time.sleep(HEARTBEAT)

    def _in_the_way(self, spec: ModelSpec, device: Device, precision: str) -> list[Worker]:
        """The workers on the device, if the model does not fit beside them."""
        there = [
            (worker, other)
            for other in self._specs.values()
            if (worker := self._workers.get(other.id)) and self._placement(other)[0].kind == device.kind
        ]
        taken = sum(other.memory[self._placement(other)[1]] for _, other in there)
        fits = taken + spec.memory[precision] <= self._room(device)
        return [] if fits else [worker for worker, _ in there]

    def _load(self, spec: ModelSpec, device: str, precision: str) -> SpeechModel:
        try:
            model = load_model(spec, self._path_of(spec), device, precision)
        except UserError:
            raise
        except Exception as error:
            raise UserError("load_failed", model=spec.title, why=f"{type(error).__name__}: {error}") from error
        self._errors.pop(spec.id, None)
        return model

    def _gone(self, spec: ModelSpec, worker: Worker) -> None:
        with self._lock:
            if self._workers.get(spec.id) is worker:
                del self._workers[spec.id]
            if worker.error:
                self._errors[spec.id] = str(worker.error)

    def _path_of(self, spec: ModelSpec):
        by_id = {weights.id: weights for weights in spec.weights}

        def path_of(weights_id: str) -> Path:
            path = self.store.path(by_id[weights_id])
            if path is None:
                raise UserError("weights_missing", what=by_id[weights_id].title)
            return path

        return path_of

    # --- placing ------------------------------------------------------------------------------------------------------

    def _room(self, device: Device) -> int:
        return self._budget or int(device.memory * MEMORY_SHARE)

    def _largest(self) -> int:
        return max(self._room(device) for device in allowed(self._device))

    def _place(self, spec: ModelSpec) -> tuple[Device, str] | None:
        for device in allowed(self._device):
            wanted = self._precision.get(spec.id)
            for precision in spec.precisions.get(device.kind, ()):
                library = spec.libraries.get((device.kind, precision))
                chosen = precision == wanted if wanted else library is None or find_spec(library) is not None
                if chosen and spec.memory[precision] <= self._room(device):
                    return device, precision
        return None

    def _leanest(self, spec: ModelSpec) -> str:
        """The precision asked for, else the one that needs the least memory."""
        return self._precision.get(spec.id) or min(spec.memory, key=lambda precision: spec.memory[precision])

    def _size(self, spec: ModelSpec) -> dict[str, float]:
        download = sum(weights.bytes for weights in spec.weights)
        return {"download": download / 1e9, "memory": spec.memory[self._leanest(spec)] / 1e9}

    def _placement(self, spec: ModelSpec) -> tuple[Device, str]:
        place = self._place(spec)
        assert place, "only models without an obstacle are placed"
        return place

    # --- telling ------------------------------------------------------------------------------------------------------

    def status(self) -> list[dict[str, Any]]:
        """One JSON-able dict per model: what it is, what can be done with it here, and what is going on with it."""
        return [self.status_of(model) for model in self._specs]

    def status_of(self, model: str) -> dict[str, Any]:
        """The status of one model."""
        spec = self._specs[model]
        worker = self._workers.get(spec.id)
        obstacle = self.obstacle(spec)
        place = self._place(spec) if not obstacle else None
        parts = [self._part(weights) for weights in spec.weights]
        state = worker.state if worker and worker.state != "gone" else None
        if state == "ready" and worker and worker.busy:
            state = "answering"
        if placed := zerogpu.PLACED.get(model):
            state = "ready"
        return {
            "id": spec.id,
            "title": spec.title,
            "licence": spec.licence,
            "homepage": spec.homepage,
            "capabilities": [capability.value for capability in spec.capabilities],
            "languages": list(spec.languages),
            "fast_encoder": spec.fast_encoder,
            "tasks": [task.value for task in spec.tasks] if Capability.UNDERSTAND in spec.capabilities else [],
            "precisions": {kind: list(offered) for kind, offered in spec.precisions.items()},
            "state": state or ("installed" if all(part["installed"] for part in parts) else "not installed"),
            "device": place[0].kind if place else None,
            "precision": place[1] if place else None,
            "note": spec.notes.get(place[1]) if place else None,
            "needs_memory_bytes": spec.memory[place[1] if place else self._leanest(spec)],
            "memory_bytes": worker.memory_bytes if worker else placed.memory_bytes() if placed else 0,
            "idle_seconds": round(time.monotonic() - worker.last_used, 1) if worker else None,
            "download_bytes": sum(weights.bytes for weights in spec.weights),
            "disk_bytes": sum(part["disk_bytes"] for part in parts),
            "parts": parts,
            "obstacle": obstacle and {"code": obstacle.code, "facts": obstacle.facts, "sentence": str(obstacle)},
            "last_error": self._errors.get(spec.id),
        }

    def _part(self, weights: Weights) -> dict[str, Any]:
        progress = self.store.progress(weights)
        return {
            "id": weights.id,
            "title": weights.title,
            "licence": weights.licence,
            "homepage": weights.homepage,
            "bytes": weights.bytes,
            "installed": self.store.path(weights) is not None,
            "disk_bytes": self.store.bytes_on_disk(weights),
            "progress": progress and {"done": progress.done, "total": progress.total},
        }


def load_model(spec: ModelSpec, path_of, device: str, precision: str) -> SpeechModel:
    """Call the spec's "module:function" loader."""
    module, function = spec.loader.split(":")
    return getattr(importlib.import_module(module), function)(spec, path_of, device, precision)
