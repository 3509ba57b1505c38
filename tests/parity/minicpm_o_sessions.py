"""Golden sessions of MiniCPM-o 2.6: messages read as they come, answers streamed, event after event."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.minicpm_o.prompts import Prompt
from models.minicpm_o.session import MOST_STREAMED_TOKENS, Session
from tests.parity.minicpm_o_golden import CLOSE, Golden, drawing, options, text_mask
from tests.parity.recorded import compare, facts
from tests.parity.report import Case
from tests.parity.watching import Watch, watching

ASIDE = ("op", "session", "msg", "args", "stopped_after_yields")


def session_case(golden: Golden, name: str, told: dict[str, Any]) -> Case:
    """Events one after another. As upstream's, there is one session at a time: another name begins anew."""
    case = Case(name)
    with drawing(told.get("tts_sampling", "greedy")):
        run_events(golden, case, golden.tensors(name), told["events"])
    return case


def run_events(golden: Golden, case: Case, recorded: dict[str, Tensor], events: list[dict[str, Any]]) -> None:
    session, current = Session(golden.parts, upstream=True), None
    for index, event in enumerate(events):
        if event["session"] != current:
            session, current = Session(golden.parts, upstream=True), event["session"]
        if event["op"] == "prefill":
            ours, known = prefill_event(golden, session, event)
        else:
            ours, known = generate_event(golden, session, event)
        prefix = f"ev{index}."
        own = {key.removeprefix(prefix): recorded.pop(key) for key in list(recorded) if key.startswith(prefix)}
        compare(case, own, ours, CLOSE, prefix)
        facts(case, event, known, ASIDE, prefix)
    compare(case, recorded, {}, CLOSE)  # what belongs to no event is named


def prefill_event(golden: Golden, session: Session, event: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    language, heard, given = golden.parts.language, [], []
    kept = language.prefill

    def prefill(prompt: Prompt, vectors: list[Tensor], cache: Any) -> Iterator[int]:
        given.append(prompt)
        heard.extend(vectors)
        return kept(prompt, vectors, cache)

    language.prefill = prefill
    try:
        for _ in session.prefill(golden.message(event["msg"])):
            pass
    finally:
        language.prefill = kept
    [prompt] = given
    ours: dict[str, Any] = {"inputs_embeds": language.embed(prompt, heard)[None]}
    if heard:
        ours["audio_embeds"] = torch.cat(heard)
        ours["mel"] = torch.cat([golden.mel(piece) for piece in prompt.pieces(upstream=True)], -1)[None]
    return ours, {
        "prompt": prompt.text,
        "ids": prompt.ids,
        "kv_len_after": session.cache.length,
        "apm_kv_len_after": session.hears.length if session.hears else None,
        "new_user_msg_after": session.opens,
    }


def generate_event(golden: Golden, session: Session, event: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    calls, language = [], golden.parts.language
    kept = language.generate

    def generate(cache: Any, sampler: Any, stops: Any, limit: int, seen: Any) -> Iterator[int]:
        calls.append(list(seen))
        for token in kept(cache, sampler, stops, limit, seen):
            calls[-1].append(token)
            yield token

    language.generate = generate
    pieces = []
    try:
        with watching(golden.parts.speech) as watch:
            for piece in session.generate(options(event["args"], True, MOST_STREAMED_TOKENS)):
                if piece is not None:
                    pieces.append(piece)
                    if len(pieces) == event.get("stopped_after_yields"):
                        break
    finally:
        language.generate = kept
    sounds = [piece.sound for piece in pieces if piece.sound is not None]
    speaks = event["args"].get("generate_audio", True)
    assert session.cache.speaker is not None
    ours: dict[str, Any] = {
        "spk_embeds": session.cache.speaker,
        "tts_text_ids_prefilled": np.array(watch.text_ids()),
        "wav": torch.cat(sounds) if sounds else torch.empty(0),
    }
    return ours | segment_codes(watch), {
        "yield_texts": [piece.text for piece in pieces],
        "yield_wav_lens": [None if piece.sound is None else len(piece.sound) for piece in pieces],
        "llm_calls": calls,
        "llm_generate_completed": session.completed,
        "tts_prefill_positions": watch.places if speaks else None,
        "tts_generate_totals": watch.totals if speaks else None,
        "tts_text_mask_sums": mask_sums(golden, watch),
        "dvae_in_lens": watch.decoded,
        "finished": watch.ends if speaks else None,
        "segments_prefill_audio": len(watch.carried),
        "kv_len_after": session.cache.length,
    }


def mask_sums(golden: Golden, watch: Watch) -> list[int]:
    assert golden.parts.speech is not None
    bos = golden.parts.speech.decoder.bos
    return [int(text_mask(known, bos).sum()) for known in watch.known]


def segment_codes(watch: Watch) -> dict[str, Any]:
    """segN.audio_ids: all frames of each segment."""
    last = [index for index in range(len(watch.totals)) if watch.ends[index] or index + 1 == len(watch.totals)]
    return {f"seg{number}.audio_ids": watch.codes[index][None] for number, index in enumerate(last)}
