"""MiniCPM-o's engine with the golden random weights: what is asked of the model, what it keeps, what it gives."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from models.capabilities import (
    AudioChunk,
    Capability,
    CloneRequest,
    CreateVoiceRequest,
    Heard,
    MimicRequest,
    Sampling,
    Stats,
    Status,
    TalkRequest,
    TextDelta,
    Turn,
    UnderstandRequest,
    UnderstandTask,
    WarmRequest,
    Waveform,
)
from models.catalog import MINICPM_O
from models.errors import UserError
from models.minicpm_o import engine
from models.minicpm_o.prompts import Message
from tests.conftest import ROOT

CHECKPOINT = ROOT / "tests" / "golden" / "minicpm_o" / "checkpoint"


def noise(seed: int, seconds: float = 1.0, rate: int = 16_000) -> Waveform:
    return Waveform((0.1 * np.random.default_rng(seed).standard_normal(int(seconds * rate))).astype(np.float32), rate)


def talk(text: str = "", audio: Waveform | None = None, **more: Any) -> TalkRequest:
    given: dict[str, Any] = {
        "capability": Capability.ASSIST,
        "text": text,
        "audio": audio,
        "transcribe": False,
        "speak": False,
        "sampling": Sampling(seed=1, max_new_tokens=12),
    }
    return TalkRequest(**{**given, **more})


@pytest.fixture
def model() -> engine.MiniCPMOModel:
    return fresh()


def fresh(precision: str = "fp32") -> engine.MiniCPMOModel:
    return engine.load(MINICPM_O, lambda _: CHECKPOINT, "cpu", precision)


@pytest.fixture
def read(model: engine.MiniCPMOModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many positions each prompt still had to be read."""
    counted: list[int] = []
    prefill = model._parts.language.prefill

    def counting(prompt, heard, cache) -> Iterator[int]:
        counted.append(len(prompt))
        return prefill(prompt, heard, cache)

    monkeypatch.setattr(model._parts.language, "prefill", counting)
    return counted


def answer(model: engine.MiniCPMOModel, request: Any) -> tuple[str, list[np.ndarray]]:
    events = list(model.stream(request))
    text = "".join(event.text for event in events if isinstance(event, TextDelta))
    return text, [event.pcm for event in events if isinstance(event, AudioChunk)]


def after(request: TalkRequest, text: str, **more: Any) -> tuple[Turn, ...]:
    """The history that a request and its answer become."""
    return (*request.history, Turn("user", request.text, request.audio), Turn("assistant", text))


# --- requests as messages ---------------------------------------------------------------------------------------------

CLIP, REFERENCE = noise(1), noise(2)
EN, ZH = (UnderstandTask.TRANSCRIBE_EN, UnderstandTask.TRANSCRIBE_ZH)
CLIP_ROLEPLAY = ["Clone the voice in the provided audio prompt.", "<reference>"]
CLIP_ROLEPLAY += ["Try to role-play the character based on the audio prompt above."]
NO_VOICE = "Use the <reserved_53> voice."


@pytest.mark.parametrize(
    ("request_", "messages", "speak"),
    [
        (
            MimicRequest(audio=CLIP),
            [["Please repeat each user's speech, including voice style and speech content.", "<clip>"]],
            True,
        ),
        (CreateVoiceRequest(instruction="An old man: “Hi.”"), [["An old man: “Hi.”"]], True),
        (
            CloneRequest(reference=REFERENCE, text="Good night."),
            [
                ["Clone the voice in the provided audio prompt.", "<reference>"],
                ["Please read the text below.", "Good night."],
            ],
            True,
        ),
        (
            CloneRequest(reference=REFERENCE, text="晚安。"),
            [["模仿输入音频中的声音特征。", "<reference>"], ["请朗读以下内容。", "晚安。"]],
            True,
        ),
        (
            CloneRequest(reference=REFERENCE, speech=CLIP, language="zh"),
            [["模仿输入音频中的声音特征。", "<reference>"], ["<clip>"]],
            True,
        ),
        (
            UnderstandRequest(audio=CLIP, task=EN),
            [["Please listen to the audio snippet carefully and transcribe the content.\n", "<clip>"]],
            False,
        ),
        (UnderstandRequest(audio=CLIP, task=ZH), [["请仔细听这段音频片段，并将其内容逐字记录。\n", "<clip>"]], False),
        (
            UnderstandRequest(audio=CLIP, task=UnderstandTask.ASK, question="Who?", speak=True),
            [["Who?\n", "<clip>"]],
            True,
        ),
        (UnderstandRequest(audio=CLIP, task=UnderstandTask.ANSWER), [["<clip>"]], False),
        (
            talk("Hello.", CLIP, speak=True),
            [[NO_VOICE, "As an assistant, you will speak using this voice style."], ["Hello.", "<clip>"]],
            True,
        ),
        (
            talk("你好", capability=Capability.LIVE),
            [[NO_VOICE, "作为助手，你将使用这种声音风格说话。"], ["你好"]],
            False,
        ),
        (
            talk("Go on.", history=(Turn("user", "", CLIP), Turn("assistant", "好的"))),
            [[NO_VOICE, "作为助手，你将使用这种声音风格说话。"], ["<clip>"], ["好的"], ["Go on."]],
            False,
        ),
        (
            talk("Hi", capability=Capability.ROLEPLAY, reference=REFERENCE, character="A wizard."),
            [[*CLIP_ROLEPLAY, "A wizard."], ["Hi"]],
            False,
        ),
    ],
)
def test_what_is_asked_is_said_in_the_model_cards_words(request_, messages, speak):
    made, aloud = engine.messages_of(request_)
    names = {CLIP.samples.tobytes(): "<clip>", REFERENCE.samples.tobytes(): "<reference>"}
    shown = [[part if isinstance(part, str) else names[part.tobytes()] for part in message.parts] for message in made]
    assert (shown, aloud) == (messages, speak)
    assert [message.role for message in made if message.role == "assistant"] == ["assistant"] * (len(messages) == 4)


def test_every_task_of_understanding_is_put_to_the_model():
    asked = [engine.messages_of(UnderstandRequest(audio=CLIP, task=task, question="?"))[0] for task in UnderstandTask]
    assert len({message.parts[0] if isinstance(message.parts[0], str) else "" for [message] in asked}) == len(asked)


def test_a_voice_of_the_library_is_given_as_its_clip_and_sound_at_16_khz():
    told = engine.messages_of(talk("Hi", voice="af_heart"))[0][0]
    clip = next(part for part in told.parts if isinstance(part, np.ndarray))
    assert clip.dtype == np.float32 and len(clip) > 16_000
    with pytest.raises(UserError, match="no voice called “nobody”"):
        engine.messages_of(talk("Hi", voice="nobody"))
    assert len(engine.messages_of(MimicRequest(audio=noise(1, 1.0, 24_000)))[0][0].parts[1]) == 16_000


def test_the_assistant_has_the_steady_voice_of_the_models_own_clips_once_they_are_here(tmp_path):
    folder = tmp_path / "with"
    shutil.copytree(CHECKPOINT, folder)
    (folder / engine.STEADY_VOICE).parent.mkdir()
    soundfile.write(folder / engine.STEADY_VOICE, noise(8).samples, 16_000)
    model = engine.load(MINICPM_O, lambda _: folder, "cpu", "fp32")
    assert answer(model, talk("Hi"))[0] == answer(fresh(), talk("Hi", reference=_read(folder / engine.STEADY_VOICE)))[0]
    assert answer(model, talk("Hi"))[0] != answer(fresh(), talk("Hi"))[0]
    asked = [talk("Hi", reference=REFERENCE), talk("Hi", capability=Capability.ROLEPLAY), MimicRequest(audio=CLIP)]
    for request in asked:
        told, known = (engine.messages_of(request, voice)[0][0].parts for voice in (None, model._voice))
        assert all(np.array_equal(mine, theirs) for mine, theirs in zip(told, known, strict=True))


def _read(path: Path) -> Waveform:
    samples, rate = soundfile.read(path, dtype="float32")
    return Waveform(samples, rate)


def test_a_persons_settings_go_over_the_model_cards():
    own, theirs = engine.decoding_of(Sampling()), engine.decoding_of(Sampling(temperature=0, top_p=0.5, top_k=0))
    assert (own.temperature, own.top_p, own.top_k, own.repetition_penalty) == (0.3, 0.8, 100, 1.05)
    assert (theirs.temperature, theirs.top_p, theirs.top_k, theirs.greedy) == (0, 0.5, 0, True)


# --- answering --------------------------------------------------------------------------------------------------------


def test_the_order_of_events(model):
    long = Sampling(seed=1, max_new_tokens=60)
    request = talk("", CLIP, capability=Capability.LIVE, speak=True, transcribe=True, sampling=long)
    events = [event for event in model.stream(request) if event is not None]
    phases = [event.phase for event in events if isinstance(event, Status)]
    assert phases == ["listening", "thinking", "speaking", "listening"]
    first = [type(event) for event in events]
    assert first[:3] == [Status, Status, TextDelta]
    assert first.index(AudioChunk) == first.index(Status, 2) + 1, "it speaks as soon as it says so"
    assert first.index(AudioChunk) < len(first) - 1 - first[::-1].index(TextDelta), "sound before the text is whole"
    assert first[-2:] == [Status, Heard], "what was asked is written down last"
    assert all(event.rate == 24_000 and event.pcm.dtype == np.int16 for event in events if type(event) is AudioChunk)


def test_nothing_is_written_down_that_nobody_reads(model):
    for request in (talk("", CLIP), talk("Hi", transcribe=True), MimicRequest(audio=CLIP, sampling=talk().sampling)):
        assert not [event for event in model.stream(request) if isinstance(event, Heard)]
    assert [event for event in model.stream(talk("", CLIP, transcribe=True)) if isinstance(event, Heard)]


def test_a_seed_gives_the_same_answer_again(model):
    asked = talk("Tell me more.", CLIP, speak=True)
    (text, sound), (again, resounded) = answer(model, asked), answer(model, asked)
    assert text == again and sound
    np.testing.assert_array_equal(np.concatenate(sound), np.concatenate(resounded))
    other = talk("Tell me more.", CLIP, speak=True, sampling=Sampling(seed=2, max_new_tokens=12, temperature=1))
    assert answer(model, other)[0] != text


def test_warming_says_nothing_and_keeps_nothing(model):
    assert set(model.stream(WarmRequest(capability=Capability.LIVE))) == {None}
    assert model.memory_bytes() == model._parts.memory_bytes()


# --- conversations ----------------------------------------------------------------------------------------------------


def test_the_second_turn_reads_only_what_is_new(model, read):
    first = talk("", noise(3, 3.0), reference=REFERENCE)
    said, _ = answer(model, first)
    second = talk("And in winter?", history=after(first, said), reference=REFERENCE)
    answer(model, second)
    whole = model._parts.prompts.chat(engine.messages_of(second)[0])
    new = model._parts.prompts.turn(Message("assistant", (said,)))
    new += model._parts.prompts.turn(Message("user", ("And in winter?",)))
    assert read[0] > 100 and read[1] < len(model._parts.prompts.build(new)) + 8 < len(whole) / 2


def test_a_kept_cache_changes_nothing(model):
    first = talk("", CLIP)
    second = talk("And?", history=after(first, answer(model, first)[0]), speak=True)
    (text, sound), (alone, unheard) = answer(model, second), answer(fresh(), second)
    assert text == alone
    np.testing.assert_allclose(np.concatenate(sound), np.concatenate(unheard), atol=2)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_turn_that_is_asked_again_is_answered_again(precision):
    model = fresh(precision)
    first = talk("", noise(3, 2.0), speak=True)
    said = answer(model, first)
    second = talk("And?", history=after(first, said[0]), speak=True)
    for asked in (second, second, first, second):
        answers = [answer(model, asked) for _ in range(2)]
        (text, sound), (again, resounded) = answers
        assert text == again
        np.testing.assert_array_equal(np.concatenate(sound), np.concatenate(resounded))
    assert answer(model, first)[0] == said[0]


def test_two_conversations_keep_their_caches_apart(model, read):
    mine, yours = talk("", noise(4, 2.0)), talk("", noise(5, 2.0))
    alone = answer(fresh(), yours)
    said, other = answer(model, mine), answer(model, yours)
    assert other == alone and min(read) > 60
    read.clear()
    answer(model, talk("And?", history=after(mine, said[0])))
    answer(model, talk("And?", history=after(yours, other[0])))
    assert max(read) < 40, "each found its own again"


def test_at_most_a_few_conversations_are_kept(model):
    for number in range(engine.KEPT + 2):
        answer(model, talk(f"This is number {number}."))
    assert len(model._kept._conversations) == engine.KEPT
    assert model.memory_bytes() > model._parts.memory_bytes()


def test_an_answer_that_is_cut_short_leaves_what_was_read(model, read):
    first = talk("", noise(6, 2.0))
    steps = model.stream(first)
    said = next(event.text for event in steps if isinstance(event, TextDelta))
    steps.close()  # type: ignore[attr-defined]
    answer(model, talk("No, wait.", history=after(first, said)))
    assert read[1] < 40 < read[0]


def test_turns_that_do_not_fit_leave_and_it_is_said(model, monkeypatch):
    monkeypatch.setattr(engine, "PROMPT_TOKENS", 200)
    turns = [Turn(role, "What do you say to this? " * 2) for _ in range(4) for role in ("user", "assistant")]
    told = [event for event in model.stream(talk("Well?", history=tuple(turns))) if isinstance(event, Stats)]
    assert told and told[0].values["dropped_turns"] in (2, 4, 6, 8)
    assert not [event for event in model.stream(talk("Well?")) if isinstance(event, Stats)]
    with pytest.raises(UserError) as caught:
        answer(model, talk("Well? " * 200))
    assert caught.value.code == "prompt_too_long"
