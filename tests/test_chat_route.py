"""`POST /chat` over HTTP: a real server, a real client, a small model in Mini-Omni's place."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import anyio
import httpx
import numpy as np
import pytest
import tone_model
import uvicorn
from conftest import free_port
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from tone_model import new

from models import devices
from models.audio import encode_wav
from models.capabilities import Capability
from models.catalog import Hub, Weights
from models.devices import Device
from models.registry import Registry
from models.weights import WeightStore
from tabs import chat_route

PATIENCE = 20.0  # s
TONE = (np.sin(np.arange(tone_model.RATE // 10) / 6) * 9000).astype("<i2").tobytes()  # what the model says for a word


def wav(seconds: float, loud: float = 8000.0) -> str:
    """A buzz of this length, as base64 of a wav."""
    samples = loud * np.sign(np.sin(np.arange(int(16_000 * seconds)) / 20))
    return base64.b64encode(encode_wav(samples.astype(np.int16), 16_000)).decode()


QUESTION = wav(1.0)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, tmp_path) -> Iterator[Callable[..., tuple[httpx.Client, tone_model.Log]]]:
    """Start servers of /chat over one tone model called mini-omni; gives a client and the model's log."""
    monkeypatch.setattr(devices, "devices", lambda: (Device("cpu", "CPU", 100),))
    servers, registries, clients = [], [], []

    def start(says: str = "a b c", most: int = 8, auth: str | None = None, **spec):
        model, log = new("mini-omni", **{"longest_s": 30, **spec})
        log.says = says
        registries.append(Registry(WeightStore(tmp_path / "store", offline=True), [model]))
        app = Starlette(routes=[chat_route.chat_route(registries[-1], most, auth)])
        app.tokens, app.cookie_id = {"token of ada": "ada"}, "id"  # type: ignore[attr-defined]  # as on Gradio's app
        port = free_port()
        server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
        thread = threading.Thread(target=server.run)
        thread.start()
        servers.append((server, thread))
        while not server.started:
            time.sleep(0.01)
        clients.append(httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE))
        return clients[-1], log

    yield start
    for log in tone_model.LOGS.values():
        log.go.set()
    for client in clients:
        client.close()
    for server, thread in servers:
        server.should_exit = True
        thread.join()
    for registry in registries:
        registry.close()


def until(come_true: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not come_true():
        assert time.monotonic() < end, "never came true"
        time.sleep(0.005)


def test_the_answer_is_raw_pcm(serve):
    client, log = serve()
    answer = client.post("/chat", json={"audio": QUESTION, "stream_stride": 4, "max_tokens": 2048})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/octet-stream")
    assert answer.content == 3 * TONE
    assert client.post("/chat", json={"audio": QUESTION}).content == 3 * TONE, "the settings may be left out"
    assert log.seeds == [chat_route.SEED] * 2


def test_sound_arrives_while_it_is_made(serve):
    client, log = serve("a b c wait d")
    with client.stream("POST", "/chat", json={"audio": QUESTION, "stream_stride": 1}) as answer:
        chunks = answer.iter_raw()
        assert len(next(chunks)) == chat_route.FRAME_BYTES, "a chunk of one frame, before the model goes on"
        assert not log.go.is_set() and "a b c wait d/d" not in log.steps
        log.go.set()
        assert chat_route.FRAME_BYTES + len(b"".join(chunks)) == 5 * len(TONE)


def test_the_stride_counts_frames_and_the_rest_is_sent(serve):
    client, log = serve("a b c d e f wait")
    sent = 6 * len(TONE)
    with client.stream("POST", "/chat", json={"audio": QUESTION, "stream_stride": 4}) as answer:
        chunks = answer.iter_raw()
        assert len(next(chunks)) == 4 * chat_route.FRAME_BYTES
        log.go.set()
        assert len(b"".join(chunks)) == sent + len(TONE) - 4 * chat_route.FRAME_BYTES


def test_max_tokens_reaches_the_model(serve, monkeypatch):
    client, _ = serve()
    seen = []
    real = tone_model.ToneModel.stream
    monkeypatch.setattr(
        tone_model.ToneModel, "stream", lambda model, asked: (seen.append(asked), real(model, asked))[1]
    )
    client.post("/chat", json={"audio": QUESTION, "max_tokens": 77})
    (asked,) = seen
    assert asked.sampling.max_new_tokens == 77
    assert (asked.capability, asked.audio.seconds, asked.transcribe) == (Capability.LIVE, 1.0, False)


def test_several_at_once_get_what_they_get_alone(serve):
    client, _ = serve("a b c d", at_once=2)
    alone = client.post("/chat", json={"audio": QUESTION}).content
    with ThreadPoolExecutor(4) as people:
        answers = list(people.map(lambda _: client.post("/chat", json={"audio": QUESTION}).content, range(4)))
    assert answers == [alone] * 4


@pytest.mark.parametrize("says", ["a b c wait d", "wait a"], ids=["while it sounds", "before the first byte"])
def test_a_client_that_goes_away_cancels_the_model(serve, says):
    client, log = serve(says)
    if says.startswith("wait"):
        with pytest.raises(httpx.ReadTimeout):
            client.post("/chat", json={"audio": QUESTION}, timeout=0.5)
    else:
        with client.stream("POST", "/chat", json={"audio": QUESTION, "stream_stride": 1}) as answer:
            next(answer.iter_raw())
    until(lambda: log.closed)
    assert not log.go.is_set() and f"{says}/{says[-1]}" not in log.steps
    log.go.set()
    assert client.post("/chat", json={"audio": QUESTION}).status_code == 200, "the worker is free again"


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (b"audio=abc", 400, "not JSON"),
        (b"", 400, "not JSON"),
        (b"\xff", 400, "not JSON"),
        (b"[" * 100_000, 400, "not JSON"),
        (b"[]", 422, "“audio” must be given as JSON string"),
        (b"{}", 422, "“audio” must be given as JSON string"),
        ({"audio": 1}, 422, "“audio” must be given as JSON string"),
        ({"audio": QUESTION, "stream_stride": "4"}, 422, "“stream_stride” must be given as JSON integer"),
        ({"audio": QUESTION, "stream_stride": True}, 422, "“stream_stride” must be given as JSON integer"),
        ({"audio": QUESTION, "stream_stride": 0}, 422, "stream_stride must be between 1"),
        ({"audio": QUESTION, "max_tokens": 1.5}, 422, "“max_tokens” must be given as JSON integer"),
        ({"audio": QUESTION, "max_tokens": 0}, 422, "max_new_tokens must be between 1"),
        ({"audio": "über"}, 400, "not base64"),
        ({"audio": "abcde"}, 400, "not base64"),
        ({"audio": ""}, 400, "empty (0 bytes)"),
        ({"audio": base64.b64encode(b"no sound at all" * 99).decode()}, 400, "not an audio file"),
        ({"audio": QUESTION[:40]}, 400, ""),
        ({"audio": wav(0.1)}, 400, "0.1 s long; at least"),
        ({"audio": wav(31)}, 400, "31 s long; Mini-Omni takes at most 30 s"),
        ({"audio": wav(1.0, loud=1)}, 400, "silent"),
    ],
)
def test_what_is_wrong_is_said(serve, body, status, sentence):
    client, log = serve()
    sent = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = client.post("/chat", content=sent)
    assert (answer.status_code, sentence in answer.json()["detail"]) == (status, True), answer.text
    assert not log.loads, "nothing is started for it"
    assert client.post("/chat", json={"audio": QUESTION}).status_code == 200


def test_base64_in_lines_is_taken(serve):
    client, _ = serve()
    lines = "\n".join(QUESTION[k : k + 76] for k in range(0, len(QUESTION), 76))
    assert client.post("/chat", json={"audio": lines}).status_code == 200


def test_a_body_too_large_is_refused(serve, monkeypatch):
    monkeypatch.setattr(chat_route, "MOST_BYTES", 2**20)
    client, _ = serve()
    answer = client.post("/chat", content=b" " * (2**20 + 1))
    assert answer.status_code == 413 and "1 MB" in answer.json()["detail"]


def test_the_sentence_is_in_the_askers_language(serve):
    client, _ = serve()
    answer = client.post("/chat", content=b"?", headers={"Accept-Language": "zh-CN"})
    assert "请求体不是 JSON" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"memory": 1000}, "needs about"),
        ({"loader": "models.no_such_module:load"}, "could not be loaded"),
        ({"capabilities": (Capability.ASSIST,)}, "without Mini-Omni"),
        (
            {"weights": (Weights("w", "Its weights", "MIT", "", "w", 7, None, (Hub("huggingface", "a/b", ("c",)),)),)},
            "Its",
        ),
    ],
    ids=["does not fit", "does not load", "not offered", "not installed"],
)
def test_a_model_that_cannot_answer_is_503(serve, settings, sentence):
    client, _ = serve(**settings)
    answer = client.post("/chat", json={"audio": QUESTION})
    assert (answer.status_code, sentence in answer.json()["detail"]) == (503, True), answer.text


def test_a_model_that_fails_before_its_first_sound(serve):
    client, _ = serve("crash")
    answer = client.post("/chat", json={"audio": QUESTION})
    assert (answer.status_code, answer.json()["code"]) == (500, "unexpected")


def test_a_model_that_fails_later_breaks_the_answer_off(serve):
    client, _ = serve("a b c crash")
    with pytest.raises(httpx.RemoteProtocolError):
        client.post("/chat", json={"audio": QUESTION, "stream_stride": 1})
    assert client.post("/chat", json={"audio": wav(0.1)}).status_code == 400, "the server goes on"


def test_too_many_at_once_are_503_and_later_ones_are_taken(serve):
    client, log = serve("a b c wait", most=2)
    with ThreadPoolExecutor(2) as people:
        first = [people.submit(client.post, "/chat", json={"audio": QUESTION}) for _ in range(2)]
        until(lambda: len(log.held) == 2)
        refused = client.post("/chat", json={"audio": QUESTION})
        assert (refused.status_code, refused.json()["code"]) == (503, "chat_busy")
        assert refused.headers["retry-after"]
        log.go.set()
        assert [call.result().status_code for call in first] == [200, 200]
    assert client.post("/chat", json={"audio": QUESTION}).status_code == 200


def test_the_password_or_gradios_cookie_opens(serve):
    client, _ = serve(auth="ada:lovelace")
    for headers in ({}, {"Authorization": "Basic !"}, {"Cookie": "access-token-id=other"}):
        refused = client.post("/chat", json={"audio": QUESTION}, headers=headers)
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Basic")
    assert client.post("/chat", json={"audio": QUESTION}, auth=("ada", "wrong")).status_code == 401
    assert client.post("/chat", json={"audio": QUESTION}, auth=("ada", "lovelace")).status_code == 200
    cookie = {"Cookie": "access-token-unsecure-id=token of ada"}
    assert client.post("/chat", json={"audio": QUESTION}, headers=cookie).status_code == 200


def test_a_client_that_is_gone_before_the_answer_begins_leaves_nothing_open():
    ended, begun = [], []

    async def chunks():
        begun.append(True)
        yield b"sound"

    async def nobody(message):
        raise OSError("gone")

    async def receive():
        return {"type": "http.disconnect"}

    answer = chat_route.Sound(chunks(), lambda: ended.append(True))
    scope = {"type": "http", "asgi": {"spec_version": "2.4"}}
    with pytest.raises(ClientDisconnect):
        anyio.run(answer, scope, receive, nobody)
    assert (begun, ended) == ([], [True])
