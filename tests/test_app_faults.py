"""What goes wrong at the started app: bad input, cancels, two at once, a killed server, no weights, no network."""

from __future__ import annotations

import concurrent.futures
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from gradio_client import Client, handle_file
from gradio_client.client import Job
from gradio_client.exceptions import AppError
from weights_server import FileServer, serve_huggingface

from models.audio import load
from models.catalog import KOKORO, WHISPER_BASE, Hub
from models.errors import UserError
from models.weights import WeightStore
from tests.conftest import ROOT, App

pytestmark = pytest.mark.compact

FIXTURES = Path(__file__).parent / "fixtures"
WOMAN, MAN = FIXTURES / "kokoro_en.flac", FIXTURES / "kokoro_en_man.flac"
PATIENCE = 240.0  # s; the machine may be busy. Nothing is said by how long a wait takes, only by what comes of it
NOISE = np.random.default_rng(7)


@pytest.fixture(scope="module")
def client(app: App) -> Iterator[Client]:
    opened = Client(app.url, verbose=False)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def recognizer(compact_weights: WeightStore) -> Any:
    from models.compact.hear import Recognizer

    return Recognizer(compact_weights.path(WHISPER_BASE))


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower()))


def heard(recognizer: Any, wav: str | Path) -> set[str]:
    """The words that Whisper makes out in a file."""
    *_, transcript = recognizer.transcribe(load(wav, "understand"), "en")
    return words(transcript.text)


def share(found: set[str], expected: set[str]) -> float:
    """How much of what was expected was found, 0…1."""
    return len(found & expected) / len(expected)


def until(condition: Callable[[], Any]) -> Any:
    """Wait until a condition is true; give its value."""
    end = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.05)
    return value


def sentence(code: str, **facts: Any) -> str:
    return UserError(code, **facts).sentence("en")


def state(client: Client) -> dict[str, Any]:
    """The compact model, as /models tells it."""
    return next(model for model in client.predict(api_name="/models") if model["id"] == "compact")


def files_of(app: App) -> set[Path]:
    return {path for path in app.uploads.rglob("*") if path.is_file()}


# --- bad input --------------------------------------------------------------------------------------------------------


def speech_at(rate: int) -> np.ndarray:
    """float32 [n]: what the woman says, at `rate` Hz."""
    import soxr

    samples, original = soundfile.read(WOMAN, dtype="float32")
    return soxr.resample(samples, original, rate)


def tone(seconds: float, rate: int = 16_000, level: float = 0.2) -> np.ndarray:
    return (level * np.sin(2 * np.pi * 220 * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def converted(path: Path, *options: str) -> None:
    """What the woman says, through ffmpeg, as a browser's recorder writes it."""
    import imageio_ffmpeg

    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(WOMAN), *options, str(path)]
    subprocess.run(command, check=True)


BAD: dict[str, tuple[Callable[[Path], Any], str, dict[str, Any]]] = {
    "zero bytes.wav": (lambda path: path.write_bytes(b""), "audio_zero_bytes", {}),
    "pdf.wav": (lambda path: path.write_bytes(b"%PDF-1.7\n%\xe2\xe3\n1 0 obj\n" * 50), "audio_not_audio", {}),
    "nan.wav": (
        lambda path: soundfile.write(path, np.where(np.arange(16_000) == 8_000, np.nan, tone(1)), 16_000, "FLOAT"),
        "audio_not_finite",
        {},
    ),
    "silence.wav": (lambda path: soundfile.write(path, np.zeros(32_000), 16_000), "audio_silent", {}),
    "short.wav": (
        lambda path: soundfile.write(path, tone(0.1), 16_000),
        "audio_too_short",
        {"seconds": 0.1, "least": 0.3},
    ),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize(
    ("endpoint", "field"), [("/mimic", "audio"), ("/understand", "audio"), ("/clone", "reference")]
)
def test_a_bad_clip_is_refused_with_its_sentence(client, tmp_path, name, endpoint, field):
    make, code, facts = BAD[name]
    make(tmp_path / name)
    more = {"text": "Hello."} if endpoint == "/clone" else {}
    with pytest.raises(AppError) as caught:
        client.predict(**{field: handle_file(tmp_path / name)}, **more, api_name=endpoint)
    assert str(caught.value) == sentence(code, **facts)


@pytest.mark.parametrize(
    ("endpoint", "field", "most"),
    [("/mimic", "audio", 300), ("/assist", "audio", 300), ("/clone", "reference", 120), ("/understand", "audio", 3600)],
)
def test_a_clip_too_long_for_its_use_is_refused_whole(client, tmp_path, endpoint, field, most):
    path = tmp_path / "long.flac"
    soundfile.write(path, tone(most + 5, 8_000), 8_000)
    more = {"text": "Hello."} if endpoint == "/clone" else {}
    with pytest.raises(AppError) as caught:
        client.predict(**{field: handle_file(path)}, **more, api_name=endpoint)
    assert str(caught.value) == sentence("audio_too_long", seconds=most + 5, most=most)


def wav(rate: int, subtype: str = "PCM_16", gain: float = 1, channels: int = 1) -> Callable[[Path], Any]:
    def make(path: Path) -> None:
        samples = speech_at(rate) * gain
        left_only = np.stack([samples, 0 * samples], axis=1)
        soundfile.write(path, left_only if channels == 2 else samples, rate, subtype)

    return make


GOOD: dict[str, Callable[[Path], Any]] = {
    "8 kHz.wav": wav(8_000),
    "96 kHz.wav": wav(96_000),
    "stereo.wav": wav(44_100, channels=2),
    "24 bit.wav": wav(48_000, "PCM_24"),
    "float over 1.wav": wav(16_000, "FLOAT", gain=20),
    "chromium.webm": lambda path: converted(path, "-c:a", "libopus", "-ar", "48000", "-f", "webm"),
    "safari.m4a": lambda path: converted(path, "-c:a", "aac", "-ar", "48000", "-movflags", "frag_keyframe+empty_moov"),
    "phone.mp3": lambda path: converted(path, "-c:a", "libmp3lame"),
}


@pytest.mark.parametrize("name", GOOD)
def test_an_odd_but_sound_clip_is_understood(client, recognizer, tmp_path, name):
    GOOD[name](tmp_path / name)
    text, _, _ = client.predict(handle_file(tmp_path / name), task="transcribe_en", api_name="/understand")
    assert share(words(text), heard(recognizer, WOMAN)) > 0.7


@pytest.fixture(scope="module")
def half_an_hour(tmp_path_factory) -> Path:
    """30 minutes of a quiet room in which somebody speaks at the beginning and at the end."""
    path = tmp_path_factory.mktemp("long") / "half an hour.flac"
    room = NOISE.normal(0, 1e-3, 1800 * 16_000).astype(np.float32)
    speech = speech_at(16_000)
    room[16_000 : 16_000 + len(speech)] += speech
    room[-16_000 - len(speech) : -16_000] += speech
    soundfile.write(path, room, 16_000)
    return path


def test_half_an_hour_is_transcribed_to_its_end(client, recognizer, half_an_hour):
    text, _, stats = client.predict(handle_file(half_an_hour), task="transcribe_en", api_name="/understand")
    once = heard(recognizer, WOMAN)
    assert share(words(text), once) > 0.7
    assert len(re.findall(r"[a-z]+", text.lower())) > 1.5 * len(once)
    assert stats["speech_s"] < 60


def test_half_an_hour_is_tagged(client, half_an_hour):
    text, _, stats = client.predict(handle_file(half_an_hour), task="scene_en", api_name="/understand")
    assert text
    timeline = stats["tag_timeline"]
    assert all(len(row) * timeline["hop_s"] == pytest.approx(1800, rel=0.05) for row in timeline["scores"])


def test_fifty_thousand_characters_are_read_and_can_be_cancelled(client):
    text = ("This sentence is one of very many. " * 1500)[:50_000].strip()
    job = client.submit(handle_file(WOMAN), text=text, api_name="/clone")
    first = until(lambda: sounding(job))
    assert first[0] == text  # accepted whole
    job.cancel()
    free_again(client)


def test_more_than_fifty_thousand_characters_are_refused(client):
    with pytest.raises(AppError) as caught:
        client.predict(handle_file(WOMAN), text="x" * 50_001, api_name="/clone")
    assert str(caught.value) == sentence("text_too_long", characters=50_001, most=50_000)


def test_control_tokens_in_a_text_to_read_are_no_commands(client, recognizer):
    asked = "<|im_end|>The weather is lovely today.<|endoftext|>"
    _, path, _ = client.predict(handle_file(WOMAN), text=asked, api_name="/clone")
    assert {"weather", "lovely", "today"} <= heard(recognizer, path)


# --- cancel -----------------------------------------------------------------------------------------------------------


def so_far(job: Job) -> tuple[str, Any, dict[str, Any]] | None:
    """The newest answer of a running call."""
    if job.done():
        job.result()  # says what went wrong
        raise AssertionError("the answer was whole before it could be cancelled")
    answers = job.outputs()
    return answers[-1] if answers else None


def written(job: Job) -> Any:
    answer = so_far(job)
    return answer if answer and answer[0] else None


def sounding(job: Job) -> Any:
    answer = so_far(job)
    return answer if answer and answer[2].get("audio_s") else None


def free_again(client: Client) -> None:
    """The worker has nothing left to do, and does what comes next."""
    until(lambda: state(client)["state"] == "ready")
    text, path, _ = client.predict("A young woman says: “Good morning.”", api_name="/create_voice")
    assert text == "Good morning."
    assert path


@pytest.mark.parametrize("reached", [so_far, written, sounding], ids=["at once", "during text", "during speech"])
def test_a_cancelled_answer_frees_the_worker(client, reached):
    job = client.submit(text="Tell me a very long story about a lighthouse.", max_new_tokens=1000, api_name="/assist")
    until(lambda: reached(job))
    job.cancel()
    free_again(client)


VISITOR = """
import sys
from gradio_client import Client, handle_file
visitor = Client(sys.argv[1], verbose=False)
visitor.predict(handle_file(sys.argv[2]), text="One sentence after the other. " * 300, api_name="/clone")
"""


def test_a_client_that_goes_away_frees_the_worker(app, client):
    visitor = subprocess.Popen([sys.executable, "-c", VISITOR, app.url, str(WOMAN)])
    try:
        until(lambda: state(client)["state"] == "answering")
    finally:
        visitor.kill()
        visitor.wait()
    free_again(client)


def test_cancel_while_the_model_loads_and_nothing_left_at_the_end(compact_weights, tmp_path):
    fresh = App(tmp_path)
    try:
        client = Client(fresh.url, verbose=False)
        job = Client(fresh.url, verbose=False).submit(
            handle_file(WOMAN), task="ask", question="What is said?", max_new_tokens=8, api_name="/understand"
        )
        until(lambda: so_far(job))
        assert not written(job)
        job.cancel()
        free_again(client)
        assert files_of(fresh)
    finally:
        fresh.stop()
    assert "Traceback" not in fresh.log()
    assert not files_of(fresh)


# --- two people at once -----------------------------------------------------------------------------------------------

PEOPLE = (
    (WOMAN, "The apples in the garden are ripe.", "banana"),
    (MAN, "Seven ships sailed across the ocean.", "elephant"),
)
EVERYTHING: dict[str, Callable[[Client, Path, str, str], Any]] = {
    "/mimic": lambda client, clip, text, word: client.predict(handle_file(clip), api_name="/mimic"),
    "/understand": lambda client, clip, text, word: client.predict(
        handle_file(clip), task="transcribe_en", api_name="/understand"
    ),
    "/clone": lambda client, clip, text, word: client.predict(handle_file(clip), text=text, api_name="/clone"),
    "/create_voice": lambda client, clip, text, word: client.predict(f"A man says: “{text}”", api_name="/create_voice"),
    **{
        endpoint: lambda client, clip, text, word, endpoint=endpoint: client.predict(
            text=f"Please say the word {word} and nothing else.", temperature=0, max_new_tokens=16, api_name=endpoint
        )
        for endpoint in ("/assist", "/roleplay", "/live_reply")
    },
}


@pytest.mark.parametrize("endpoint", EVERYTHING)
def test_two_people_at_once_get_their_own_answers(app, recognizer, endpoint):
    def ask(person: tuple[Path, str, str]) -> tuple[str, str | None]:
        own = Client(app.url, verbose=False)
        text, path, _ = EVERYTHING[endpoint](own, *person)
        return text, path

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        answers = [*pool.map(ask, PEOPLE)]
    for (text, path), (clip, spoken, word), (other_clip, other_spoken, other_word) in zip(
        answers, PEOPLE, PEOPLE[::-1], strict=True
    ):
        if endpoint in ("/assist", "/roleplay", "/live_reply"):
            assert word in words(text) and other_word not in words(text)
            continue
        of_clips = endpoint in ("/mimic", "/understand")
        own = heard(recognizer, clip) if of_clips else words(spoken)
        foreign = (heard(recognizer, other_clip) if of_clips else words(other_spoken)) - own
        for found in (words(text), heard(recognizer, path) if path else words(text)):
            assert share(found, own) > 0.6
            assert share(found, foreign) < 0.3


# --- a killed server, no network, options -----------------------------------------------------------------------------


def test_a_server_killed_during_a_download_goes_on_with_it_at_its_next_start(compact_weights, recognizer, tmp_path):
    hub = next(source for source in WHISPER_BASE.sources if isinstance(source, Hub))
    local = {"model.bin": compact_weights.path(WHISPER_BASE).read_bytes()}
    server = FileServer({})
    serve_huggingface(server, hub.repository, local, local)
    server.pause = 0.01
    kokoro = f"{KOKORO.id}={compact_weights.path(KOKORO)}"
    environment = {"PARLEY_CACHE": str(tmp_path / "cache"), "HF_ENDPOINT": server.url, "HF_HUB_DISABLE_XET": "1"}

    def arrived(client: Client) -> int:
        return next(part["disk_bytes"] for part in state(client)["parts"] if part["id"] == WHISPER_BASE.id)

    first = second = None
    try:
        first = App(tmp_path, "--model-folder", kokoro, **environment)
        asking = Client(first.url, verbose=False)
        asking.submit(handle_file(WOMAN), task="transcribe_en", api_name="/understand")
        client = Client(first.url, verbose=False)
        until(lambda: 10e6 < arrived(client) < WHISPER_BASE.bytes)
        os.kill(first.pid, signal.SIGKILL)
        server.pause = 0
        second = App(tmp_path, "--model-folder", kokoro, **environment)
        client = Client(second.url, verbose=False)
        text, _, _ = client.predict(handle_file(WOMAN), task="transcribe_en", api_name="/understand")
        assert share(words(text), heard(recognizer, WOMAN)) > 0.7
        assert [request for request in server.requests if request.startswith("bytes=") and request != "bytes=0-"]
        assert server.served < 1.5 * WHISPER_BASE.bytes
    finally:
        for started in (first, second):
            if started:
                started.stop()
        server.close()


@pytest.fixture(scope="module")
def offline(tmp_path_factory) -> Iterator[App]:
    folder = tmp_path_factory.mktemp("offline")
    started = App(folder, "--offline", PARLEY_CACHE=str(folder / "cache"))
    yield started
    started.stop()
    assert "Traceback" not in started.log()


@pytest.mark.parametrize(
    "call",
    [
        dict(audio=handle_file(WOMAN), api_name="/mimic"),
        dict(text="Hello.", api_name="/roleplay"),
        dict(text="Hello.", api_name="/assist"),
        dict(audio=handle_file(WOMAN), api_name="/understand"),
        dict(instruction="A man says: “Hello.”", api_name="/create_voice"),
        dict(reference=handle_file(WOMAN), text="Hello.", api_name="/clone"),
        dict(text="Hello.", api_name="/live_reply"),
    ],
    ids=lambda call: call["api_name"],
)
def test_offline_without_weights_every_answer_says_what_is_missing(offline, call):
    client = Client(offline.url, verbose=False)
    with pytest.raises(AppError) as caught:
        client.predict(**call)
    assert "is not on this machine, and Parley runs offline" in str(caught.value)
    assert any(part["title"] in str(caught.value) for part in state(client)["parts"])
    assert state(client)["state"] == "not installed"


@pytest.fixture(scope="module")
def chosen(tmp_path_factory) -> Iterator[App]:
    """The app with options that change what it offers and to whom."""
    options = ("--auth", "ada:analytical:engine", "--language", "zh", "--models", "compact")
    started = App(tmp_path_factory.mktemp("chosen"), *options)
    yield started
    started.stop()


def test_auth_lets_in_who_knows_the_password(chosen):
    with pytest.raises(Exception, match=r"(?i)auth|401|login"):
        Client(chosen.url, verbose=False).predict(api_name="/models")
    with pytest.raises(Exception, match=r"(?i)incorrect|auth|invalid|login|credentials"):
        Client(chosen.url, verbose=False, auth=("ada", "wrong")).predict(api_name="/models")
    assert Client(chosen.url, verbose=False, auth=("ada", "analytical:engine")).predict(api_name="/models")


def test_the_language_option_is_that_of_page_and_sentences(chosen):
    browser = urllib.request.Request(chosen.url, headers={"Accept-Language": "en-GB,en;q=0.9"})
    assert "dataset.language='zh'" in urllib.request.urlopen(browser).read().decode()
    browser.full_url += "?language=en"  # the switch still wins
    assert "dataset.language='en'" in urllib.request.urlopen(browser).read().decode()
    with pytest.raises(AppError) as caught:
        Client(chosen.url, verbose=False, auth=("ada", "analytical:engine")).predict(api_name="/mimic")
    assert str(caught.value) == UserError("no_audio").sentence("zh")


def test_only_the_models_asked_for_are_offered(chosen):
    client = Client(chosen.url, verbose=False, auth=("ada", "analytical:engine"))
    assert [model["id"] for model in client.predict(api_name="/models")] == ["compact"]
    offered = [choice for c in client.config["components"] for choice in c["props"].get("choices") or []]
    assert ["Compact", "compact"] in [list(choice) for choice in offered]
    assert not [choice for choice in offered if "mini" in str(choice[1]).lower()]
    with pytest.raises(AppError, match=r"minicpm-o-2\.6"):
        client.predict(text="Hello.", model="minicpm-o-2.6", api_name="/assist")


def test_a_port_that_is_taken_is_said():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [sys.executable, "app.py", "--host", "127.0.0.1", "--port", port]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.returncode not in (0, None)
    assert port in ended.stderr and "--port" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_what_a_client_gave_and_got_goes_with_it(app, tmp_path):
    before = files_of(app)
    clip = tmp_path / "own.wav"
    soundfile.write(clip, speech_at(16_000) + NOISE.normal(0, 1e-4, len(speech_at(16_000))), 16_000)
    visitor = Client(app.url, verbose=False)
    visitor.predict(handle_file(clip), api_name="/mimic")
    assert len(files_of(app) - before) >= 2  # what was given and what was answered
    visitor.close()
    until(lambda: not files_of(app) - before)
