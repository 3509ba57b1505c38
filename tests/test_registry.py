"""Models load on first use, make room for each other, fail alone, and say what is going on."""

import hashlib
import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pytest
import tone_model
from tone_model import ask, new
from weights_server import FileServer

from models import devices, meter, registry, zerogpu
from models.capabilities import (
    PHASES,
    AudioChunk,
    Capability,
    Stats,
    Status,
    TextDelta,
    UnderstandRequest,
    UnderstandTask,
    Waveform,
)
from models.catalog import Release, Weights
from models.devices import Device
from models.errors import UserError
from models.registry import Registry
from models.weights import WeightStore

CPU = Device("cpu", "CPU, 2 cores", 100)
CLIP = Waveform(np.zeros(200, np.float32), 100)


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine with one small CPU; `room` is 85 of its 100 bytes. Gives the list of its devices, to change."""
    there = [CPU]
    monkeypatch.setattr(devices, "devices", lambda: tuple(there))
    return there


@pytest.fixture
def house(tmp_path):
    """Make registries over tone models; they are closed behind the test."""
    made = []

    def make(*specs, **settings):
        made.append(Registry(WeightStore(tmp_path / "store", offline=True), specs, **settings))
        return made[-1]

    yield make
    for log in tone_model.LOGS.values():
        log.may_load.set()
        log.go.set()
    for each in made:
        each.close()


def stats(events) -> dict:
    merged: dict = {}
    for event in events:
        if isinstance(event, Stats):
            merged.update(event.values)
    return merged


def words(events) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def until(events, kind, phase=""):
    return next(
        e for e in events if isinstance(e, kind) and (not phase or (isinstance(e, Status) and e.phase == phase))
    )


def test_a_model_loads_on_first_use_and_stays(house):
    spec, log = new("one")
    one = house(spec)
    assert (one.status_of("one")["state"], log.loads) == ("installed", [])
    assert words(one.stream("one", ask("a b"))) == "a b "
    assert words(one.stream("auto", ask("c"))) == "c "
    assert log.loads == [("cpu", "fp32")]
    assert one.status_of("one")["state"] == "ready"


def test_simultaneous_first_uses_load_once_and_get_their_own_answers(house):
    spec, log = new("one", at_once=3)
    log.may_load.clear()
    one = house(spec)
    streams = [one.stream("one", ask(word)) for word in ("a", "b", "c", "d", "e")]
    for stream in streams:
        until(stream, Status, "loading")
    assert one.status_of("one")["state"] == "loading"
    log.may_load.set()
    with ThreadPoolExecutor(5) as pool:
        assert list(pool.map(words, streams)) == ["a ", "b ", "c ", "d ", "e "]
    assert len(log.loads) == 1


def test_every_phase_told_is_a_known_one(house):
    spec, _ = new("one")
    events = list(house(spec).stream("one", ask("a")))
    assert {event.phase for event in events if isinstance(event, Status)} <= set(PHASES)
    assert isinstance(events[-1], Stats)


def test_a_failed_load_says_why_and_leaves_everything_usable(house):
    bad, bad_log = new("bad")
    good, _ = new("good")
    both = house(bad, good)

    def broken():
        raise OSError("header too small")

    bad_log.on_load = broken
    for _ in range(2):
        with pytest.raises(UserError, match=r"Bad could not be loaded \(OSError: header too small\)") as caught:
            list(both.stream("bad", ask("a")))
        assert caught.value.code == "load_failed"
    while both.status_of("bad")["state"] != "installed":
        time.sleep(0.001)
    assert "header too small" in both.status_of("bad")["last_error"]
    assert words(both.stream("good", ask("a"))) == "a "
    bad_log.on_load = lambda: None
    assert words(both.stream("bad", ask("a"))) == "a "
    assert both.status_of("bad")["last_error"] is None


def test_a_loader_that_is_not_there_is_a_failed_load(house):
    spec, _ = new("one", loader="models.no_such_module:load")
    with pytest.raises(UserError, match="could not be loaded"):
        list(house(spec).stream("one", ask("a")))


def test_a_requests_error_is_its_own(house):
    spec, log = new("one")
    one = house(spec)
    other = one.stream("one", ask("wait b"))
    until(other, Status, "starting")
    with pytest.raises(ValueError, match="a defect"):
        list(one.stream("one", ask("a crash")))
    log.go.set()
    assert words(other) == "wait b "
    assert len(log.loads) == 1


def test_closing_the_stream_cancels_the_model(house):
    spec, log = new("one", at_once=1)
    one = house(spec)
    stream = one.stream("one", ask("a wait never"))
    until(stream, TextDelta)
    stream.close()
    assert words(one.stream("one", ask("next"))) == "next "
    assert log.closed[0] == ("a wait never", "worker One")
    assert "a wait never/never" not in log.steps


def test_closing_during_load_and_while_waiting(house):
    spec, log = new("one", at_once=1)
    log.may_load.clear()
    one = house(spec)
    loading = one.stream("one", ask("a"))
    until(loading, Status, "loading")
    until(loading, type(None))
    loading.close()
    log.may_load.set()
    busy = one.stream("one", ask("b wait c"))
    until(busy, TextDelta)
    queued = one.stream("one", ask("d"))
    assert until(queued, Status, "queued").facts == {"place": 1}
    queued.close()
    log.go.set()
    assert words(busy) == "wait c "
    assert {step.split("/")[0] for step in log.steps} == {"b wait c"}


def test_unload_gives_back_and_the_next_use_loads_anew(house):
    spec, log = new("one")
    one = house(spec)
    list(one.stream("one", ask("a")))
    assert one.status_of("one")["memory_bytes"] > 0
    one.unload("one")
    assert (one.status_of("one")["state"], one.status_of("one")["memory_bytes"], log.unloads) == ("installed", 0, 1)
    one.unload("one")
    assert words(one.stream("one", ask("b"))) == "b "
    assert len(log.loads) == 2


def test_unload_while_answering_tells_the_reader(house):
    spec, _ = new("one")
    one = house(spec)
    stream = one.stream("one", ask("a wait"))
    until(stream, TextDelta)
    one.unload("one")
    with pytest.raises(UserError, match="One was unloaded while it was answering"):
        list(stream)


def test_the_least_recently_used_idle_model_makes_room(house):
    specs = [new(name, memory=40)[0] for name in ("first", "second", "third")]
    three = house(*specs)  # 85 of 100: two fit
    for name in ("first", "second", "first", "third"):
        assert words(three.stream(name, ask("a"))) == "a "
    states = {name: three.status_of(name)["state"] for name in ("first", "second", "third")}
    assert states == {"first": "ready", "second": "installed", "third": "ready"}
    assert tone_model.LOGS["second"].unloads == 1


def test_a_budget_is_kept(house):
    specs = [new(name, memory=40)[0] for name in ("first", "second")]
    two = house(*specs, memory_budget=50)
    for name in ("first", "second"):
        list(two.stream(name, ask("a")))
    assert two.status_of("first")["state"] == "installed"


def test_a_busy_model_is_waited_for_never_thrown_out(house):
    (first, log), (second, _) = new("first", memory=60), new("second", memory=60)
    both = house(first, second)
    busy = both.stream("first", ask("a wait b"))
    until(busy, TextDelta)
    waiting = both.stream("second", ask("c"))
    assert until(waiting, Status, "waiting_for_memory").facts == {"what": "Second"}
    until(waiting, Status, "waiting_for_memory")
    gave_up = both.stream("second", ask("d"))
    until(gave_up, Status, "waiting_for_memory")
    gave_up.close()
    log.go.set()
    assert words(busy) == "wait b "
    assert words(waiting) == "c "


def test_what_does_not_fit_says_so(house):
    spec, log = new("giant", memory=19 * 10**9)
    small, _ = new("small")
    both = house(spec, small, memory_budget=8 * 10**9)
    with pytest.raises(UserError, match=r"Giant needs about 19 GB of memory and this machine offers 8 GB"):
        list(both.stream("giant", ask("a")))
    assert both.choose("auto", Capability.ASSIST) is small
    assert both.status_of("giant")["obstacle"]["code"] == "model_does_not_fit"
    assert log.loads == []
    with pytest.raises(UserError) as caught:
        list(house(spec).stream("auto", ask("a")))
    assert caught.value.code == "no_model_fits"


def test_an_unknown_model(house):
    both = house(new("one")[0], new("two")[0])
    with pytest.raises(UserError, match="no model called “other”") as caught:
        list(both.stream("other", ask("a")))
    assert caught.value.facts["known"] == "one, two"


def test_auto_prefers_what_is_installed(house, tmp_path):
    (tmp_path / "w").write_bytes(b"weights")
    weights = Weights("w", "W", "MIT", "", "w", 7, hashlib.sha256(b"weights").hexdigest(), ())
    better, _ = new("better", weights=(weights,))
    spec, _ = new("one")
    both = house(better, spec)
    assert both.choose("auto", Capability.ASSIST) is spec
    both.store.local["w"] = tmp_path / "w"
    assert both.choose("auto", Capability.ASSIST) is better
    assert words(both.stream("auto", ask("a"))) == "a "


def test_auto_takes_what_can_do_all_that_is_asked(house):
    english, _ = new("english", longest_s=30, voices=False)
    both_languages, _ = new("both", languages=("en", "zh"))
    two = house(english, both_languages)

    def chosen(**more):
        return two.choose("auto", Capability.LIVE, ask(**{"text": "a", "capability": Capability.LIVE, **more})).id

    assert chosen() == "both", "a model of one language only where the request says that language"
    assert chosen(language="zh") == "both"
    assert chosen(text="你好") == "both"
    assert chosen(language="en") == "english"
    assert chosen(language="en", voice="af_heart") == "both"
    assert chosen(language="en", reference=CLIP) == "both"
    assert chosen(language="en", audio=Waveform(np.zeros(31 * 100, np.float32), 100)) == "both"
    assert house(english).choose("auto", Capability.LIVE, ask("a")) is english, "rather than none"


def test_auto_skips_a_model_that_does_not_serve_the_task(house):
    one, _ = new("one", capabilities=(Capability.UNDERSTAND,), tasks=(UnderstandTask.ANSWER,), languages=("en", "zh"))
    other, _ = new("other", capabilities=(Capability.UNDERSTAND,), languages=("en", "zh"))
    two = house(one, other)

    def chosen(task):
        return two.choose("auto", Capability.UNDERSTAND, UnderstandRequest(audio=CLIP, task=task)).id

    assert (chosen(UnderstandTask.ANSWER), chosen(UnderstandTask.SPEAKER)) == ("one", "other")


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (UnderstandRequest(audio=CLIP, task=UnderstandTask.SPEAKER), "English cannot do “speaker”; it does: answer"),
        (ask("a", capability=Capability.LIVE, language="zh"), "English does not speak “zh”; it speaks: en"),
        (ask("你好", capability=Capability.LIVE), "English does not speak “zh”; it speaks: en"),
        (ask("a", capability=Capability.LIVE, voice="af_heart"), "English has one voice of its own"),
        (ask("", capability=Capability.LIVE, audio=Waveform(np.zeros(3100, np.float32), 100)), "is 31 s long"),
    ],
)
@pytest.mark.parametrize("model", ["english", "auto"])
def test_what_a_model_lacks_is_said_before_it_loads(house, request_, sentence, model):
    abilities = {"capabilities": (Capability.LIVE, Capability.UNDERSTAND), "tasks": (UnderstandTask.ANSWER,)}
    english, log = new("english", longest_s=30, voices=False, **abilities)
    with pytest.raises(UserError, match=re.escape(sentence)) as caught:
        list(house(english).stream(model, request_))
    assert "auto" in str(caught.value)
    assert log.loads == []


def test_a_precision_can_be_asked_for(house, machine):
    machine.insert(0, Device("cuda", "A GPU", 100))
    settings = {
        "precisions": {"cuda": ("bf16",), "cpu": ("int8", "fp32")},
        "memory": {"bf16": 9, "int8": 5, "fp32": 20},
    }
    spec, log = new("one", **settings)
    for wanted in ({}, {"one": "int8"}, {"one": "fp32"}):
        list(house(spec, precision=wanted).stream("one", ask("a")))
    list(house(spec, device="cpu").stream("one", ask("a")))
    assert log.loads == [("cuda", "bf16"), ("cpu", "int8"), ("cpu", "fp32"), ("cpu", "int8")]
    tight = house(spec, precision={"one": "fp32"}, memory_budget=10)
    assert tight.status_of("one")["obstacle"]["code"] == "model_does_not_fit"
    assert tight.status_of("one")["needs_memory_bytes"] == 20


def test_missing_weights_offline_are_said_at_once(house):
    weights = Weights("w", "The weights", "MIT", "", "w", 7, "0" * 64, (Release("https://example.invalid/w"),))
    spec, log = new("one", weights=(weights,))
    one = house(spec)
    for events in (one.stream("one", ask("a")), one.download("one")):
        with pytest.raises(UserError, match="The weights") as caught:
            list(events)
        assert caught.value.code == "weights_offline"
    assert log.loads == []
    assert one.status_of("one")["state"] == "not installed"


def test_missing_weights_name_a_model_that_can_answer_meanwhile(house):
    weights = Weights("w", "The weights", "MIT", "", "w", 7, "0" * 64, (Release("https://example.invalid/w"),))
    spec, _ = new("one", weights=(weights,))
    other, _ = new("other")
    with pytest.raises(UserError) as caught:
        list(house(spec, other).stream("one", ask("a")))
    assert caught.value.code == "weights_offline"
    assert caught.value.sentence("en").endswith(
        "Other is here and can answer meanwhile: choose it, or “auto”, as the model."
    )
    assert caught.value.sentence("zh").startswith(
        "这台机器上没有 The weights"
    ) and "Other 已在本机" in caught.value.sentence("zh")


def test_the_first_use_downloads_with_progress_and_a_closed_one_is_resumed(tmp_path):
    content = bytes(range(256)) * 4096  # 1 MiB
    server = FileServer({"/w": content})
    weights = Weights(
        "w",
        "The weights",
        "MIT",
        "",
        "w",
        len(content),
        hashlib.sha256(content).hexdigest(),
        (Release(f"{server.url}/w"),),
    )
    spec, _ = new("one", weights=(weights,))
    one = Registry(WeightStore(tmp_path), (spec,))
    try:
        server.pause = 0.1  # between blocks of 64 KiB
        given_up = one.stream("one", ask("a"))
        until(given_up, Status, "downloading")
        given_up.close()
        while one.status_of("one")["parts"][0]["progress"]:
            time.sleep(0.01)
        assert one.status_of("one")["state"] == "not installed"
        assert 0 < one.status_of("one")["disk_bytes"] < len(content)
        stream = one.stream("one", ask("a"))
        news = until(stream, Status, "downloading").facts
        assert (news["what"], news["total"]) == ("The weights", len(content))
        server.pause = 0
        assert words(stream) == "a "
        assert server.requests[-1] != "all", "the second download goes on where the first was left"
        assert one.status_of("one")["parts"][0]["installed"]
    finally:
        one.close()
        server.close()


def test_seeds_are_drawn_given_to_the_model_and_given_back(house):
    spec, log = new("one")
    one = house(spec)
    drawn = [stats(one.stream("one", ask("a")))["seed"] for _ in range(3)]
    assert drawn == log.seeds
    assert len(set(drawn)) == 3
    assert all(0 <= seed < 2**31 for seed in drawn)
    fixed = ask("a", sampling=registry.replace(ask("a").sampling, seed=7))
    assert stats(one.stream("one", fixed))["seed"] == 7


def test_the_answers_figures(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(meter.time, "monotonic", lambda: clock[0])
    watch = meter.Meter()
    pcm = tone_model.np.zeros(tone_model.RATE, tone_model.np.int16)
    for at, event in [
        (101, Status("starting")),
        (102, Status("downloading")),
        (105, Status("loading")),
        (106, None),
        (107, Status("starting")),  # five seconds waited in all
        (109, TextDelta("a")),
        (110, AudioChunk(pcm, tone_model.RATE)),
        (111, Status("queued")),
        (112, AudioChunk(pcm, tone_model.RATE)),
        (115, TextDelta("b")),
    ]:
        clock[0] = at
        watch.see(event)
    expected = {"time_to_first_audio_s": 10, "waited_s": 6, "audio_s": 2, "rtf": 3, "total_s": 15}
    assert watch.values() == expected


def test_the_last_event_names_who_answered_and_how(house):
    spec, _ = new("one")
    said = stats(house(spec).stream("one", ask("a b c", sampling=registry.replace(ask("").sampling, seed=3))))
    named = {"model": "One", "device": "cpu", "precision": "fp32", "seed": 3, "words": 3, "audio_s": 0.3}
    assert named.items() <= said.items()
    assert said["time_to_first_audio_s"] is not None
    assert json.loads(json.dumps(said)) == said


def test_load_warms_every_capability(house):
    spec, log = new("one", capabilities=(Capability.ASSIST, Capability.LIVE))
    one = house(spec)
    list(one.load("one"))
    assert (len(log.loads), log.closed[0][0], len(log.closed)) == (1, "", 2)
    assert one.status_of("one")["state"] == "ready"


def test_status_is_json_and_answers_while_everything_happens(house):
    (first, log), (second, _) = new("first"), new("second", memory=10**15)
    log.may_load.clear()
    both = house(first, second)
    stream = both.stream("first", ask("a wait"))
    seen = [both.status()[0]["state"]]
    until(stream, Status, "loading")
    seen.append(both.status()[0]["state"])
    log.may_load.set()
    until(stream, TextDelta)
    seen.append(both.status()[0]["state"])
    log.go.set()
    list(stream)
    assert seen == ["installed", "loading", "answering"]
    told = json.loads(json.dumps(both.status()))
    assert [(each["id"], each["state"]) for each in told] == [("first", "ready"), ("second", "installed")]
    assert told[0]["memory_bytes"] == 1002
    assert told[1]["obstacle"]["code"] == "model_does_not_fit"


def test_a_gpu_is_preferred_and_may_be_refused(house, machine):
    machine.insert(0, Device("cuda", "A GPU", 100))
    spec, log = new("one", precisions={"cuda": ("bf16",), "cpu": ("fp32",)}, memory={"bf16": 10, "fp32": 20})
    assert stats(house(spec).stream("one", ask("a")))["device"] == "cuda"
    assert stats(house(spec, device="cpu").stream("one", ask("a")))["device"] == "cpu"
    assert log.loads == [("cuda", "bf16"), ("cpu", "fp32")]


def test_a_model_too_large_for_the_gpu_goes_to_the_cpu(house, machine):
    machine.insert(0, Device("cuda", "A small GPU", 10))
    spec, _ = new("one", precisions={"cuda": ("fp32",), "cpu": ("fp32",)}, memory={"fp32": 50})
    assert stats(house(spec).stream("one", ask("a")))["device"] == "cpu"


def test_a_precision_whose_library_is_missing_is_only_taken_by_who_asks_for_it(house, machine):
    machine.insert(0, Device("cuda", "A GPU", 100))
    small = {"int8": 10, "fp32": 20}
    offered = {"cuda": ("int8",), "cpu": ("fp32",)}
    for library, device in (("no_such_library", "cpu"), ("numpy", "cuda")):
        spec, log = new("one", memory=small, precisions=offered, libraries={("cuda", "int8"): library})
        one = house(spec)
        words(one.stream("one", ask("a")))
        assert log.loads == [(device, "fp32" if device == "cpu" else "int8")]
    spec, log = new("two", memory=small, precisions=offered, libraries={("cuda", "int8"): "no_such_library"})
    two = house(spec, precision={"two": "int8"})
    words(two.stream("two", ask("a")))
    assert log.loads == [("cuda", "int8")]


def test_zerogpu_places_at_start_and_answers_inside_the_call(house, machine, monkeypatch):
    monkeypatch.setattr(zerogpu, "ACTIVE", True)
    monkeypatch.setattr(zerogpu, "PLACED", {})
    machine.insert(0, Device("cuda", "ZeroGPU", 100))
    large, large_log = new("large", precisions={"cuda": ("fp32",)})
    small, small_log = new("small")
    both = house(large, small)
    both.place_for_zerogpu()
    assert (large_log.loads, small_log.loads) == ([("cuda", "fp32")], [])
    assert both.status_of("large")["state"] == "ready"
    assert both.status_of("large")["memory_bytes"] == 1000
    events = list(both.stream("large", ask("a b")))
    assert words(events) == "a b "
    assert stats(events)["device"] == "cuda"
    assert large_log.closed == [("a b", threading.current_thread().name)], (
        "no worker thread: it would not survive a fork"
    )
    with closing(both.stream("large", ask("c d"))) as stream:
        until(stream, TextDelta)
    assert "c d/d" not in large_log.steps
    assert words(both.stream("small", ask("e"))) == "e ", "what runs on the CPU keeps its worker"
    assert small_log.closed[0][1] == "worker Small"


def test_devices_end_with_the_cpu_and_hide_a_hidden_gpu(monkeypatch, tmp_path):
    monkeypatch.undo()
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA L4, 23034'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    devices.devices.cache_clear()
    assert devices.devices()[0] == Device("cuda", "NVIDIA L4", 23034 * 2**20)
    assert [device.kind for device in devices.allowed("cpu")] == ["cpu"]
    for broken in ("echo 'no devices'", "exit 9"):
        tool.write_text(f"#!/bin/sh\n{broken}\n")
        devices.devices.cache_clear()
        assert devices.devices()[0].kind != "cuda"
    tool.write_text("#!/bin/sh\necho 'NVIDIA L4, 23034'\n")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    devices.devices.cache_clear()
    assert devices.devices()[-1].kind == "cpu"
    assert all(device.kind != "cuda" for device in devices.devices())
    devices.devices.cache_clear()
