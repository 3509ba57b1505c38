"""Golden data of MiniCPM-o 2.6: what the original code answered with tiny random weights, case by case.

The folder holds `checkpoint`, audio.npz with audio.json, cases.json and a safetensors file a case, sys_prompts.json and
components.*; golden/minicpm_o/README.md says what each tensor is. Everything runs as upstream: nothing is mended.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.errors import UserError
from models.minicpm_o import chat, model
from models.minicpm_o.prompts import MOST_IDS, Prompt
from models.minicpm_o.system_prompts import system_prompt
from models.minicpm_o.vocoder import SAMPLE_RATE
from tests.parity.minicpm_o_components import Components
from tests.parity.minicpm_o_golden import CLOSE, Golden, clips, drawing, options, text_mask
from tests.parity.minicpm_o_real_sizes import real_sizes
from tests.parity.minicpm_o_sessions import session_case
from tests.parity.recorded import compare, facts
from tests.parity.report import Case
from tests.parity.watching import Watch, watching

ASIDE = ("case", "chat_args", "msgs", "tensors", "tts_sampling", "tts_first_head_outputs_steps")


def run(folder: Path) -> Iterator[Case]:
    """Every case and every component of a folder. Raises FileNotFoundError where it holds none."""
    golden = Golden(
        folder=folder,
        parts=model.load(folder / "checkpoint", "fp32", "cpu"),
        clips=clips(folder),
        cases=json.loads((folder / "cases.json").read_text(encoding="utf-8")),
    )
    for name, told in golden.cases.items():
        try:
            yield (session_case if "events" in told else chat_case)(golden, name, told)
        except Exception as error:  # of whatever kind: the other cases still run
            yield Case(name, wrong=[f"{type(error).__name__}: {error}"])
    if (folder / "sys_prompts.json").exists():
        yield system_prompts(golden)
    if (folder / "components.json").exists():
        yield from Components(golden).run()
    yield from real_sizes(folder)


def system_prompts(golden: Golden) -> Case:
    """Every mode, language, with and without a reference, followed by a message "hi"."""
    case = Case("sys_prompts")
    reference = next((name for name in golden.clips if name.startswith("ref")), min(golden.clips))
    told = json.loads((golden.folder / "sys_prompts.json").read_text(encoding="utf-8"))
    for key, one in told.items():
        mode, language, voice = key.split("|")
        sound = golden.clip(reference) if voice == "ref" else None
        try:
            message = system_prompt(mode, language, sound, revision="early", upstream=True)
        except UserError:
            case.fact(f"{key}.error", "error", "error" if "error" in one else "a prompt")
            continue
        case.fact(f"{key}.role", message.role, one.get("role"))
        content = [part if isinstance(part, str) else "<AUDIO>" for part in message.parts]
        case.fact(f"{key}.content", content, one.get("content"))
        prompt = golden.parts.prompts.chat([message, {"role": "user", "content": "hi"}], upstream=True)
        case.fact(f"{key}.templated", prompt.templated, one.get("templated"))
        case.tokens(f"{key}.prompt_ids", prompt.ids, one.get("prompt_ids", []))
    return case


# --- one-shot ---------------------------------------------------------------------------------------------------------


def chat_case(golden: Golden, name: str, told: dict[str, Any]) -> Case:
    case, args = Case(name), told["chat_args"]
    batch = isinstance(told["msgs"][0], list)
    conversations = told["msgs"] if batch else [told["msgs"]]
    prompts = [
        golden.parts.prompts.chat(
            [golden.message(message) for message in messages],
            aloud=args.get("use_tts_template", False),
            joined_by="" if args.get("omni_input") else "\n",
            limit=args.get("max_inp_length", MOST_IDS),
            upstream=True,
        )
        for messages in conversations
    ]
    with watching(golden.parts.speech) as watch, drawing(told.get("tts_sampling", "greedy")):
        answers = chat.upstream_chat(golden.parts, prompts, options(args))
    ours = {**prompt_tensors(golden, prompts, answers), **answer_tensors(golden, answers)}
    known = prompt_facts(golden, prompts, batch)
    texts = [answer.text for answer in answers]
    known["answer_text"] = texts if batch else texts[0]
    if answers[0].speech is not None:
        spoken, sound = speech_values(golden, answers[0], watch, told.get("tts_first_head_outputs_steps", []))
        ours |= spoken
        known |= sound
    compare(case, golden.tensors(name), ours, CLOSE)
    facts(case, told, known, ASIDE)
    return case


def prompt_tensors(golden: Golden, prompts: list[Prompt], answers: list[chat.Answer]) -> dict[str, Any]:
    """The prompts as a batch: padded on the left with id 0."""
    network = golden.parts.language.network
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt.ids for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    rows = []
    for row, answer in zip(ids, answers, strict=True):
        own = golden.parts.language.embed(answer.prompt, answer.heard)
        rows.append(torch.cat([network.model.embed_tokens(row[: longest - len(own)]), own]))
    made: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "inputs_embeds": torch.stack(rows)}
    for sample, answer in enumerate(answers):
        made |= {f"audio_embeds.{sample}.{piece}": vectors for piece, vectors in enumerate(answer.heard)}
    mels = [golden.mel(piece) for prompt in prompts for piece in prompt.pieces(upstream=True)]
    if mels:
        frames = max(mel.shape[-1] for mel in mels)
        made["audio_features"] = torch.stack(
            [torch.nn.functional.pad(mel, (0, frames - mel.shape[-1])) for mel in mels]
        )
    with torch.inference_mode():
        read = network(inputs_embeds=made["inputs_embeds"], attention_mask=mask, position_ids=positions(mask))
    made["llm_first_logits"] = read.logits[0, -1]
    return made


def positions(mask: Tensor) -> Tensor:
    """Positions of a batch that is padded on the left."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def answer_tensors(golden: Golden, answers: list[chat.Answer]) -> dict[str, Any]:
    longest = max(len(answer.ids) for answer in answers)
    made: dict[str, Any] = {
        "llm_output_ids": torch.tensor([answer.ids + [0] * (longest - len(answer.ids)) for answer in answers])
    }
    if answers[0].speaker is not None:
        made["spk_embeds"] = answers[0].speaker
    return made


def prompt_facts(golden: Golden, prompts: list[Prompt], batch: bool) -> dict[str, Any]:
    longest, tokenizer = max(map(len, prompts)), golden.parts.tokenizer
    pads = [longest - len(prompt) for prompt in prompts]
    frames = [[golden.mel(piece).shape[-1] for piece in prompt.pieces(upstream=True)] for prompt in prompts]
    texts = [prompt.text for prompt in prompts]
    speakers = [
        [[place + pad, place + pad + 1] for place, each in enumerate(prompt.ids) if each == tokenizer.id("<|spk|>")]
        for pad, prompt in zip(pads, prompts, strict=True)
    ]
    mels = golden.parts.config.audio.num_mel_bins
    return {
        "templated": [prompt.templated for prompt in prompts],
        "prompt": texts if batch else texts[0],
        "audio_bounds": [
            [[start + pad, end + pad] for start, end in prompt.audio_bounds]
            for pad, prompt in zip(pads, prompts, strict=True)
        ],
        "spk_bounds": speakers,
        "audio_feature_lens": frames,
        "audio_features_shape": [sum(map(len, frames)), mels, max(map(max, filter(None, frames)), default=0)],
    }


def speech_values(
    golden: Golden, answer: chat.Answer, watch: Watch, steps: list[int]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What was spoken: tensors, and facts."""
    assert answer.speech is not None and answer.sound is not None and golden.parts.speech is not None
    codes = torch.stack(answer.speech.codes)
    mel = golden.parts.speech.dvae(codes)
    tensors = {
        "tts_text_ids_prefilled": np.array(watch.text_ids()),
        "tts_text_mask": text_mask(answer.speech.text_length, answer.speech.decoder.bos),
        "tts_layer0_keys_text": watch.text_keys(),
        "tts_first_head_outputs": torch.stack([watch.logits[step] for step in steps]) if steps else torch.empty(0),
        "tts_audio_ids": codes[None],
        "mel_spec": mel,
        "wav": answer.sound,
    }
    return tensors, {
        "tts_prefill_positions": watch.places,
        "tts_chunk_totals": watch.totals,
        "tts_finished": answer.speech.ended,
        "tts_max_new_token": sorted(set(watch.asked)),
        "mel_frames": mel.shape[-1],
        "wav_len": len(answer.sound),
        "sampling_rate": SAMPLE_RATE,
    }
