"""`POST /chat`: the protocol of Mini-Omni's own server, so that its clients work against Parley.

The body is JSON: "audio" (base64 of a wav file), "stream_stride" (frames of 85 ms in a chunk, 4 if left out) and
"max_tokens" (2048 if left out). The answer is raw PCM, 24 kHz mono int16 little-endian, sent while it is made. What
goes wrong before the first byte is a status code with {"detail": sentence, "code": …}; behind it the connection breaks.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import secrets
import tempfile
from collections.abc import AsyncIterator, Callable, Generator
from functools import partial
from pathlib import Path
from typing import Any

from anyio.to_thread import run_sync
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from models import audio
from models.capabilities import AudioChunk, Capability, Event, TalkRequest
from models.errors import UserError
from models.registry import Registry
from tabs.i18n import choose
from tabs.requests import sampling

log = logging.getLogger(__name__)

Events = Generator["Event | None", None, None]

MODEL = "mini-omni"
FRAME_BYTES = 2 * 2048  # one frame of SNAC at 24 kHz, int16
MOST_BYTES = 48 * 2**20  # of a body: 30 s of 96 kHz stereo float are 31 MB as base64
SEED = 0  # the protocol has none: the same question gets the same bytes
STATUS = {
    "chat_password": 401,
    "chat_too_large": 413,
    "chat_type": 422,
    "setting_out_of_range": 422,
    "chat_not_json": 400,
    "chat_not_base64": 400,
    "no_audio": 400,
    "no_speech_heard": 400,
    "unexpected": 500,
}


class Gone(Exception):
    """The client went away before its answer began."""


def chat_route(registry: Registry, most: int, auth: str | None) -> Route:
    """The route. At most `most` calls are answered or wait at once; `auth` is "user:password" or None."""
    open_calls: set[Request] = set()

    async def chat(request: Request) -> Response:
        events: Events | None = None
        try:
            if auth is not None and not _may_enter(request, auth):
                raise UserError("chat_password")
            if len(open_calls) >= most:
                raise UserError("chat_busy")
            open_calls.add(request)
            asked, stride = await run_sync(_question, await _body(request))
            await run_sync(_ready, registry, asked)
            events = registry.stream(MODEL, asked)
            first = await _next_sound(events, request)
            return Sound(_chunks(events, first, stride, request), partial(end, request, events))
        except BaseException as caught:
            end(request, events)
            if not isinstance(caught, Exception):
                raise
            return _refusal(caught, request)

    def end(request: Request, events: Events | None) -> None:
        if events is not None:
            events.close()
        open_calls.discard(request)

    return Route("/chat", chat, methods=["POST"])


# --- the question -----------------------------------------------------------------------------------------------------


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MOST_BYTES:
            raise UserError("chat_too_large", most=MOST_BYTES // 2**20)
    return bytes(body)


def _question(body: bytes) -> tuple[TalkRequest, int]:
    """The request, and how many frames a chunk of the answer has."""
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as caught:
        raise UserError("chat_not_json") from caught
    if not isinstance(given, dict) or not isinstance(given.get("audio"), str):
        raise UserError("chat_type", name="audio", kind="string")
    numbers = {"stream_stride": given.get("stream_stride", 4), "max_tokens": given.get("max_tokens", 2048)}
    for name, value in numbers.items():
        if type(value) is not int:
            raise UserError("chat_type", name=name, kind="integer")
    stride = numbers["stream_stride"]
    if stride < 1:
        raise UserError("setting_out_of_range", setting="stream_stride", low=1, high=2048)
    tuning = sampling(seed=SEED, max_new_tokens=numbers["max_tokens"])
    try:
        wav = base64.b64decode("".join(given["audio"].split()), validate=True)
    except (binascii.Error, ValueError) as caught:
        raise UserError("chat_not_base64") from caught
    with tempfile.TemporaryDirectory(prefix="parley-chat-") as folder:
        path = Path(folder, "question.wav")
        path.write_bytes(wav)
        clip = audio.load(path)
    return TalkRequest(capability=Capability.LIVE, audio=clip, transcribe=False, sampling=tuning), stride


def _ready(registry: Registry, asked: TalkRequest) -> None:
    """Refuse what could only be answered after gigabytes of downloads, or not at all."""
    if all(spec.id != MODEL for spec in registry.models_for(Capability.LIVE)):
        raise UserError("chat_not_offered")
    spec = registry.choose(MODEL, Capability.LIVE, asked)
    missing = [weights for weights in spec.weights if registry.store.path(weights) is None]
    if missing:
        raise UserError("chat_not_installed", what=", ".join(weights.title for weights in missing))


# --- the answer -------------------------------------------------------------------------------------------------------


class Sound(StreamingResponse):
    """A streamed answer; `end` is called once nothing more of it is sent, for whatever reason."""

    def __init__(self, chunks: AsyncIterator[bytes], end: Callable[[], None]):
        super().__init__(chunks, media_type="application/octet-stream")
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._end()


async def _next_sound(events: Events, request: Request) -> bytes:
    """The next sound of the answer, empty at its end. Raises Gone between two events once nobody listens any more."""
    while True:
        event = await run_sync(next, events, StopIteration)
        if event is StopIteration:
            return b""
        if await request.is_disconnected():
            raise Gone
        if isinstance(event, AudioChunk) and len(event.pcm):
            return event.pcm.astype("<i2").tobytes()


async def _chunks(events: Events, sound: bytes, stride: int, request: Request) -> AsyncIterator[bytes]:
    """The answer in chunks of `stride` frames, the last with what is left."""
    size, waiting = stride * FRAME_BYTES, bytearray()
    try:
        while sound:
            waiting += sound
            while len(waiting) >= size:
                yield bytes(waiting[:size])
                del waiting[:size]
            sound = await _next_sound(events, request)
        if waiting:
            yield bytes(waiting)
    except Gone:
        pass  # nobody listens: the answer ends here


# --- refusing ---------------------------------------------------------------------------------------------------------


def _may_enter(request: Request, auth: str) -> bool:
    """Whether the call carries the password (HTTP Basic), or the cookie that Gradio's login gave."""
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    try:
        if scheme.lower() == "basic" and secrets.compare_digest(base64.b64decode(given), auth.encode()):
            return True
    except binascii.Error:
        pass  # not base64, so not the password
    names = (f"access-token-{request.app.cookie_id}", f"access-token-unsecure-{request.app.cookie_id}")
    return any(request.cookies.get(name) in request.app.tokens for name in names)


def status_of(error: UserError) -> int:
    """The HTTP status of an error: the asker's fault or, where nothing says so, the service's."""
    return STATUS.get(error.code, 400 if error.code.startswith("audio_") else 503)


def _refusal(caught: Exception, request: Request) -> Response:
    if isinstance(caught, Gone | ClientDisconnect):
        return Response(status_code=400)  # which nobody reads
    if not isinstance(caught, UserError):
        log.error("/chat failed", exc_info=caught)
        caught = UserError("unexpected")
    status = status_of(caught)
    language = choose(request.query_params, request.cookies, request.headers)
    headers: dict[str, Any] = {401: {"WWW-Authenticate": "Basic"}, 503: {"Retry-After": "5"}}.get(status, {})
    return JSONResponse({"detail": caught.sentence(language), "code": caught.code}, status, headers)
