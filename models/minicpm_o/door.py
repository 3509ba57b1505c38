"""MiniCPM-o 2.6 for Python, in its model card's words: from_pretrained, chat, streaming_prefill, streaming_generate.

`upstream=True` gives what the original code gives, its defects included; otherwise they are mended (README says which).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from models.errors import UserError
from models.minicpm_o import chat, model
from models.minicpm_o.chat import Options
from models.minicpm_o.checkpoint import Checkpoint
from models.minicpm_o.language import KVCache
from models.minicpm_o.prompts import MOST_IDS, Message, Prompt
from models.minicpm_o.sampling import Decoding
from models.minicpm_o.session import MOST_STREAMED_TOKENS, Session
from models.minicpm_o.system_prompts import Revision, system_prompt
from models.minicpm_o.vocoder import SAMPLE_RATE

SESSIONS = 32  # that are remembered; the one that was silent longest is forgotten first


@dataclass
class OmniOutput:
    """An answer, or a piece of one.

    `audio_wav` float32 [n] at `sampling_rate` Hz, None in an answer without sound. `spk_embeds` [1, width of the
    language model]: what the voice was made of.
    """

    text: str
    audio_wav: np.ndarray | None = None
    sampling_rate: int | None = None
    spk_embeds: Tensor | None = None


class MiniCPMO:
    """A model in memory. Conversations are told apart by their session_id, and never mix.

    Sound that is given is float32 [n] at 16 kHz. A wrong argument, clip or file raises UserError, whose sentence says
    what to do.
    """

    def __init__(self, parts: model.Parts, folder: Path, upstream: bool = False):
        self.parts, self.upstream = parts, upstream
        self._folder = folder
        self._sessions: OrderedDict[str, Session] = OrderedDict()

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        init_vision: bool = False,
        init_audio: bool = True,
        init_tts: bool = True,
        precision: str | None = None,
        device: str | None = None,
        upstream: bool = False,
        attn_implementation: str = "sdpa",
    ) -> MiniCPMO:
        """Read a checkpoint's folder; no code of it is run. `init_audio`: can hear; `init_tts`: can speak.

        `precision` is "fp32", "bf16", "int8" or "int4"; the usual is bf16 on a GPU, else fp32.
        """
        if init_vision:
            raise UserError("vision_not_served")
        folder = Path(folder)
        if not folder.is_dir():
            raise UserError("weights_missing", what=f"MiniCPM-o 2.6 ({folder})")
        device, precision = model.usual(device, precision)
        return cls(model.load(folder, precision, device, init_audio, init_tts, attn_implementation), folder, upstream)

    def eval(self) -> MiniCPMO:
        """As it is already; the model card calls it."""
        return self

    def init_tts(self) -> None:
        """Load what speaks, unless it was."""
        if self.parts.speech is None:
            parts, checkpoint = self.parts, Checkpoint.open(self._folder)
            parts.speech = model.load_speech(
                self._folder, parts.config, checkpoint, model.beside(parts.precision, parts.device), parts.device
            )

    def get_sys_prompt(
        self,
        ref_audio: np.ndarray | None = None,
        mode: str = "default",
        language: str = "zh",
        revision: Revision | None = None,
    ) -> dict[str, Any]:
        """The first message of a conversation, as in system_prompts.py. `revision`: "early" or "late"."""
        message = system_prompt(
            mode, language, ref_audio, revision or ("early" if self.upstream else "late"), self.upstream
        )
        return {"role": message.role, "content": list(message.parts)}

    # --- one-shot -----------------------------------------------------------------------------------------------------

    def chat(
        self,
        msgs: Sequence[Any],
        tokenizer: Any = None,
        *,
        sampling: bool = True,
        max_new_tokens: int = chat.MOST_TOKENS,
        max_inp_length: int = MOST_IDS,
        use_tts_template: bool = False,
        generate_audio: bool = False,
        omni_input: bool = False,
        output_audio_path: str | Path | None = None,
        stream: bool = False,
        return_dict: bool = False,
        seed: int | None = None,
        **decoding: Any,
    ) -> Any:
        """Answer a conversation: a list of messages {"role", "content"}; or several, a list of such lists.

        Gives an OmniOutput with `generate_audio` (or `return_dict`), else the text; a list of them for several
        conversations; an iterator over pieces of it with `stream`. `decoding`: temperature, top_p, top_k,
        repetition_penalty, num_beams; as upstream, without `sampling` it searches with three beams. `tokenizer` is not
        needed. `seed` gives the same answer again.
        """
        several = bool(msgs) and isinstance(msgs[0], (list, tuple))
        options = self._options(sampling, max_new_tokens, generate_audio, seed, decoding)
        prompts = [
            self.parts.prompts.chat(
                own,
                aloud=use_tts_template or (generate_audio and not self.upstream),
                joined_by="" if omni_input else "\n",
                limit=max_inp_length,
                upstream=self.upstream,
            )
            for own in (msgs if several else [msgs])
        ]
        if stream:
            if several:
                raise UserError("one_conversation")
            return self._streamed(prompts[0], options)
        if self.upstream:
            answers = self._upstream_answers(prompts, options)
        else:
            answers = [self._answer(prompt, options) for prompt in prompts]
        if output_audio_path and not several and answers[0].audio_wav is not None:
            save(output_audio_path, answers[0].audio_wav)
        given = [answer if generate_audio or return_dict else answer.text for answer in answers]
        return given if several else given[0]

    def _options(
        self, sampling: bool, limit: int, speak: bool, seed: int | None, decoding: Mapping[str, Any]
    ) -> Options:
        return Options(Decoding.upstream(sampling, **decoding), max(1, limit), speak, seed)

    def _upstream_answers(self, prompts: list[Prompt], options: Options) -> list[OmniOutput]:
        return [
            OmniOutput(
                answer.text,
                None if answer.sound is None else answer.sound.cpu().numpy(),
                None if answer.sound is None else SAMPLE_RATE,
                answer.speaker,
            )
            for answer in chat.upstream_chat(self.parts, prompts, options)
        ]

    def _answer(self, prompt: Prompt, options: Options) -> OmniOutput:
        cache = KVCache()
        pieces = [piece for piece in chat.stream(self.parts, prompt, cache, options, whole=True) if piece is not None]
        text = "".join(piece.text for piece in pieces)
        if not options.speak:
            return OmniOutput(text, spk_embeds=cache.speaker)
        return OmniOutput(text, _joined(pieces), SAMPLE_RATE, cache.speaker)

    def _streamed(self, prompt: Prompt, options: Options) -> Iterator[Any]:
        for piece in chat.stream(self.parts, prompt, KVCache(), options):
            if piece is not None and (options.speak or piece.text):
                yield _output(piece) if options.speak else piece.text

    # --- streaming ----------------------------------------------------------------------------------------------------

    def streaming_prefill(
        self, session_id: str, msgs: Sequence[Any], tokenizer: Any = None, omni_input: bool = True
    ) -> None:
        """Read one message more of a session.

        The first is a whole turn (the system prompt); then come the user's, in as many pieces as they like: sound of
        about a second each, or text. A new session_id begins a new session; upstream forgets the one before.
        """
        if len(msgs) != 1:
            raise UserError("one_message", given=len(msgs))
        message = Message.of(msgs[0])
        session = self._sessions.get(session_id)
        if session is None:
            session = Session(self.parts, self.upstream)
            while len(self._sessions) >= (1 if self.upstream else SESSIONS):
                self._sessions.popitem(last=False)
            self._sessions[session_id] = session
        self._sessions.move_to_end(session_id)
        for _ in session.prefill(message):
            pass

    def streaming_generate(
        self,
        session_id: str,
        tokenizer: Any = None,
        *,
        sampling: bool = True,
        max_new_tokens: int = MOST_STREAMED_TOKENS,
        generate_audio: bool = True,
        omni_input: bool = True,
        seed: int | None = None,
        **decoding: Any,
    ) -> Iterator[Any]:
        """Answer a session: OmniOutput pieces of text and sound as they are made, or without sound {"text": …}.

        Text waits for the next sound. The iterator may be left at any time; the session then knows that the answer was
        cut short. Without `sampling` the best token is taken.
        """
        session = self._sessions.get(session_id)
        if session is None:
            raise UserError("session_empty")
        decoding = decoding if sampling else {"num_beams": 1, **decoding}
        options = self._options(sampling, max_new_tokens, generate_audio, seed, decoding)
        if options.decoding.beams != 1:
            raise UserError("setting_out_of_range", setting="num_beams", low=1, high=1)
        return self._spoken(session, options)

    def end_session(self, session_id: str) -> None:
        """Forget a session; its memory is free."""
        self._sessions.pop(session_id, None)

    def _spoken(self, session: Session, options: Options) -> Iterator[Any]:
        waiting = ""
        for piece in session.generate(options):
            if piece is None:
                continue
            if not options.speak:
                yield {"text": piece.text}
                continue
            waiting += piece.text
            if piece.sound is not None:
                yield OmniOutput(waiting, piece.sound.cpu().numpy(), SAMPLE_RATE)
                waiting = ""
        if waiting:
            yield OmniOutput(waiting, np.zeros(0, np.float32), SAMPLE_RATE)


def save(path: str | Path, samples: np.ndarray) -> None:
    """Write 16-bit sound to a file, in the format that its name says."""
    import soundfile

    soundfile.write(path, samples, SAMPLE_RATE)


def _output(piece: chat.Piece) -> OmniOutput:
    sound = np.zeros(0, np.float32) if piece.sound is None else piece.sound.cpu().numpy()
    return OmniOutput(piece.text, sound, SAMPLE_RATE)


def _joined(pieces: list[chat.Piece]) -> np.ndarray:
    sounds = [piece.sound.cpu().numpy() for piece in pieces if piece.sound is not None]
    return np.concatenate(sounds) if sounds else np.zeros(0, np.float32)
