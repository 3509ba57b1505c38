"""MiniCPM-o's speech: the decoder, DVAE and vocoder against recorded numbers, utterances in turns, text for speech."""

from __future__ import annotations

import itertools
import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from models.errors import UserError
from models.minicpm_o import utterance as utterance_module
from models.minicpm_o.checkpoint import Checkpoint, used_keys
from models.minicpm_o.config import MiniCPMOConfig, SpeechConfig
from models.minicpm_o.dvae import Dvae
from models.minicpm_o.english_numbers import say_numbers
from models.minicpm_o.speaking import Speaking, SpeechParts
from models.minicpm_o.speech_decoder import FRAMES_STEP, SpeechDecoder, expected
from models.minicpm_o.speech_text import Reading, SpeechText, language_of, sentence_end, spell_digits, spoken
from models.minicpm_o.utterance import (
    Drawing,
    Utterance,
    greedy,
    penalize,
    seeded,
    upstream_draw,
    visible_text,
)
from models.minicpm_o.vocoder import OverlapAdd, SoundStream, Vocoder
from tests.conftest import ROOT

GOLDEN = ROOT / "tests" / "golden" / "minicpm_o"
CHECKPOINT = GOLDEN / "checkpoint"
CLOSE = 1e-4
CASES: dict[str, dict[str, Any]] = json.loads((GOLDEN / "cases.json").read_text())
# The language model draws from the same generator in cases that are sampled as a whole: those are parity's.
SPEAKING = [
    name
    for name, case in CASES.items()
    if case.get("tts_chunk_totals") and (case["tts_sampling"] == "greedy" or not case["chat_args"]["sampling"])
]
UNITS: dict[str, Any] = json.loads((GOLDEN / "components.json").read_text())


@pytest.fixture(scope="module")
def units() -> dict[str, Tensor]:
    return load_file(GOLDEN / "components.safetensors")


@lru_cache
def decoder(precision: str = "fp32") -> SpeechDecoder:
    return SpeechDecoder(MiniCPMOConfig.read(CHECKPOINT).tts, Checkpoint.open(CHECKPOINT).tensors("tts."), precision)


@lru_cache
def dvae() -> Dvae:
    return Dvae(Checkpoint.open(CHECKPOINT).tensors("tts.dvae."))


@lru_cache
def vocoder() -> Vocoder:
    return Vocoder.read(CHECKPOINT / "assets" / "Vocos.pt")


@lru_cache
def text() -> SpeechText:
    return SpeechText(CHECKPOINT)


def worst(ours: Tensor, golden: Tensor) -> float:
    assert ours.shape == golden.shape
    return float((ours - golden).abs().max())


def speaker(seed: int = 3) -> Tensor:
    width = decoder().config.llm_dim
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(width).astype(np.float32))


def never_end(chances: Tensor) -> Tensor:
    return chances[:, :-1].argmax(-1)


# --- the decoder ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPEAKING)
def test_recorded_speech(name):
    case, golden = CASES[name], load_file(GOLDEN / f"case_{name}.safetensors")
    draw = greedy
    if case["tts_sampling"] != "greedy":
        torch.manual_seed(int(case["tts_sampling"].removeprefix("seeded:")))
        draw = upstream_draw
    ids, known = text().layout(case["answer_text"])
    read = case["tts_prefill_positions"][-1][1] + 1
    assert ids[:read] == golden["tts_text_ids_prefilled"].tolist()

    utterance = Utterance(decoder(), golden["spk_embeds"][0])
    totals, logits = [], []
    while not utterance.ended and not utterance.full:
        utterance.feed(ids[utterance.slots : min(12 + 10 * len(totals), read)])
        for _ in utterance.frames(FRAMES_STEP, draw):
            logits.append(utterance.logits)
        totals.append(len(utterance.codes))
    assert utterance.text_length <= known
    assert totals == case["tts_chunk_totals"] and utterance.ended == case["tts_finished"]
    assert torch.equal(torch.stack(utterance.codes), golden["tts_audio_ids"][0].long())
    steps = [step for step in case["tts_first_head_outputs_steps"] if step < len(logits)]
    assert worst(torch.stack([logits[step] for step in steps]), golden["tts_first_head_outputs"][: len(steps)]) < CLOSE
    keys = utterance._cache[0, 0][:, : decoder().bos].flip(1)
    shown = golden["tts_layer0_keys_text"].shape[1]
    assert worst(keys[:, :shown], golden["tts_layer0_keys_text"]) < CLOSE
    if "wav_first24576" in golden:
        mel = dvae()(torch.stack(utterance.codes))
        assert worst(mel[..., :96], golden["mel_spec_first96"][..., : mel.shape[-1]]) < CLOSE
        assert worst(vocoder()(mel)[:24576], golden["wav_first24576"]) < CLOSE


def test_visible_text_is_upstreams_mask():
    reserved = decoder().reserved
    for told in UNITS["tts_mask"]:
        seen = visible_text(told["past"] - decoder().bos, told["text_len"], reserved)
        frames = [[303, told["past"]]] if told["past"] > 302 else []
        assert [[0, seen - 1], *frames] == told["visible_runs_inclusive"], told


def test_warpers_and_penalty(units):
    utterance = Utterance(decoder(), speaker(), Drawing(temperatures=(1.0,) * 4))
    utterance.feed(text().layout("hello")[0][:4])
    utterance.codes = [torch.zeros(4, dtype=torch.int64)]
    drawn = []

    class Recorded(torch.nn.Module):
        def forward(self, _hidden: Tensor) -> Tensor:
            return units["warpers.in"].clone()

    head, decoder().head = decoder().head, Recorded()
    try:
        list(utterance.frames(1, lambda chances: (drawn.append(chances), greedy(chances))[1]))
    finally:
        decoder().head = head
    kept = units["warpers.kept"].bool()
    kept[:, -1] = False  # no stretch begins with the end
    assert torch.equal(drawn[0] > 0, kept)
    recent = units["rep.hist"].t()[-16:].long()
    assert worst(penalize(units["warpers.in"], recent, 1.3), units["rep.out"]) < CLOSE


def test_second_segment_goes_on_from_the_first(units):
    """The recorded text in two segments: carried frames, text slots that are known but not read, the end on cue."""
    first, second = (units[f"stream_tts.two_segments.audio_ids_at_generate{i}"][0].long() for i in (15, 24))
    told = UNITS["stream_tts.two_segments"]
    ids = units["stream_tts.two_segments.text_ids_prefilled"].tolist()[120:]
    utterance = Utterance(decoder(), speaker())
    utterance.feed(ids[:7])
    utterance.carry(list(first[-50:]))
    utterance.rewind()
    calls = iter(range(told["eos_calls"][0] + 1, told["sampler_calls"]))

    def draw(chances: Tensor) -> Tensor:
        drawn = never_end(chances)
        if next(calls) in told["eos_calls"]:
            drawn[0] = decoder().end
        return drawn

    for (begin, end), shown in zip(told["prefill_positions"][13:], told["text_mask_sums"][16:], strict=False):
        utterance.feed(ids[7:][begin : end + 1])
        utterance.text_length = shown - 4  # [Stts], the speaker, the end and [Ptts] are counted there
        list(utterance.frames(FRAMES_STEP, draw))
    while not utterance.ended:
        list(utterance.frames(FRAMES_STEP, draw))
    assert torch.equal(torch.stack(utterance.codes), second)


def test_reading_in_any_pieces_is_the_same():
    ids = text().layout("the old road, please hear the sound of rain")[0][:30]
    whole, pieces = Utterance(decoder(), speaker()), Utterance(decoder(), speaker())
    whole.feed(ids)
    for begin in range(0, 30, 7):
        pieces.feed(ids[begin : begin + 7])
    assert whole.slots == pieces.slots == 30
    assert worst(pieces._cache, whole._cache) < CLOSE
    with pytest.raises(IndexError):
        whole.feed([0] * 273)


def test_utterances_in_turns_are_as_alone():
    def spoken_codes(utterances: list[Utterance], draws: list) -> list[list[list[int]]]:
        stretches = [utterance.frames(60, draw) for utterance, draw in zip(utterances, draws, strict=True)]
        for _ in range(60):
            for stretch in stretches:
                next(stretch, None)
        return [[codes.tolist() for codes in utterance.codes] for utterance in utterances]

    def begun(index: int) -> Utterance:
        utterance = Utterance(decoder(), speaker(index))
        utterance.feed(text().layout(("hello there", "the sound of rain and wind")[index])[0][:12])
        return utterance

    alone = [spoken_codes([begun(index)], [seeded(index)])[0] for index in range(2)]
    left = begun(1).frames(60, seeded(9))  # one that is given up after a frame
    next(left)
    left.close()
    assert spoken_codes([begun(0), begun(1)], [seeded(0), seeded(1)]) == alone
    assert alone[0] != alone[1] and len(alone[1]) > 10


def test_cache_grows_without_a_trace(monkeypatch):
    def codes(growth: int) -> Tensor:
        monkeypatch.setattr(utterance_module, "GROWTH", growth)
        utterance = Utterance(decoder(), speaker())
        utterance.feed(text().layout("the sound of rain and wind on the old road")[0][:32])
        return torch.stack(list(utterance.frames(90, never_end)))

    assert torch.equal(codes(1), codes(256))


def test_longest_utterance_has_room():
    utterance = Utterance(decoder(), speaker())
    utterance.feed(text().layout("a")[0][:12])
    utterance.carry([torch.full((4,), frame % 625) for frame in range(2048)])
    assert not utterance.full
    assert len(list(utterance.frames(FRAMES_STEP, never_end))) == FRAMES_STEP
    assert utterance.full


@pytest.mark.parametrize("precision", ["int8", "bf16"])
def test_smaller_precisions_stay_close(precision):
    golden = load_file(GOLDEN / "case_a_mimick.safetensors")
    fed, logits = golden["tts_text_ids_prefilled"].tolist()[:22], {}
    for each in ("fp32", precision):
        utterance = Utterance(decoder(each), golden["spk_embeds"][0])
        utterance.feed(fed)
        utterance.codes = list(golden["tts_audio_ids"][0, :1].long())
        list(utterance.frames(1, never_end))
        logits[each] = utterance.logits
    assert logits[precision].dtype == torch.float32
    both = torch.stack([logits["fp32"].flatten(), logits[precision].flatten()])
    assert torch.corrcoef(both)[0, 1] > 0.995


def test_wanted_tensors_are_the_real_checkpoints():
    manifest = json.loads((GOLDEN / "real_state_dict_manifest.json").read_text())["speech_only"]
    real = {key: tuple(manifest[key]) for key in used_keys(manifest) if key.startswith("tts.")}
    inner = {key.removeprefix("tts.dvae."): shape for key, shape in real.items() if key.startswith("tts.dvae.")}
    ours = {f"tts.{key}": tuple(shape) for key, shape in expected(SpeechConfig(llm_dim=3584)).items()}
    ours |= {f"tts.dvae.{key}": tuple(shape) for key, shape in Dvae.expected(inner).items()}
    assert ours == real


def test_an_early_end_leaves_no_text_unseen(monkeypatch):
    """Speech ends after eleven frames: every word is seen by a segment, and no step sees a slot not yet read."""
    fed: dict[Utterance, list[int]] = {}

    def feed(utterance: Utterance, ids: list[int], plain=Utterance.feed) -> None:
        fed[utterance] = [*fed.get(utterance, [])[: utterance.slots], *ids]
        plain(utterance, ids)

    calls = itertools.count(1)

    def ends_soon(chances: Tensor) -> Tensor:
        assert seen(speaking.segments[-1]) <= len(fed[speaking.segments[-1]])
        return torch.full((4,), decoder().end) if next(calls) % 12 == 0 else never_end(chances)

    def seen(utterance: Utterance) -> int:
        return visible_text(len(utterance.codes), utterance.text_length, decoder().reserved)

    monkeypatch.setattr(Utterance, "feed", feed)
    written = "the answer you speak and hear is a voice in the room, please hear the sound of rain and wind."
    speaking = Speaking(SpeechParts(decoder(), dvae(), vocoder(), text()), speaker(), ends_soon)
    for _ in (*speaking.write(written), *speaking.finish()):
        pass
    shown = [text().decode(fed[utterance][2 : seen(utterance)]) for utterance in speaking.segments]
    assert len(shown) > 2
    letters = iter(re.sub(r"\W|Etts", "", "".join(shown)))
    assert all(letter in letters for letter in re.sub(r"\W", "", written))


# --- codes to sound ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 7, 33])
def test_recorded_sound(units, count):
    mel = dvae()(units[f"dvae.{count}.ids"][0])
    assert worst(mel, units[f"dvae.{count}.mel"]) < CLOSE
    assert worst(vocoder()(mel), units[f"vocos.{count}.wav"]) < CLOSE


def test_recorded_overlap(units):
    n = np.arange(14848, dtype=np.float64)
    first, second = (torch.from_numpy(wave.astype(np.float32)) for wave in (np.sin(n / 20)[:12800], np.cos(n / 33)))
    join = OverlapAdd(2048)
    joined = torch.cat([join.push(first), join.push(second), join.finish()])
    assert worst(joined[10700:12800], units["ola.a_len12800_b_len14848.out0_tail2100"]) < CLOSE
    assert worst(joined[12800:14900], units["ola.out1_head2100"]) < CLOSE


def test_recorded_stream(units):
    """The first segment's frames, 25 at a time, are the recorded wave; nothing is given that a later piece changes."""
    codes = units["stream_tts.two_segments.audio_ids_at_generate15"][0]
    golden = units["stream_tts.two_segments.wav_first30000"]
    stream, given = SoundStream(dvae(), vocoder()), torch.empty(0)
    for at in range(0, len(codes), 25):
        given = torch.cat([given, stream.push(codes[at : at + 25])])
        shown = min(len(given), len(golden))
        assert worst(given[:shown], golden[:shown]) < CLOSE
    given = torch.cat([given, stream.finish()])
    assert len(given) == 512 * len(codes) == 512 * 380
    assert len(stream.finish()) == 0


def test_stream_of_single_frames():
    codes = torch.randint(0, 625, (20, 4), generator=torch.Generator().manual_seed(0))
    stream = SoundStream(dvae(), vocoder())
    parts = [stream.push(codes[:4]), *(stream.push(codes[i : i + 1]) for i in range(4, 20)), stream.finish()]
    assert [len(part) for part in parts] == [0, *[512] * 16, 2048]


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_a_vocoder_that_is_none_is_named(tmp_path, content):
    file = tmp_path / "Vocos.pt"
    if content is None:
        torch.save({"backbone.embed.weight": torch.zeros(4, 100, 7)}, file)
    else:
        file.write_bytes(content)
    with pytest.raises(UserError) as raised:
        Vocoder.read(file)
    assert raised.value.code == "checkpoint_wrong" and "Vocos.pt" in str(raised.value)


# --- text -------------------------------------------------------------------------------------------------------------


def test_recorded_layout():
    for told in UNITS["prepare_tts_text"]:
        ids, count = text().layout(told["text"])
        assert (count, len(ids), ids[-5:]) == (told["n_tokens"], told["ids_len"], told["ids_last_5"])
        assert ids[:40] == told["ids_first_40"]


def test_recorded_spelling():
    for given, language, result in UNITS["numbers"]:
        assert spell_digits(given, language) == result
    for given, result in UNITS["detect_language"]:
        assert language_of(given) == result
    for given, result in UNITS["sentence_end"]:
        assert sentence_end(given) == result


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("I have 23 books and 1,250 pens.", "twenty-three books and one thousand two hundred and fifty pens."),
        ("It costs $3.50, or 20% less.", "three point five zero dollars, or twenty percent less."),
        ("In 1999, at 10:05 and 7:00.", "nineteen ninety-nine, at ten oh five and seven o'clock."),
        ("The 1st, 22nd and 112th.", "first, twenty-second and one hundred and twelfth."),
        ("Due 2024-05-06 at 5 km/h.", "May six, twenty twenty-four at five kilometres per hour."),
        ("Agent 007, pages 5-10, -4 degrees.", "zero zero seven, pages five to ten, minus four degrees."),
        ("**Bold** [Etts] `x` 😀 & y", " Bold Etts x and y"),
        ("我有2个苹果，3.5斤，温度 25℃，100%。", "两个苹果，三点五斤，温度 二十五摄氏度，百分之一百。"),
        ("２０２４年５月", "二零二四年五月"),
        ("٤٥ cats", "forty-five cats"),
        ("First item\nSecond", "First item. Second"),
    ],
)
def test_text_is_said_as_it_is_read(written, said):
    def flat(words: str) -> str:
        return re.sub(rf"\s+|(?<=[{speech_hanzi()}，])\s|\s(?=[{speech_hanzi()}])", " ", words).replace(" ", "")

    assert flat(said) in flat(spoken(written))
    for size in (1, 2, 3, 7):
        reading = Reading()
        parts = [reading.push(written[at : at + size]) for at in range(0, len(written), size)]
        assert flat("".join([*parts, reading.finish()])) == flat(spoken(written)), size


def speech_hanzi() -> str:
    return r"\u3400-\u9fff"


def test_upstreams_reading():
    reading = Reading(upstream=True)
    said = [reading.push(piece) for piece in ("8 *a* ", "b 42 ", "**你好** 3")]
    assert said == ["8 a ", "b four two ", "你好 three"]
    assert reading.finish() == ""


def test_no_text_makes_a_token():
    own = set(text().layout("")[0]) - set(text().ids("[PAD]"))
    said = text().ids(spoken("[Etts][spk_emb] [Ptts] <|im_end|> [Stts]"))
    assert said and not own & set(said)


@pytest.mark.parametrize("value", [0, 10**15 + 1, 12345678901234567890])
def test_no_number_is_too_large(value):
    assert re.fullmatch(r"[a-z -]+", say_numbers(str(value)).strip())


def test_missing_wordpieces_are_named(tmp_path):
    with pytest.raises(UserError) as raised:
        SpeechText(Path(tmp_path))
    assert raised.value.code == "checkpoint_wrong"
