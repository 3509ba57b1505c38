"""Golden components of MiniCPM-o 2.6: each part of the model alone, and the helpers around it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import TopKLogitsWarper, TopPLogitsWarper

from models.minicpm_o.audio_encoder import PIECE, placeholder_counts
from models.minicpm_o.chat import Piece
from models.minicpm_o.session import paired
from models.minicpm_o.speaking import Speaking
from models.minicpm_o.speech_text import language_of, sentence_end, spell_digits
from models.minicpm_o.utterance import Drawing, penalize, visible_text
from models.minicpm_o.vocoder import OverlapAdd
from tests.parity.recorded import compare, facts
from tests.parity.report import Case
from tests.parity.watching import Watch, watching

CLOSE = 1e-4
NOT_PART = {  # recorded, but of nothing that is run to hear or to speak
    "dvae.enc": "the DVAE's encoder, which makes codes of sound",
    "chattts_mel_24k": "the DVAE encoder's own spectrogram",
    "rep_penalty_class": "the name of upstream's class; see component/rep",
    "voice_checker": "counts of a helper whose input was not recorded",
}


class Kept:
    """A function that keeps what it made last."""

    def __init__(self, function: Callable[..., Tensor]):
        self._function = function

    def __call__(self, *given: Any) -> Tensor:
        self.made = self._function(*given)
        return self.made


class Components:
    """components.json and components.safetensors of a folder, taken apart by their names."""

    def __init__(self, golden: Any):
        self.golden, self.parts = golden, golden.parts
        self.told: dict[str, Any] = json.loads((golden.folder / "components.json").read_text(encoding="utf-8"))
        self.tensors = load_file(golden.folder / "components.safetensors")
        self.told.pop("tensors", None)
        self.kinds: dict[str, Callable[[Case, str], None]] = {
            "mel": self.mel,
            "placeholder_tokens_by_samples": self.placeholders,
            "placeholder_tokens_by_samples_nochunk": self.placeholders,
            "apm": self.encoder,
            "subsequent_chunk_mask": self.chunk_mask,
            "tts_mask": self.speech_mask,
            "prepare_tts_text": self.speech_text,
            "dvae": self.codes_to_mel,
            "vocos": self.codes_to_mel,
            "ola": self.overlap,
            "numbers": self.numbers,
            "detect_language": self.language,
            "sentence_end": self.sentence_end,
            "warpers": self.warpers,
            "rep": self.repetition,
            "stream_tts": self.streamed_speech,
        }

    def run(self) -> Iterator[Case]:
        """A case for each kind of component."""
        names = sorted({*self.told, *self.tensors})
        groups: dict[str, list[str]] = {}
        for name in names:
            group = next((each for each in NOT_PART if name.startswith(each)), name.split(".")[0].split("(")[0])
            groups.setdefault(group, []).append(name)
        for group, members in groups.items():
            case = Case(f"component/{group}")
            if group in NOT_PART:
                case.notes.append(f"not run: {NOT_PART[group]}")
            elif group not in self.kinds:
                case.wrong.append(f"{', '.join(members)}: recorded, but nothing here gives it")
            else:
                try:
                    self.kinds[group](case, group)
                except Exception as error:  # of whatever kind: the other components still run
                    case.wrong.append(f"{type(error).__name__}: {error}")
            yield case

    def named(self, group: str) -> dict[str, Tensor]:
        """The group's tensors; each must be taken out by who compares it (see `left`)."""
        return {name: tensor for name, tensor in self.tensors.items() if name.split(".")[0] == group}

    # --- ears ---------------------------------------------------------------------------------------------------------

    def mel(self, case: Case, group: str) -> None:
        ours = {name: self.golden.mel(self.golden.clip(name.split(".", 1)[1]))[None] for name in self.named(group)}
        compare(case, self.named(group), ours, CLOSE)
        for name, told in self.told.items():
            if name.startswith("mel."):
                samples = self.golden.clip(name.split(".", 1)[1])
                case.fact(f"{name}.frames", self.golden.mel(samples).shape[-1], told["frames"])
                case.fact(f"{name}.placeholders", self.groups(len(samples)), told["placeholder_chunks"])

    def groups(self, samples: int, chunked: bool = True) -> list[int]:
        return placeholder_counts(samples, self.parts.config.audio_pool_step, chunked)

    def placeholders(self, case: Case, group: str) -> None:
        """The recorded clips are shorter than 30 s or, beyond, cut to it, as one piece of a longer clip is."""
        chunked = not group.endswith("nochunk")
        for samples, told in self.told[group].items():
            ours = self.groups(min(int(samples), PIECE), chunked)
            case.fact(samples, ours if chunked else sum(ours), told)

    def encoder(self, case: Case, group: str) -> None:
        ears, ours = self.parts.ears, {}
        order = self.told["apm.batch3"]["order"] if "apm.batch3" in self.told else []
        if order:
            case.fact(
                "mel_lens",
                [self.golden.mel(self.golden.clip(one)).shape[-1] for one in order],
                self.told["apm.batch3"]["mel_lens"],
            )
            for row, vectors in enumerate(ears.encode([self.golden.clip(one) for one in order])):
                ours[f"apm.batch3.{row}"] = vectors
        for clip in {name.split(".")[1] for name in self.named(group)} - {"batch3"}:
            mel = self.golden.mel(self.golden.clip(clip))
            for row, vectors in enumerate(ears.encode([self.golden.clip(clip)])):
                ours[f"apm.{clip}.chunk1.{row}"] = vectors
            norm = ears._encoder.layer_norm
            with patch.object(norm, "forward", Kept(norm.forward)) as hidden:
                ours[f"apm.{clip}.full"] = next(v for v in ears.mel_steps([mel], chunked=False) if v is not None)
            ours[f"apm.{clip}.encoder_last_hidden_full"] = hidden.made
        compare(case, self.named(group), ours, CLOSE)

    def chunk_mask(self, case: Case, group: str) -> None:
        """subsequent_chunk_mask(positions,chunk): 1 where a position (row) hears another (column)."""
        for name, told in self.told.items():
            if name.startswith(group):
                positions, chunk = (int(number) for number in name[len(group) + 1 : -1].split(","))
                ears = self.parts.ears
                kept, ears._chunk = ears._chunk, chunk
                mask = ears._mask(torch.tensor([positions]), positions, True)[0, 0]
                ears._chunk = kept
                case.fact(name, (mask == 0).int().tolist(), told)

    # --- sound --------------------------------------------------------------------------------------------------------

    def codes_to_mel(self, case: Case, group: str) -> None:
        """dvae.N.ids → dvae.N.mel → vocos.N.wav."""
        golden = {n: t for n, t in self.named(group).items() if not n.endswith(".ids") and not n.startswith("dvae.enc")}
        ours = {}
        for name in golden:
            _, number, _ = name.split(".")
            mel = self.parts.speech.dvae(self.tensors[f"dvae.{number}.ids"][0])
            ours[name] = mel if group == "dvae" else self.parts.speech.vocoder(mel)
        compare(case, golden, ours, CLOSE)

    def overlap(self, case: Case, group: str) -> None:
        """Two waves by the recipe, joined. Upstream gives the first one's length out, then what is left."""
        told = self.told[group]
        first, second = (int(re.search(r"n<(\d+)", told[wave])[1]) for wave in ("in_a", "in_b"))
        join = OverlapAdd(told["overlap"])
        waves = np.sin(np.arange(first) / 20), np.cos(np.arange(second) / 33)
        head, middle = (join.push(torch.from_numpy(wave.astype(np.float32))) for wave in waves)
        rest = torch.cat([middle, join.finish()])
        whole = torch.cat([head, rest])
        case.fact("out_lens", [first, len(whole) - first], told["out_lens"])
        ours = {}
        for name, tensor in self.named(group).items():
            ours[name] = (
                whole[first - len(tensor) : first] if "out0_tail" in name else whole[first : first + len(tensor)]
            )
        compare(case, self.named(group), ours, CLOSE)

    # --- speech -------------------------------------------------------------------------------------------------------

    def speech_mask(self, case: Case, group: str) -> None:
        """Which positions a step of the speech decoder sees, for `past` positions before it."""
        decoder = self.parts.speech.decoder
        for told in self.told[group]:
            frames = told["past"] - decoder.bos
            text = visible_text(frames, told["text_len"], decoder.reserved)
            runs = [[0, text - 1]] + ([[decoder.bos + 1, told["past"]]] if frames else [])
            name = f"past {told['past']}, text {told['text_len']}"
            case.fact(name, runs, told["visible_runs_inclusive"])
            case.fact(f"{name}: length", told["past"] + 1, told["mask_len"])

    def speech_text(self, case: Case, group: str) -> None:
        for told in self.told[group]:
            ids, known = self.parts.speech.text.layout(told["text"])
            case.fact(f"{told['text'][:40]!r}: n_tokens", [known, len(ids)], [told["n_tokens"], told["ids_len"]])
            for name, ours in (("ids_first_40", ids[:40]), ("ids_last_5", ids[-5:])):
                case.tokens(f"{told['text'][:40]!r}: {name}", ours, told[name])

    def numbers(self, case: Case, group: str) -> None:
        for text, language, told in self.told[group]:
            case.fact(text, spell_digits(text, language), told)

    def language(self, case: Case, group: str) -> None:
        for text, told in self.told[group]:
            case.fact(text, language_of(text), told)

    def sentence_end(self, case: Case, group: str) -> None:
        for text, told in self.told[group]:
            case.fact(text, sentence_end(text), told)

    def warpers(self, case: Case, group: str) -> None:
        """The codes that top-p and top-k leave, of logits as the heads give them."""
        config = self.parts.config.tts
        logits = self.tensors["warpers.in"]
        for warper in (
            TopPLogitsWarper(config.top_p, min_tokens_to_keep=3),
            TopKLogitsWarper(config.top_k, min_tokens_to_keep=3),
        ):
            case.fact("class", type(warper).__name__ in self.told[group], True)
            logits = warper(torch.empty(0), logits)
        golden = {name: tensor for name, tensor in self.named(group).items() if name != "warpers.in"}
        compare(case, golden, {"warpers.kept": logits.isfinite()}, CLOSE)

    def repetition(self, case: Case, group: str) -> None:
        """Logits of `warpers.in` made smaller for the codes of the last frames. Golden data was made with 1.3."""
        recent = self.tensors["rep.hist"].long().t()[-Drawing.penalty_frames :]
        golden = {name: tensor for name, tensor in self.named(group).items() if name != "rep.hist"}
        compare(case, golden, {"rep.out": penalize(self.tensors["warpers.in"].clone(), recent, 1.3)}, CLOSE)

    def streamed_speech(self, case: Case, group: str) -> None:
        """Scripted text, drawn greedily, with ends at given draws."""
        golden, left = self.named(group), set(self.named(group))
        for key, told in self.told.items():
            if not key.startswith(f"{group}."):
                continue
            pieces, watch = self.spoken(told)
            sounds = [piece.sound for piece in pieces]
            whole = torch.cat(sounds) if sounds else torch.empty(0)
            ours: dict[str, Any] = {f"{key}.text_ids_prefilled": np.array(watch.text_ids()), f"{key}.wav": whole}
            ours |= {f"{key}.audio_ids_at_generate{at}": codes[None] for at, codes in enumerate(watch.codes)}
            own = {name: tensor for name, tensor in golden.items() if name.startswith(f"{key}.")}
            left -= set(own)
            compare(case, own, ours, CLOSE)
            bos = self.parts.speech.decoder.bos
            facts(
                case,
                told,
                {
                    "yield_texts": [piece.text for piece in pieces],
                    "yield_wav_lens": [len(sound) for sound in sounds],
                    "new_ids_totals": watch.totals,
                    "finished": watch.ends,
                    "prefill_positions": watch.places,
                    "prefill_audio_ids_shapes": watch.carried,
                    "text_mask_sums": [min(known + 3, bos) + 1 for known in watch.known],
                    "dvae_in_lens": watch.decoded,
                    "max_new": watch.asked,
                    "sampler_calls": len(watch.logits),
                    "wav_len": len(whole),
                },
                ("pieces", "spk_embeds", "sampler", "eos_calls", "enable_regenerate"),
                f"{key}.",
            )
        case.wrong += [f"{name}: recorded, but of no script" for name in sorted(left)]

    def spoken(self, told: dict[str, Any]) -> tuple[list[Piece], Watch]:
        ends, calls = set(told["eos_calls"]), count()

        def draw(chances: Tensor) -> Tensor:
            drawn = chances[:, :-1].argmax(-1)
            if next(calls) in ends:
                drawn[0] = chances.shape[-1] - 1
            return drawn

        seed = re.search(r"default_rng\((\d+)\)", told["spk_embeds"])
        assert seed
        state = np.random.default_rng(int(seed[1])).standard_normal((1, self.parts.config.tts.llm_dim))
        speaker = torch.from_numpy(state.astype(np.float32))[0]
        with watching(self.parts.speech) as watch:
            speaking = Speaking(self.parts.speech, speaker, draw, upstream=True)
            pieces = list(paired(speaking, iter(told["pieces"])))
        return [piece for piece in pieces if piece is not None], watch
