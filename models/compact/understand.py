"""What the compact set makes of a recording: transcript, speaker, summary, scene, or an own question.

Words come from Whisper, sounds from YAMNet, the speaker from measurements; Qwen only puts into words what was found.
Age, health and feelings cannot be judged by this set, and it says so.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from models.audio import loudest_dbfs
from models.capabilities import (
    Capability,
    Event,
    Sampling,
    Stats,
    Status,
    TalkRequest,
    TextDelta,
    UnderstandRequest,
    UnderstandTask,
    Waveform,
)
from models.compact import prompts, voices
from models.compact.tags import HOP_S
from models.errors import UserError
from models.text import say

if TYPE_CHECKING:
    from models.compact.engine import CompactModel

Steps = Iterator["Event | None"]

ANSWER_TOKENS = 256
SHOWN_TAGS = 6
LEAST_TAG_SCORE = 0.1
LEAST_SURE = 0.7  # probability from which a voice is called female or male
TAGGED_SECONDS = 300  # of a longer clip, sounds are looked for only where the task asks for them
TIMELINE_POINTS = 300  # a longer clip's timeline is thinned to this many


def answer(model: CompactModel, request: UnderstandRequest) -> Steps:
    """Answer the request's task; aloud as well if it asks for that."""
    task, value = request.task, request.task.value
    if task in (UnderstandTask.TRANSCRIBE_EN, UnderstandTask.TRANSCRIBE_ZH):
        steps = _transcribe(model, request, value[-2:])
    elif task in (UnderstandTask.SUMMARY_EN, UnderstandTask.SUMMARY_ZH):
        steps = _summary(model, request, value[-2:])
    elif task in (UnderstandTask.SCENE_EN, UnderstandTask.SCENE_ZH):
        steps = _scene(model, request, value[-2:])
    elif task is UnderstandTask.SPEAKER:
        steps = _speaker(model, request)
    elif task is UnderstandTask.ANSWER:
        steps = model.talk(_turn(request))
    else:
        steps = _ask(model, request)
    text, tagged = "", False
    for event in steps:
        if isinstance(event, TextDelta):
            text += event.text
        tagged = tagged or (isinstance(event, Stats) and "tags" in event.values)
        yield event
    if request.speak:
        yield from model.think_aloud((part for part in [text]), None, shown=True)
    if not tagged and request.audio.seconds <= TAGGED_SECONDS:
        yield from _tags(model, request.audio, "zh" if _is_chinese(request) else "en")


def _turn(request: UnderstandRequest) -> TalkRequest:
    """The recording as a turn of a conversation that is answered in text."""
    return TalkRequest(
        capability=Capability.ASSIST,
        audio=request.audio,
        language=request.language,
        speak=False,
        sampling=request.sampling,
    )


def _is_chinese(request: UnderstandRequest) -> bool:
    return "zh" in (request.language, request.task.value[-2:])


def _transcribe(model: CompactModel, request: UnderstandRequest, language: str) -> Steps:
    transcript = yield from model.hear(request.audio, language, show=True)
    if not transcript.text:
        raise UserError("no_speech_heard")
    yield Stats({"language": transcript.language, "speech_s": round(transcript.seconds, 2)})


def _summary(model: CompactModel, request: UnderstandRequest, language: str) -> Steps:
    transcript = yield from model.hear(request.audio)
    if not transcript.text:
        raise UserError("no_speech_heard")
    thinker = yield from model.part("thinker")
    yield Status("thinking")
    messages = prompts.summary(thinker, transcript.text, language)
    yield from written(thinker.reply(messages, _factual(request), ANSWER_TOKENS))
    yield Stats({"language": language})


def _scene(model: CompactModel, request: UnderstandRequest, language: str) -> Steps:
    tags = yield from _tags(model, request.audio, language)
    yield TextDelta(tags[0]["name"] if tags else say("compact.no_sound_recognised", language))


def _speaker(model: CompactModel, request: UnderstandRequest) -> Steps:
    transcript = yield from model.hear(request.audio)
    if not transcript.text:
        raise UserError("no_speech_heard")
    facts = yield from _measured(model, request.audio, transcript)
    language = request.language if request.language != "auto" else transcript.language
    yield Stats({"speaker": facts, "language": transcript.language})
    yield TextDelta(describe_speaker(facts, language))


def _ask(model: CompactModel, request: UnderstandRequest) -> Steps:
    from models.compact.pitch import median_pitch

    transcript = yield from model.hear(request.audio)
    language = "zh" if transcript.language == "zh" else "en"
    tags = yield from _tags(model, request.audio, language)
    thinker = yield from model.part("thinker")
    yield Status("thinking")
    messages = prompts.ask(
        thinker,
        request.question,
        language,
        transcript=transcript.text,
        seconds=request.audio.seconds,
        tags=[tag["name"] for tag in tags],
        pitch=median_pitch(request.audio) if transcript.text else None,
    )
    yield from written(thinker.reply(messages, _factual(request), ANSWER_TOKENS))


def _factual(request: UnderstandRequest) -> Sampling:
    """The request's sampling, by default nearly greedy: an answer about a recording should not be inventive."""
    temperature = request.sampling.temperature
    return replace(request.sampling, temperature=prompts.FACTUAL.temperature if temperature is None else temperature)


def written(deltas: Generator[str | None, None, Any]) -> Steps:
    """A text as it is written, not spoken."""
    with closing(deltas):
        for delta in deltas:
            yield TextDelta(delta) if delta else None


def _tags(model: CompactModel, audio: Waveform, language: str):
    """The sounds in the clip, likeliest first: [{"name", "score"}]; their course over time goes into the Stats."""
    tagger = yield from model.part("tagger")
    yield Status("listening")
    blocks = []
    for block in tagger.score_blocks(audio):
        blocks.append(block)
        yield None
    scores = np.concatenate(blocks)
    tags = [
        {"name": name, "score": round(float(score), 3)}
        for name, score in tagger.top(scores, SHOWN_TAGS, language)
        if score >= LEAST_TAG_SCORE
    ]
    names = tagger.names(language)
    step = -(-len(scores) // TIMELINE_POINTS)
    rows = [scores[::step, names.index(tag["name"])].round(3).tolist() for tag in tags]
    timeline = {"hop_s": HOP_S * step, "names": [tag["name"] for tag in tags], "scores": rows}
    yield Stats({"tags": tags, "tag_timeline": timeline})
    return tags


def _measured(model: CompactModel, audio: Waveform, transcript: Any):
    """What can be measured on a speaker: pitch in Hz, voice, pace, level."""
    from models.compact.pitch import pitch_contour

    encoder = yield from model.part("encoder")
    yield Status("listening")
    gender, sure = voices.gender_of(encoder.embed(audio))
    gender = gender if sure >= LEAST_SURE else "unclear"
    yield None
    _, f0 = pitch_contour(audio)
    yield None
    voiced = f0[~np.isnan(f0)]
    low, middle, high = np.percentile(voiced, [10, 50, 90]).round().tolist() if len(voiced) else (None,) * 3
    units = len(transcript.text.split()) if transcript.language != "zh" else len(transcript.text)
    return {
        "language": transcript.language,
        "voice": gender,
        "voice_probability": round(float(sure), 2),
        "pitch_hz": middle,
        "pitch_range_hz": [low, high],
        "per_minute": round(60 * units / transcript.seconds) if transcript.seconds else None,
        "loudest_dbfs": round(loudest_dbfs(audio), 1),
        "speech_s": round(transcript.seconds, 1),
        "not_judged": ["age", "health", "emotion"],
    }


def describe_speaker(facts: dict[str, Any], language: str) -> str:
    """The measurements as sentences, ending with what this set cannot judge."""
    language = "zh" if language == "zh" else "en"
    spoken = facts["language"] if facts["language"] in ("en", "zh") else "other"
    lines = [
        say(f"compact.speaker_language_{spoken}", language),
        say(f"compact.speaker_{facts['voice']}", language),
    ]
    if facts["pitch_hz"]:
        low, high = facts["pitch_range_hz"]
        lines.append(
            say("compact.speaker_pitch", language, hz=round(facts["pitch_hz"]), low=round(low), high=round(high))
        )
    if facts["per_minute"]:
        unit = "characters" if facts["language"] == "zh" else "words"
        lines.append(say(f"compact.speaker_pace_{unit}", language, count=facts["per_minute"]))
    lines.append(say("compact.speaker_not_judged", language))
    return ("" if language == "zh" else " ").join(lines)
