"""Mini-Omni with tiny random weights in the started app: endpoints, `POST /chat`, its faults, Live chat in Chromium."""

from __future__ import annotations

import base64
import io
import json
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from models.text import say
from tests.conftest import CHROMIUM, CHROMIUM_FLAGS, ROOT, App, errors_of
from tests.tiny_mini_omni import GOLDEN, write

PATIENCE = 60.0  # s
QUESTION = GOLDEN / "wav" / "w0.wav"
FRAME_BYTES = 2 * 2048


def as_base64(wav: bytes) -> str:
    return base64.b64encode(wav).decode()


def clip(length: float) -> bytes:
    """A wav of a buzz."""
    file = io.BytesIO()
    soundfile.write(file, 0.2 * np.sign(np.sin(np.arange(int(length * 16_000)) / 20)), 16_000, format="WAV")
    return file.getvalue()


def until(come_true: Callable[[], Any]) -> Any:
    end = time.monotonic() + PATIENCE
    while not (value := come_true()):
        assert time.monotonic() < end, "never came true"
        time.sleep(0.05)
    return value


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """The app with the weights of the real vocabulary, whose answers end only where they are told to."""
    folder = tmp_path_factory.mktemp("truevocab")
    started = App(folder, *write(folder, "truevocab"), "--offline", "--cache", str(folder / "store"))
    yield started
    started.stop()
    assert "Traceback" not in started.log()


@pytest.fixture
def http(endless: App) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=endless.url, timeout=PATIENCE) as client:
        yield client


def ask(http: httpx.Client, **more: Any) -> httpx.Response:
    return http.post("chat", json={"audio": as_base64(QUESTION.read_bytes()), "max_tokens": 60, **more})


def state(http: httpx.Client) -> str:
    event = http.post("gradio_api/call/models", json={"data": []}).json()["event_id"]
    told = http.get(f"gradio_api/call/models/{event}").text
    models = json.loads(next(line for line in told.splitlines() if line.startswith("data:"))[5:])[0]
    return next(model["state"] for model in models if model["id"] == "mini-omni")


# --- endpoints --------------------------------------------------------------------------------------------------------


def test_speech_and_text_in_speech_and_text_out(endless: App):
    parley = Client(endless.url, verbose=False)
    told: dict[str, Any] = {"model": "mini-omni", "max_new_tokens": 60, "seed": 5, "api_name": "/live_reply"}
    for given, speaks, task in (
        ({"audio": handle_file(QUESTION)}, True, "A1A2_batch"),
        ({"audio": handle_file(QUESTION)}, False, "A1T2"),
        ({"text": "How are you?"}, True, "T1A2"),
        ({"text": "How are you?"}, False, "T1T2"),
    ):
        text, wav, stats = parley.predict(**given, **told, speak=speaks)
        assert stats["task"] == task
        assert (stats["model"], stats["device"], stats["precision"], stats["seed"]) == ("Mini-Omni", "cpu", "int8", 5)
        assert stats["history"][-1] == {"role": "assistant", "text": text}
        assert "<|" not in text
        if "audio" in given:
            assert stats.get("heard") is not None
        if speaks:
            samples, rate = soundfile.read(wav)
            assert rate == 24_000 and len(samples) % 2048 == 0 and np.abs(samples).max() > 0
            assert stats["rtf"] > 0 and len(samples) / rate == pytest.approx(stats["audio_s"], abs=0.001)
        else:
            assert wav is None


def test_understanding_in_text(endless: App):
    parley = Client(endless.url, verbose=False)
    told: dict[str, Any] = {"model": "mini-omni", "max_new_tokens": 20, "api_name": "/understand"}
    for task, kind in (("transcribe_en", "A1T1"), ("answer", "A1T2")):
        _, wav, stats = parley.predict(handle_file(QUESTION), task=task, **told)
        assert (stats["task"], wav) == (kind, None)
    with pytest.raises(AppError, match="cannot do “speaker”; it does: transcribe_en, answer"):
        parley.predict(handle_file(QUESTION), task="speaker", **told)


def test_the_fast_encoder_is_the_default_on_a_cpu_and_can_be_refused(endless: App):
    parley = Client(endless.url, verbose=False)

    def said(**more: Any) -> bytes:
        told: dict[str, Any] = {"model": "mini-omni", "max_new_tokens": 40, "seed": 1, "api_name": "/live_reply"}
        return Path(parley.predict(handle_file(QUESTION), **told, **more)[1]).read_bytes()

    assert said() == said(fast_encoder=True)
    assert said(fast_encoder=False) == said(fast_encoder=False)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        ({"text": "hi", "language": "zh"}, "does not speak “zh”"),
        ({"text": "你好"}, "does not speak “zh”"),
        ({"text": "hi", "audio": handle_file(QUESTION)}, "not both at once"),
    ],
)
def test_what_it_does_not_speak_is_said(endless: App, call: dict[str, Any], sentence: str):
    with pytest.raises(AppError, match=sentence):
        Client(endless.url, verbose=False).predict(**call, model="mini-omni", api_name="/live_reply")


# --- POST /chat -------------------------------------------------------------------------------------------------------


def test_chat_streams_while_the_answer_is_made(http: httpx.Client):
    body = {"audio": as_base64(QUESTION.read_bytes()), "stream_stride": 4, "max_tokens": 2048}
    with http.stream("POST", "chat", json=body) as answer:
        assert answer.status_code == 200
        assert "content-length" not in answer.headers
        first = next(chunks := answer.iter_raw())
        assert len(first) == 4 * FRAME_BYTES
        assert state(http) == "answering", "this is 170 s of sound, and hardly begun"
        assert len(next(chunks)) == 4 * FRAME_BYTES
    until(lambda: state(http) == "ready")  # the client has gone: the model stops
    assert ask(http).status_code == 200


def test_chat_answers_as_the_app_does(http: httpx.Client, endless: App):
    told: dict[str, Any] = {"model": "mini-omni", "max_new_tokens": 60, "seed": 0, "api_name": "/live_reply"}
    _, wav, _ = Client(endless.url, verbose=False).predict(handle_file(QUESTION), **told)
    pcm, _ = soundfile.read(wav, dtype="int16")
    assert ask(http).content == pcm.astype("<i2").tobytes()


def test_every_stride_gives_the_same_bytes(http: httpx.Client):
    whole = ask(http).content
    assert len(whole) % FRAME_BYTES == 0 and len(whole) > 40 * FRAME_BYTES
    for stride in (1, 7, 1000):
        assert ask(http, stream_stride=stride).content == whole


def test_max_tokens_ends_the_answer(http: httpx.Client):
    short, long = (len(ask(http, max_tokens=tokens).content) // FRAME_BYTES for tokens in (20, 40))
    assert long - short == 20, "a frame for every column"


def test_two_clients_at_once_get_the_bytes_that_each_gets_alone(http: httpx.Client):
    clips = [(GOLDEN / "wav" / f"{name}.wav").read_bytes() for name in ("w0", "w1", "w4")]
    questions = [{"audio": as_base64(wav), "max_tokens": 50} for wav in clips]
    alone = [http.post("chat", json=question).content for question in questions]
    assert len(set(alone)) == len(alone)
    with ThreadPoolExecutor(2 * len(questions)) as people:
        together = list(people.map(lambda question: http.post("chat", json=question).content, 2 * questions))
    assert together == 2 * alone


@pytest.mark.parametrize(("length", "sentence"), [(31.0, "at most 30 s"), (0.1, "0.1 s long; at least")])
def test_clips_that_are_too_long_or_too_short(http: httpx.Client, endless: App, tmp_path: Path, length, sentence):
    answer = http.post("chat", json={"audio": as_base64(clip(length))})
    assert (answer.status_code, sentence in answer.json()["detail"]) == (400, True)
    path = tmp_path / "clip.wav"
    path.write_bytes(clip(length))
    with pytest.raises(AppError, match=sentence):
        Client(endless.url, verbose=False).predict(handle_file(path), model="mini-omni", api_name="/live_reply")
    told = {"task": "answer", "model": "mini-omni", "api_name": "/understand"}
    with pytest.raises(AppError, match=sentence):
        Client(endless.url, verbose=False).predict(handle_file(path), **told)


def test_thirty_seconds_are_taken(http: httpx.Client):
    answer = http.post("chat", json={"audio": as_base64(clip(30.0)), "max_tokens": 30})
    assert answer.status_code == 200 and len(answer.content) > 4 * FRAME_BYTES


def test_nothing_of_a_question_stays_on_disk(http: httpx.Client, endless: App):
    before = sorted(endless.uploads.rglob("*"))
    assert ask(http).status_code == 200
    assert sorted(endless.uploads.rglob("*")) == before


def test_a_cancelled_call_of_an_endpoint_frees_the_model(http: httpx.Client, endless: App):
    told: dict[str, Any] = {"model": "mini-omni", "api_name": "/live_reply"}
    job = Client(endless.url, verbose=False).submit(handle_file(QUESTION), **told)
    until(job.outputs)
    job.cancel()
    until(lambda: state(http) == "ready")


# --- faults -----------------------------------------------------------------------------------------------------------


def test_a_wrong_checkpoint_and_missing_weights_and_a_password(tmp_path: Path):
    """One app after the other: what is off is said by name, over HTTP and in the app, and nothing else breaks."""
    options = write(tmp_path / "made", "tiny")
    model, snac = tmp_path / "made" / "mini-omni", tmp_path / "made" / "snac-24khz"
    question = {"audio": as_base64(clip(1.0))}
    closed = ("--offline", "--cache", str(tmp_path / "store"))

    for folder in (tmp_path / "cut", tmp_path / "missing"):
        folder.mkdir()
    whole = (model / "lit_model.pth").read_bytes()
    (model / "lit_model.pth").write_bytes(whole[: len(whole) // 2])
    app = App(tmp_path / "cut", *options, *closed, "--auth", "ada:lovelace")
    try:
        assert httpx.post(f"{app.url}chat", json=question).status_code == 401
        answer = httpx.post(f"{app.url}chat", json=question, auth=("ada", "lovelace"), timeout=PATIENCE)
        assert (answer.status_code, answer.json()["code"]) == (503, "checkpoint_wrong")
        assert "lit_model.pth is not what the model needs" in answer.json()["detail"]
        with httpx.Client(base_url=app.url) as browser:
            assert browser.post("login", data={"username": "ada", "password": "lovelace"}).status_code == 200
            assert browser.post("chat", json=question, timeout=PATIENCE).status_code == 503, "Gradio's login counts"
        (model / "lit_model.pth").write_bytes(whole)
        answer = httpx.post(f"{app.url}chat", json=question, auth=("ada", "lovelace"), timeout=PATIENCE)
        assert answer.status_code == 200, "once it is mended, the next call loads it"
    finally:
        app.stop()

    shutil.rmtree(snac)
    options = options[: options.index("--model-folder", 4)]
    app = App(tmp_path / "missing", *options, *closed)
    try:
        answer = httpx.post(f"{app.url}chat", json=question)
        assert (answer.status_code, answer.json()["code"]) == (503, "chat_not_installed")
        assert "SNAC 24 kHz missing" in answer.json()["detail"]
        with pytest.raises(AppError, match=r"SNAC 24 kHz .* is not on this machine, and Parley runs offline"):
            Client(app.url, verbose=False).predict(text="hi", model="mini-omni", api_name="/live_reply")
        assert "Traceback" not in app.log()
    finally:
        app.stop()


# --- Live chat in Chromium --------------------------------------------------------------------------------------------

MICROPHONE_RATE = 48_000  # Hz; Chromium's fake device takes no less
LIVE_PLAYER = "[...window.parleyPlayers.players].find(player => player.mic)"
FLAGS = [
    *CHROMIUM_FLAGS,
    "--autoplay-policy=no-user-gesture-required",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
]


@pytest.fixture
def speaking(tmp_path: Path) -> Path:
    """A wav with 2 s of speech after 1.5 s, then silence for longer than any test takes."""
    import soxr

    speech, rate = soundfile.read(ROOT / "assets" / "examples" / "question_en.ogg", dtype="float32")
    silence = np.zeros(rate, np.float32)
    speech = np.concatenate([silence, silence[: rate // 2], speech[: 2 * rate], np.tile(silence, 300)])
    path = tmp_path / "microphone.wav"
    soundfile.write(path, soxr.resample(speech, rate, MICROPHONE_RATE), MICROPHONE_RATE, subtype="PCM_16")
    return path


@pytest.fixture
def chromium(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Opens a tab of an app with Mini-Omni chosen, in Chromium with these further flags."""
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        errors: list[str] = []

        def opened(app: App, name: str, *more: str) -> Any:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, *more])
            request.addfinalizer(browser.close)
            page = browser.new_page(viewport={"width": 1280, "height": 1000})
            page.set_default_timeout(1000 * PATIENCE)
            nonlocal errors
            errors = errors_of(page)
            page.goto(f"{app.url}?language=en")
            page.get_by_role("tab", name=say(f"{name.replace('-', '_')}.title")).click()
            tab = page.locator(f"#parley-{name}")
            if name == "live-chat":
                tab.get_by_text(say("live_chat.settings")).click()
            tab.locator(f"input[aria-label='{say('page.model')}']").click()
            page.locator("ul[role=listbox] li:visible", has_text="Mini-Omni").click()
            tab.get_by_text("Mini-Omni: English").locator("visible=true").wait_for()
            return page

        yield opened
        assert not errors


@pytest.mark.browser
def test_live_chat_hears_and_answers_aloud(speaking: Path, tmp_path: Path, chromium: Callable[..., Any]):
    app = App(tmp_path, *write(tmp_path / "made", "tiny"), "--offline", "--cache", str(tmp_path / "store"))
    try:
        page = chromium(app, "live-chat", f"--use-file-for-fake-audio-capture={speaking}%noloop")
        tab = page.locator("#parley-live-chat")
        tab.locator("#parley-live-voice").wait_for(state="hidden")
        tab.get_by_text(say("page.fast_encoder"), exact=True).wait_for()
        page.click("#parley-live [data-part=button]")

        page.wait_for_function(f"() => {LIVE_PLAYER}.stats.chunks > 0")
        tab.locator("[data-after-speech]").wait_for()
        page.wait_for_function(f"() => {LIVE_PLAYER}.state === 'idle'")
        stats = page.evaluate(f"() => {LIVE_PLAYER}.stats")
        assert stats["rate"] == 24_000 and stats["samples"] > 4 * 2048
        assert (stats["gaps"], stats["underruns"]) == (0, 0), "playback never starves"
        first = page.locator("#parley-live-transcript .message").first
        assert first.inner_text(), "the person's turn stands there, whatever random weights make of it"
        assert "Mini-Omni · cpu · int8" in tab.locator(".parley-figures").all_inner_texts()[-1]

        tab.get_by_text(say("live_chat.answers_text"), exact=True).click()
        page.fill("#parley-live-text textarea", "Tell me a story.")
        page.keyboard.press("Enter")
        page.locator("#parley-live-transcript .message", has_text="Tell me a story.").wait_for()
        page.wait_for_function(f"() => {LIVE_PLAYER}.state === 'idle' && !{LIVE_PLAYER}.stats.chunks")
        assert "Traceback" not in app.log()
    finally:
        app.stop()


@pytest.mark.browser
def test_an_interruption_stops_the_model(endless: App, http: httpx.Client, chromium: Callable[..., Any]):
    page = chromium(endless, "live-chat")
    page.fill("#parley-live-text textarea", "Tell me a story without end.")
    page.keyboard.press("Enter")
    page.wait_for_function(f"() => {LIVE_PLAYER}.state === 'playing'")
    assert state(http) == "answering"
    page.locator("#parley-live-transcript").click()  # out of the text box
    page.keyboard.press("Escape")
    page.wait_for_function(f"() => {LIVE_PLAYER}.stats.silencedAt !== null")
    until(lambda: state(http) == "ready")
    made = page.evaluate(f"() => {LIVE_PLAYER}.stats.samples") / 24_000
    assert made < 100, "of 170 s that it would have gone on for"
    messages = page.locator("#parley-live-transcript .message").all_inner_texts()
    assert messages[0] == "Tell me a story without end."


@pytest.mark.browser
def test_understanding_offers_what_it_can_do(endless: App, chromium: Callable[..., Any]):
    page = chromium(endless, "understanding")
    tab, tasks = page.locator("#parley-understanding"), page.locator("#parley-understanding-task label")
    tab.get_by_text(say("understanding.speaker"), exact=True).wait_for(state="detached")
    served = [say("understanding.transcribe_en"), say("understanding.answer")]
    assert [text.strip() for text in tasks.all_inner_texts()] == served
    tab.get_by_text(say("understanding.aloud")).wait_for(state="hidden")
    tab.get_by_role("button", name=say("understanding.transcribe_en")).first.click()  # an example
    tab.locator(".parley-figures").wait_for()
    assert "Mini-Omni · cpu · int8" in tab.locator(".parley-figures").inner_text()
    assert tab.get_by_role("button", name=say("understanding.speaker")).count() == 0, "an example of another task"
