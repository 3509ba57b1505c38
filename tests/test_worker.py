"""One thread owns a model and advances its open requests in turn."""

import threading
import time
from functools import partial

import pytest
import tone_model
from tone_model import ToneModel, ask

from models.capabilities import CloneRequest, Status, TextDelta, Waveform
from models.errors import UserError
from models.worker import UNREAD_LIMIT, Worker


@pytest.fixture
def start():
    """Start workers over tone models; whatever a test leaves open is closed behind it."""
    started = []

    def make(load=None, at_once=2, gone=lambda worker: None):
        log = tone_model.Log()
        worker = Worker("Tone", load or partial(ToneModel, log), at_once, gone)
        started.append((worker, log))
        return worker, log

    yield make
    for worker, log in started:
        log.go.set()
        worker.close()


def submit(worker, text):
    stream = worker.submit(ask(text))
    assert stream
    return stream


def words(stream) -> str:
    return "".join(event.text for event in stream if isinstance(event, TextDelta))


def phases(events) -> list[str]:
    return [event.phase for event in events if isinstance(event, Status)]


def until(stream, wanted):
    """Read on up to the first event that `wanted` is true of."""
    return next(event for event in stream if event is not None and wanted(event))


def test_streams_advance_in_turn(start):
    worker, log = start()
    log.go.clear()
    first, second = submit(worker, "wait a b c"), submit(worker, "wait d e f")
    while worker._waiting:
        next(iter(first))
    log.go.set()
    assert words(first) == "wait a b c "
    assert words(second) == "wait d e f "
    taken = [step.rsplit("/")[1] for step in log.steps if not step.endswith("/wait")]
    assert sorted(taken[:2]) == ["a", "d"], "each has had its first word before either has its second"
    assert sorted(taken[2:4]) == ["b", "e"]


def test_those_over_the_limit_queue_and_see_their_place(start):
    worker, log = start(at_once=1)
    busy, second, third = submit(worker, "wait"), submit(worker, "two"), submit(worker, "three")
    assert until(second, lambda event: getattr(event, "phase", "") == "queued").facts == {"place": 1}
    assert until(third, lambda event: getattr(event, "phase", "") == "queued").facts == {"place": 2}
    second.cancel()
    assert words(second) == ""
    assert until(third, lambda event: getattr(event, "phase", "") == "queued").facts == {"place": 1}
    log.go.set()
    events = list(third)
    assert phases(events) == ["starting"], "the wait is over before the first step"
    assert words(busy) == "wait "


def test_cancel_closes_the_generator_on_the_workers_own_thread(start):
    worker, log = start()
    stream = submit(worker, "one wait never")
    until(stream, lambda event: isinstance(event, TextDelta))
    stream.cancel()
    assert [event for event in stream if isinstance(event, TextDelta)] == []
    assert log.closed == [("one wait never", "worker Tone")]
    assert log.steps == ["one wait never/one"]
    assert words(submit(worker, "next")) == "next ", "the place is free again"


def test_a_readers_wait_can_be_closed_between_heartbeats(start):
    worker, log = start()
    stream = submit(worker, "wait never")
    reader = iter(stream)
    while next(reader) is not None:
        pass
    reader.close()
    stream.cancel()
    assert words(submit(worker, "next")) == "next "
    assert log.closed[0][0] == "wait never"


@pytest.mark.parametrize(("text", "error"), [("a fail", UserError), ("a crash", ValueError)])
def test_an_error_is_its_own_requests_alone(start, text, error):
    worker, log = start()
    other, bad = submit(worker, "wait b"), submit(worker, text)
    seen = []
    with pytest.raises(error):
        seen.extend(bad)
    assert "a " in [getattr(event, "text", "") for event in seen], "what was answered is kept"
    log.go.set()
    assert words(other) == "wait b "


def test_an_error_before_the_first_step_is_its_own_requests_alone(start):
    worker, _ = start()
    stream = worker.submit(CloneRequest(reference=Waveform(tone_model.np.zeros(1), 16_000)))
    assert stream
    with pytest.raises(UserError, match="no recording"):
        list(stream)
    assert words(submit(worker, "next")) == "next "


def test_a_failed_load_reaches_every_reader(start):
    may_fail, told = threading.Event(), []

    def load():
        may_fail.wait()
        raise ValueError("no such tensor")

    worker, _ = start(load, gone=told.append)
    streams = [submit(worker, "a"), submit(worker, "b")]
    may_fail.set()
    for stream in streams:
        with pytest.raises(ValueError, match="no such tensor"):
            list(stream)
    worker.close()
    assert told == [worker]
    assert worker.state == "gone"
    assert worker.submit(ask("late")) is None


def test_cancel_during_load_leaves_the_model_for_the_next(start):
    may_load, log = threading.Event(), tone_model.Log()

    def load():
        may_load.wait()
        return ToneModel(log)

    worker, _ = start(load)
    stream = submit(worker, "a")
    assert until(stream, lambda event: True) == Status("loading", {"what": "Tone"})
    stream.cancel()
    may_load.set()
    assert [event for event in stream if event] == []
    assert log.steps == []
    assert words(submit(worker, "b")) == "b "


def test_unloading_tells_whoever_was_being_answered(start):
    worker, log = start(at_once=1)
    open_stream, waiting = submit(worker, "one wait"), submit(worker, "two")
    until(open_stream, lambda event: isinstance(event, TextDelta))
    worker.close()
    for stream in (open_stream, waiting):
        with pytest.raises(UserError, match="unloaded"):
            list(stream)
    assert log.unloads == 1
    assert log.closed == [("one wait", "worker Tone")]
    assert worker.memory_bytes == 0


def test_only_an_idle_model_makes_room(start):
    worker, log = start()
    stream = submit(worker, "wait")
    worker.close(if_idle=True)
    log.go.set()
    assert words(stream) == "wait "
    while worker.busy:
        time.sleep(0.001)
    worker.close(if_idle=True)
    assert worker.state == "gone"


def test_a_model_that_breaks_down_ends_its_streams(start):
    class Broken(ToneModel):
        def memory_bytes(self) -> int:
            if self.log.steps:
                raise RuntimeError("the device was lost")
            return 1

    told = []
    worker, _ = start(partial(Broken, tone_model.Log()), gone=told.append)
    with pytest.raises(RuntimeError, match="device was lost"):
        list(submit(worker, "a"))
    worker.close()
    assert told == [worker]


def test_a_reader_that_lags_is_not_run_away_from(start):
    worker, log = start()
    slow = submit(worker, " ".join(["x"] * 5 * UNREAD_LIMIT))
    assert words(submit(worker, " ".join(["y"] * 2 * UNREAD_LIMIT))).count("y") == 2 * UNREAD_LIMIT
    assert sum(step.endswith("/x") for step in log.steps) <= UNREAD_LIMIT
    assert words(slow).count("x") == 5 * UNREAD_LIMIT


def test_memory_is_what_the_model_said_last(start):
    worker, _ = start()
    list(submit(worker, "a b"))
    worker_says = worker.memory_bytes
    assert worker_says == 1002
