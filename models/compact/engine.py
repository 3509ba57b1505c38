"""The compact set's door: small real models that serve every capability on any CPU, honestly.

Hearing is Whisper base, speech Kokoro-82M, thought Qwen2.5-Coder-1.5B; YAMNet tags sounds, a GE2E encoder compares
speakers. A part loads when a capability first needs it. Nobody is cloned: the answer is spoken in the library's closest
voice, and its measured similarity is said.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from models.audio import from_pcm
from models.capabilities import (
    AudioChunk,
    Capability,
    CloneRequest,
    CreateVoiceRequest,
    Event,
    Heard,
    MimicRequest,
    Request,
    Stats,
    Status,
    TalkRequest,
    TextDelta,
    UnderstandRequest,
    WarmRequest,
    Waveform,
)
from models.catalog import KOKORO, QWEN_CODER, WHISPER_BASE, ModelSpec
from models.compact import describe, prompts, understand, voices
from models.compact.clauses import Clauses, clauses
from models.compact.speaker import similarity
from models.errors import UserError
from models.reading import HANZI

Steps = Iterator["Event | None"]
Result = Generator["Event | None", None, Any]  # steps that end with a result

SPOKEN_TOKENS = 256  # the longest spoken answer, unless a person asks for more

TALK_PARTS = ("recognizer", "thinker", "speaker")
PARTS = {
    Capability.MIMIC: ("recognizer", "encoder", "speaker"),
    Capability.CLONE: ("recognizer", "encoder", "speaker"),
    Capability.CREATE_VOICE: ("speaker",),
    Capability.UNDERSTAND: ("recognizer", "encoder", "tagger", "thinker", "speaker"),
    Capability.ROLEPLAY: TALK_PARTS,
    Capability.ASSIST: TALK_PARTS,
    Capability.LIVE: TALK_PARTS,
}


def load(spec: ModelSpec, path_of: Callable[[str], Path], device: str, precision: str) -> CompactModel:
    """The registry's loader. Nothing heavy happens before the first request."""
    return CompactModel(path_of)


class CompactModel:
    """A SpeechModel (see capabilities.py) made of parts; conversations are data in the requests."""

    def __init__(self, path_of: Callable[[str], Path]):
        self._path_of = path_of
        self._parts: dict[str, Any] = {}

    def stream(self, request: Request) -> Steps:
        """Answer a request, an event at a time."""
        if isinstance(request, WarmRequest):
            return self._warm(request)
        if isinstance(request, MimicRequest):
            return self._mimic(request)
        if isinstance(request, CloneRequest):
            return self._clone(request)
        if isinstance(request, CreateVoiceRequest):
            return self._create_voice(request)
        if isinstance(request, UnderstandRequest):
            return understand.answer(self, request)
        return self.talk(request)

    def unload(self) -> None:
        for part in self._parts.values():
            if hasattr(part, "unload"):
                part.unload()
        self._parts.clear()

    def memory_bytes(self) -> int:
        return sum(part.memory_bytes() for part in self._parts.values())

    # --- capabilities -------------------------------------------------------------------------------------------------

    def _warm(self, request: WarmRequest) -> Steps:
        for name in PARTS[request.capability]:
            part = yield from self.part(name)
            if name == "speaker":
                for language in ("en", "zh"):
                    part.warm(language)
                    yield None
            if name == "thinker" and request.capability is not Capability.UNDERSTAND:
                yield from prompts.warm(part, request.capability)

    def _mimic(self, request: MimicRequest) -> Steps:
        transcript = yield from self.hear(request.audio, request.language, show=True)
        if not transcript.text:
            raise UserError("no_speech_heard")
        yield from self._say_as(request.audio, transcript.text, written_language(transcript.text))

    def _clone(self, request: CloneRequest) -> Steps:
        text = request.text
        if request.speech is not None:
            transcript = yield from self.hear(request.speech, request.language, show=True)
            text = transcript.text
            if not text:
                raise UserError("no_speech_heard")
        else:
            yield TextDelta(text)
        language = request.language if request.language != "auto" else written_language(text)
        yield from self._say_as(request.reference, text, language)

    def _create_voice(self, request: CreateVoiceRequest) -> Steps:
        description = describe.parse(request.instruction)
        style = describe.to_style(description, request.sampling.seed)
        yield Stats({"description": description.as_dict(), "voice": style.name})
        yield TextDelta(description.sentence)
        yield from self.speak(clauses(description.sentence), style, description.language)

    def talk(self, request: TalkRequest) -> Steps:
        """One turn of a conversation."""
        text = request.text
        if request.audio is not None:
            transcript = yield from self.hear(request.audio, request.language)
            if not transcript.text:
                raise UserError("no_speech_heard")
            text = f"{text}\n{transcript.text}".strip()
        language = request.language if request.language != "auto" else written_language(text)
        style = None
        if request.reference is not None:
            style, _ = yield from self._closest(request.reference, language)
        elif request.voice != "default":
            style = self._library_style(request.voice)
        thinker = yield from self.part("thinker")
        yield Status("thinking")
        messages = prompts.conversation(request, text, language)
        _, dropped = thinker.fit(messages, request.sampling.max_new_tokens or SPOKEN_TOKENS)
        if dropped:
            yield Stats({"dropped_turns": dropped})
        reply = thinker.reply(messages, request.sampling, SPOKEN_TOKENS)
        yield from self.think_aloud(reply, style) if request.speak else understand.written(reply)

    # --- what capabilities are made of --------------------------------------------------------------------------------

    def part(self, name: str) -> Result:
        """Load a part if it is not loaded yet; return it."""
        if name not in self._parts:
            yield Status("loading", {"what": TITLES[name]})
            self._parts[name] = MAKERS[name](self._path_of)
        return self._parts[name]

    def hear(self, waveform: Waveform, language: str = "auto", *, show: bool = False) -> Result:
        """Transcribe; yields Heard with what was made out so far (as the answer's text if `show`); a Transcript."""
        from models.compact.hear import Transcript

        recognizer = yield from self.part("recognizer")
        yield Status("listening")
        so_far = ""
        with closing(recognizer.transcribe(waveform, language)) as pieces:
            for piece in pieces:
                if isinstance(piece, Transcript):
                    return piece
                if piece:
                    so_far += piece
                    yield TextDelta(piece) if show else Heard(so_far.strip())
                else:
                    yield None

    def speak(self, spoken: Iterable[str], style: voices.VoiceStyle | str, language: str) -> Result:
        """Speak clauses as they come; returns all of the sound as a Waveform."""
        from models.compact.speak import RATE

        speaker = yield from self.part("speaker")
        yield Status("speaking")
        pcm = [np.zeros(0, np.int16)]
        for clause in spoken:
            for chunk in speaker.speak_clause(clause, style, language):
                pcm.append(chunk)
                yield AudioChunk(chunk, RATE)
        return from_pcm(np.concatenate(pcm), RATE)

    def think_aloud(
        self, deltas: Generator[str | None, None, Any], style: voices.VoiceStyle | None, *, shown: bool = False
    ) -> Steps:
        """Speak a text while it is written, clause by clause; its deltas are not given again if they were `shown`."""
        writing = Clauses()
        with closing(deltas):
            for delta in deltas:
                yield TextDelta(delta) if delta and not shown else None
                yield from self._speak_in_own_language(writing.push(delta or ""), style)
        yield from self._speak_in_own_language(writing.finish(), style)

    def _speak_in_own_language(self, spoken: list[str], style: voices.VoiceStyle | None) -> Steps:
        for clause in spoken:
            language = written_language(clause)
            yield from self.speak([clause], style or voices.default_voice(language), language)

    def _say_as(self, reference: Waveform, text: str, language: str) -> Steps:
        """Speak in the voice closest to the reference, and measure how close it came."""
        style, embedding = yield from self._closest(reference, language)
        said = yield from self.speak(clauses(text), style, language)
        encoder = yield from self.part("encoder")
        close = round(similarity(embedding, encoder.embed(said)), 3) if len(said.samples) else None
        yield Stats({"similarity": close, "voice": style.name, "language": language})

    def _closest(self, reference: Waveform, language: str) -> Result:
        """The style closest to the reference, and the reference's speaker embedding."""
        from models.compact.pitch import median_pitch

        encoder = yield from self.part("encoder")
        embedding = encoder.embed(reference)
        yield None
        style, _ = voices.closest_voice(embedding, language, median_pitch(reference))
        return style, embedding

    @staticmethod
    def _library_style(voice: str) -> voices.VoiceStyle:
        try:
            return voices.style_of(voice)
        except KeyError:
            raise UserError("voice_unknown", voice=voice) from None


def written_language(text: str) -> str:
    """ "zh" where a good part of the text is Chinese characters, else "en"."""
    hanzi, letters = len(re.findall(f"[{HANZI}]", text)), len(re.findall(r"[A-Za-z]", text))
    return "zh" if hanzi and hanzi * 4 >= letters else "en"


# --- the parts: what a person reads while one loads, and how it is made -----------------------------------------------

TITLES = {
    "recognizer": WHISPER_BASE.title,
    "speaker": KOKORO.title,
    "thinker": QWEN_CODER.title,
    "tagger": "YAMNet",
    "encoder": "GE2E speaker encoder",
}


def _recognizer(path_of: Callable[[str], Path]) -> Any:
    from models.compact.hear import Recognizer

    return Recognizer(path_of(WHISPER_BASE.id))


def _speaker(path_of: Callable[[str], Path]) -> Any:
    from models.compact.speak import Speaker

    return Speaker(path_of(KOKORO.id))


def _thinker(path_of: Callable[[str], Path]) -> Any:
    from models.compact.think import Thinker

    return Thinker(path_of(QWEN_CODER.id))


def _tagger(path_of: Callable[[str], Path]) -> Any:
    from models.compact.tags import Tagger

    return Tagger()


def _encoder(path_of: Callable[[str], Path]) -> Any:
    from models.compact.speaker import SpeakerEncoder

    return SpeakerEncoder()


MAKERS = {
    "recognizer": _recognizer,
    "speaker": _speaker,
    "thinker": _thinker,
    "tagger": _tagger,
    "encoder": _encoder,
}
