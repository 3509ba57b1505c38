"""Live chat's session: turns, replies on the quiet, barge-in, and what stays in the history. No model, no clock."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from models.audio import SPEECH_RATE
from models.capabilities import AudioChunk, Heard, Stats, Status, TextDelta, Waveform
from models.compact.activity import TurnEvent
from models.errors import UserError
from tabs import pace
from tabs.live_chat import messages
from tabs.live_reply import Began, Written, perform
from tabs.live_session import MAX_EARLY, Playback, Session, spoken_part

RATE = 24_000


@dataclass
class Chunk:
    """What tabs.live_audio.HeardChunk holds."""

    seq: int
    pcm: np.ndarray = field(default_factory=lambda: np.zeros(1920, np.int16))
    mode: str = "free"
    end: bool = False
    visit: str = "v"
    playing: bool = False


class Script:
    """Stands for models.compact.activity.Turns: each chunk brings the events that the test wrote down."""

    def __init__(self, **options):
        self.options, self.speaking = options, False
        self.queue: list[list[TurnEvent]] = []
        self.heard: list[np.ndarray] = []

    def push(self, pcm: np.ndarray) -> list[TurnEvent]:
        self.heard.append(pcm)
        return self.queue.pop(0) if self.queue else []


class Stage:
    """A session with a clock that is moved by hand and a script of turn events."""

    def __init__(self):
        self.now, self.seq = 100.0, 0
        self.scripts: list[Script] = []
        self.session = Session(lambda: self.now, self._script)
        self.pause = 0.6

    def _script(self, **options) -> Script:
        self.scripts.append(Script(**options))
        return self.scripts[-1]

    def after(self, seconds: float) -> Stage:
        self.now += seconds
        return self

    def event(self, *kinds: str, seconds: float = 1.0):
        """The next chunk brings these events."""
        if not self.scripts:
            self.chunk()
        sound = Waveform(np.full(int(seconds * SPEECH_RATE), 0.1, np.float32), SPEECH_RATE)
        self.scripts[-1].queue.append([TurnEvent(k, sound if "end" in k else None) for k in kinds])  # type: ignore[arg-type]
        return self.chunk()

    def chunk(self, **facts):
        self.seq += 1
        return self.session.hear(Chunk(self.seq, **facts), self.pause)

    def reply(self, text: str, seconds: float, heard: str = "hello"):
        """A turn is spoken and its reply made; `seconds` of sound leave now."""
        self.event("speech_start")
        assert self.event("maybe_end", "turn_end").reply
        reply = self.session.take()
        assert reply is not None
        steps = [Heard(heard), TextDelta(text), AudioChunk(np.zeros(int(seconds * RATE), np.int16), RATE)]
        list(perform(self.session, reply, lambda: iter(steps), {}))
        return reply


@pytest.fixture
def stage() -> Stage:
    return Stage()


def spoken(session: Session) -> list[tuple[str, str]]:
    return [(turn.role, turn.text) for turn in session.history()]


def test_reply_begins_on_the_quiet_and_sounds_once_the_pause_lasts(stage: Stage):
    assert not stage.event("speech_start").reply
    assert stage.event("maybe_end").reply
    reply = stage.session.take()
    assert reply is not None and reply.audio is not None
    assert stage.session.take() is None  # each is made once
    steps = perform(
        stage.session,
        reply,
        lambda: iter([Heard("hi"), TextDelta("Yes?"), AudioChunk(np.ones(240, np.int16), RATE), Stats({"seed": 3})]),
        measured := {},
    )
    assert [next(steps) for _ in range(5)] == [None] * 5
    assert stage.session.lines() == []  # nobody sees what may yet be dropped
    stage.after(0.35).event("turn_end")
    told = list(steps)
    assert [type(step) for step in told if step is not None] == [Began, Written, Written, AudioChunk]
    assert measured == {"seed": 3}
    assert reply.figures()["after_speech_s"] == pytest.approx(0.25 + 0.35)


def test_reply_on_the_quiet_is_dropped_when_the_person_goes_on(stage: Stage):
    stage.event("speech_start")
    stage.event("maybe_end")
    reply = stage.session.take()
    assert reply is not None
    closed = []

    def stream():
        try:
            while True:
                yield None
        finally:
            closed.append(True)

    steps = perform(stage.session, reply, stream, {})
    next(steps)
    assert stage.event("speech_resumed").silence is None
    assert list(steps) == []
    assert closed == [True]
    assert spoken(stage.session) == []
    assert stage.event("maybe_end").reply
    second = stage.session.take()
    assert second is not None and second is not reply


def test_a_dropped_reply_that_nobody_took_is_not_made(stage: Stage):
    stage.event("speech_start", "maybe_end", "speech_resumed")
    assert stage.session.take() is None


def test_whole_answer_is_kept_once_it_has_sounded(stage: Stage):
    stage.reply("Good morning to you.", 2.0)
    assert spoken(stage.session) == []
    assert [(line.role, line.text) for line in stage.session.lines()] == [
        ("user", "hello"),
        ("assistant", "Good morning to you."),
    ]
    stage.after(2.2)
    assert spoken(stage.session) == [("user", "hello"), ("assistant", "Good morning to you.")]


def test_barge_in_silences_at_once_and_keeps_what_was_heard(stage: Stage):
    reply = stage.reply("One two three four five six seven eight", 4.0)
    reaction = stage.after(0.1 + 2.0).event("speech_start")
    assert reaction.silence == reply.stream
    assert reply.cancelled.is_set()
    assert spoken(stage.session) == [("user", "hello"), ("assistant", "One two three four")]
    assert stage.session.lines()[-1].cut
    assert not stage.session.sounds(reply, 1.0, 99)  # nothing may leave any more


def test_barge_in_during_the_answer_ends_its_stream(stage: Stage):
    stage.event("speech_start")
    stage.event("maybe_end", "turn_end")
    reply = stage.session.take()
    assert reply is not None
    sound = AudioChunk(np.zeros(RATE, np.int16), RATE)
    steps = perform(stage.session, reply, lambda: iter([Heard("q"), TextDelta("First. "), sound, sound, sound]), {})
    while not isinstance(next(steps), AudioChunk):
        pass
    stage.after(0.5).event("speech_start")
    assert list(steps) == []
    assert spoken(stage.session)[0] == ("user", "q")


def test_speech_before_any_sound_of_the_answer_joins_the_turn(stage: Stage):
    stage.event("speech_start")
    stage.event("maybe_end", "turn_end", seconds=1.0)
    first = stage.session.take()
    assert first is not None
    stage.after(0.3).event("speech_start")
    assert first.cancelled.is_set()
    stage.event("maybe_end", "turn_end", seconds=2.0)
    second = stage.session.take()
    assert second is not None and second.audio is not None
    assert second.audio.seconds == pytest.approx(3.0)
    assert second.history == ()


def test_what_is_carried_over_stays_within_a_minute(stage: Stage):
    stage.event("speech_start")
    stage.event("maybe_end", "turn_end", seconds=40)
    stage.event("speech_start")
    stage.event("maybe_end", "turn_end", seconds=40)
    reply = stage.session.take()
    assert reply is not None and reply.audio is not None and reply.audio.seconds == 40


def test_a_failing_reply_leaves_the_history_intact(stage: Stage):
    stage.reply("Fine.", 1.0)
    stage.after(2.0)
    before = spoken(stage.session)
    stage.session.write("and then?")
    reply = stage.session.take()
    assert reply is not None and [turn.text for turn in reply.history] == ["hello", "Fine."]

    def stream():
        yield Status("thinking")
        raise UserError("no_speech_heard")

    with pytest.raises(UserError):
        list(perform(stage.session, reply, stream, {}))
    assert spoken(stage.session) == before


def test_errors_about_half_a_sentence_are_not_told(stage: Stage):
    stage.event("speech_start", "maybe_end")
    reply = stage.session.take()
    assert reply is not None

    def stream():
        raise UserError("no_speech_heard")
        yield

    steps = perform(stage.session, reply, stream, {})
    assert next(steps) is None
    stage.event("speech_resumed")
    assert list(steps) == []


def test_typing_interrupts_and_is_answered_with_what_was_heard(stage: Stage):
    spoke = stage.reply("One two three four", 4.0)
    reaction = stage.after(2.1).session.write("stop, please")
    assert reaction.reply and reaction.silence == spoke.stream
    reply = stage.session.take()
    assert reply is not None and reply.text == "stop, please" and reply.confirmed.is_set()
    assert [turn.text for turn in reply.history] == ["hello", "One two"]


def test_push_to_talk_is_one_turn_without_any_pause(stage: Stage):
    second = np.ones(SPEECH_RATE // 4, np.int16)
    for _ in range(3):
        assert not stage.chunk(pcm=second, mode="push").reply
    assert stage.chunk(pcm=second, mode="push", end=True).reply
    reply = stage.session.take()
    assert reply is not None and reply.audio is not None and reply.confirmed.is_set()
    assert reply.audio.seconds == pytest.approx(1.0)
    assert not stage.chunk(pcm=second[:100], mode="push", end=True).reply  # a tap is nothing to answer


def test_push_to_talk_answers_after_a_minute_and_ignores_the_rest(stage: Stage):
    ten = np.ones(10 * SPEECH_RATE, np.int16)
    answered = [stage.chunk(pcm=ten, mode="push").reply for _ in range(8)]
    assert answered == [False] * 5 + [True] + [False] * 2
    assert not stage.chunk(pcm=ten, mode="push", end=True).reply
    assert not stage.chunk(pcm=ten, mode="push").reply and stage.session._held  # the next press counts again


def test_chunks_are_put_in_order_and_a_lost_one_is_given_up(stage: Stage):
    stage.session.hear(Chunk(1), 0.6)
    numbers = {seq: np.full(10, seq, np.int16) for seq in range(2, 30)}
    for seq in (3, 4, 2):
        stage.session.hear(Chunk(seq, numbers[seq]), 0.6)
    stage.session.hear(Chunk(3, numbers[3]), 0.6)  # again: ignored
    assert [int(pcm[0]) for pcm in stage.scripts[0].heard] == [0, 2, 3, 4]
    for seq in range(6, 6 + MAX_EARLY + 1):
        stage.session.hear(Chunk(seq, numbers[seq]), 0.6)
    assert [int(pcm[0]) for pcm in stage.scripts[0].heard][4:] == list(range(6, 6 + MAX_EARLY + 1))
    assert len(stage.session._early) == 0


def test_the_pause_is_that_of_the_slider_from_the_next_turn_on(stage: Stage):
    stage.chunk()
    stage.scripts[0].speaking = True
    stage.pause = 1.2
    stage.chunk()
    assert len(stage.scripts) == 1
    stage.scripts[0].speaking = False
    stage.chunk()
    assert [script.options["pause_s"] for script in stage.scripts] == [0.6, 1.2]


def test_an_ended_session_is_deaf_and_its_reply_cancelled(stage: Stage):
    reply = stage.reply("One two three", 3.0)
    stage.session.end()
    assert reply.cancelled.is_set()
    assert stage.event("maybe_end").reply is False


def test_clearing_forgets_everything(stage: Stage):
    reply = stage.reply("One two three", 3.0)
    assert stage.session.clear().silence == reply.stream
    assert stage.session.lines() == [] and spoken(stage.session) == []


def test_playback_knows_what_has_sounded():
    playback = Playback()
    playback.add(10.0, 2.0, 20)  # sounds 10.1 … 12.1
    playback.add(10.5, 2.0, 60)  # follows until 14.1
    assert playback.characters(10.0) == 0
    assert playback.characters(11.1) == 10
    assert playback.characters(13.1) == 40
    assert playback.characters(99.0) == 60
    assert playback.ends == pytest.approx(14.1)


@pytest.mark.parametrize(
    ("text", "characters", "kept"),
    [
        ("One two three", 6, "One"),
        ("One two three", 7, "One two"),
        ("One two three", 2, ""),
        ("今天天气很好", 3, "今天天"),
        ("Whole.", 99, "Whole."),
        ("", 0, ""),
    ],
)
def test_spoken_part_ends_with_a_whole_word(text: str, characters: int, kept: str):
    assert spoken_part(text, characters) == kept


def test_a_transcript_that_comes_after_the_answer_stands_before_it(stage: Stage):
    stage.event("speech_start")
    stage.event("maybe_end", "turn_end")
    reply = stage.session.take()
    sound = AudioChunk(np.ones(RATE, np.int16), RATE)
    steps = perform(stage.session, reply, lambda: iter([TextDelta("Fine."), sound, sound, Heard("How are you?")]), {})
    next(step for step in steps if isinstance(step, AudioChunk))
    assert [(line.role, line.text) for line in stage.session.lines()] == [("user", ""), ("assistant", "Fine.")]
    assert [turn["content"] for turn in messages(stage.session.lines(), "en")] == ["(what you said)", "Fine."]
    list(steps)
    assert [(line.role, line.text) for line in stage.session.lines()] == [
        ("user", "How are you?"),
        ("assistant", "Fine."),
    ]
    stage.after(3)
    assert spoken(stage.session) == [("user", "How are you?"), ("assistant", "Fine.")]


def test_a_turn_interrupted_before_its_transcript_keeps_its_place(stage: Stage):
    stage.event("speech_start")
    stage.event("maybe_end", "turn_end")
    reply = stage.session.take()
    sound = AudioChunk(np.ones(RATE, np.int16), RATE)
    steps = perform(stage.session, reply, lambda: iter([TextDelta("One two."), sound, sound, Heard("Count")]), {})
    next(step for step in steps if isinstance(step, AudioChunk))
    stage.after(9)
    stage.session.interrupt()
    list(steps)
    assert [(line.role, line.text, line.cut) for line in stage.session.lines()] == [
        ("user", "", False),
        ("assistant", "One two.", True),
    ]
    assert spoken(stage.session) == [("assistant", "One two.")], "a model is told no empty turn"


def test_an_answer_heard_to_its_end_is_not_cut_though_its_transcript_is(stage: Stage):
    stage.event("speech_start")
    stage.event("maybe_end", "turn_end")
    reply = stage.session.take()
    sound = AudioChunk(np.ones(RATE, np.int16), RATE)
    stream = [TextDelta("One two."), sound, sound, Status("listening"), None, Heard("Count")]
    steps = perform(stage.session, reply, lambda: iter(stream), {})
    next(step for step in steps if isinstance(step, Status))
    stage.after(3)
    stage.event("speech_start")
    list(steps)
    assert [(line.text, line.cut) for line in stage.session.lines()] == [("", False), ("One two.", False)]


def test_nothing_stands_for_a_turn_until_its_answer_begins(stage: Stage):
    stage.event("speech_start")
    stage.event("maybe_end", "turn_end")
    assert stage.session.take() is not None
    assert stage.session.lines() == [], "it may have been noise"


def test_an_answer_in_text_alone_is_kept_when_it_is_interrupted(stage: Stage):
    stage.session.write("Tell me a story")
    reply = stage.session.take()
    assert reply is not None
    reply.spoken = False
    steps = perform(stage.session, reply, lambda: iter([TextDelta("Once upon "), TextDelta("a time")]), {})
    while not reply.said:
        next(steps)
    stage.event("speech_start")
    list(steps)
    assert reply.cancelled.is_set()
    assert [(line.text, line.cut) for line in stage.session.lines()] == [
        ("Tell me a story", False),
        ("Once upon", True),
    ]


def test_sound_that_is_held_back_has_not_left(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pace, "_usual", {"": 0.5})
    stage.session.write("hello")
    reply = stage.session.take()
    sound = AudioChunk(np.ones(RATE // 10, np.int16), RATE)
    stream = [Status("speaking"), TextDelta("a long answer " * 9), sound, sound, Status("listening"), Heard("hello")]
    steps = perform(stage.session, reply, lambda: iter(stream), {})
    told = next(step for step in steps if isinstance(step, Status) and step.phase == "too_slow")
    assert told.facts == {"rate": "0.5"}
    assert "first_sound" not in reply.times
    whole = next(step for step in steps if isinstance(step, AudioChunk))
    assert len(whole.pcm) == 2 * len(sound.pcm)
    assert "first_sound" in reply.times and not reply.heard, "it sounds before the transcript is made"
