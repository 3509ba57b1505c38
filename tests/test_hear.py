"""Speech to text: the rules of decoding, and the real recogniser on real speech."""

import itertools
import struct
from pathlib import Path

import numpy as np
import pytest

from models.audio import load
from models.capabilities import Waveform
from models.compact import ctranslate2
from models.compact.hear import (
    LONGEST_WINDOW_S,
    Transcript,
    likely_language,
    loop_period,
    simplified,
    whisper_features,
    windows,
)

FIXTURES = Path(__file__).parent / "fixtures"
FRAME_S = 0.032


def activity_of(*spans: tuple[float, float], seconds: float) -> np.ndarray:
    """Probabilities of speech: certain within the spans, none outside."""
    times = np.arange(round(seconds / FRAME_S)) * FRAME_S
    return sum(((times >= start) & (times < end)).astype(np.float32) for start, end in spans)


def test_windows_hold_all_speech_and_none_is_too_long():
    spans = [(1.0, 12.0), (12.5, 20.0), (22.0, 80.0), (100.0, 100.5)]
    found = windows(activity_of(*spans, seconds=120), 120)
    assert all(0 < end - start <= LONGEST_WINDOW_S for start, end in found)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(found))
    for start, end in spans:
        inside = sum(max(0.0, min(end, b) - max(start, a)) for a, b in found)
        assert inside == pytest.approx(end - start, abs=0.1)


def test_a_talk_without_pause_is_cut_where_speech_is_least_likely():
    probabilities = np.full(round(40 / FRAME_S), 0.95, np.float32)
    probabilities[round(20 / FRAME_S)] = 0.6
    assert windows(probabilities, 40)[0][1] == pytest.approx(20, abs=0.05)


def test_silence_has_no_windows():
    assert windows(np.zeros(1000, np.float32), 32) == []


@pytest.mark.parametrize(
    ("tokens", "period"),
    [
        ([1, 2, 3, 4, 5], None),
        ([9, 1, 2, 1, 2, 1, 2, 1, 2], 2),
        ([7, 7, 7, 7], None),  # "no, no, no, no" may be said
        ([7] * 8, 1),
        ([1, 2, 3, 1, 2, 3, 1, 2, 3], None),
    ],
)
def test_a_loop_is_four_repeats_of_eight_tokens(tokens, period):
    assert loop_period(tokens) == period


def test_auto_is_english_or_chinese_unless_another_language_is_sure():
    assert likely_language({"en": 0.2, "zh": 0.3, "ja": 0.5}) == "zh"
    assert likely_language({"en": 0.05, "zh": 0.04, "de": 0.91}) == "de"


def test_chinese_is_simplified_with_its_own_punctuation():
    assert simplified("這是電腦,對嗎?共3,000元") == "这是电脑，对吗？共3,000元"


def test_features_are_those_of_whisper():
    audio = pytest.importorskip("whisper.audio")
    samples = np.random.default_rng(0).standard_normal(40_000).astype(np.float32) * 0.1
    theirs = audio.log_mel_spectrogram(audio.pad_or_trim(samples)).numpy()
    np.testing.assert_allclose(whisper_features(samples, 80, silence_s=30.0), theirs, atol=1e-4)


def test_a_file_that_is_no_model_is_refused(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(struct.pack("<IH", 6, 60000) + b"no such name")
    with pytest.raises(ValueError, match=r"model\.bin"):
        ctranslate2.read(path)


def test_a_ctranslate2_file_is_read(tmp_path):
    values = np.arange(6, dtype=np.float16).reshape(2, 3)
    name = lambda text: struct.pack("<H", len(text) + 1) + text.encode() + b"\0"  # noqa: E731
    head = struct.pack("<I", 6) + name("WhisperSpec") + struct.pack("<II", 3, 1)
    tensor = name("encoder/weight") + struct.pack("<BIIBI", 2, 2, 3, 4, values.nbytes) + values.tobytes()
    path = tmp_path / "model.bin"
    path.write_bytes(head + tensor)
    assert np.array_equal(ctranslate2.read(path)["encoder/weight"], values)


# --- the real recogniser ---


@pytest.fixture(scope="module")
def whisper_file() -> Path:
    from models.catalog import WHISPER_BASE
    from models.weights import WeightStore

    store = WeightStore()
    for _ in store.fetch(WHISPER_BASE, lambda: False):
        pass
    path = store.path(WHISPER_BASE)
    assert path
    return path


@pytest.fixture(scope="module")
def recognizer(whisper_file: Path):
    from models.compact.hear import Recognizer

    return Recognizer(whisper_file)


def heard(recognizer, waveform: Waveform, language: str = "auto") -> Transcript:
    *pieces, transcript = recognizer.transcribe(waveform, language)
    assert "".join(piece for piece in pieces if piece).strip() == transcript.text
    return transcript


@pytest.mark.compact
def test_english_is_heard(recognizer):
    transcript = heard(recognizer, load(FIXTURES / "kokoro_en.flac"))
    assert transcript.language == "en"
    assert transcript.text == "It rained so hard that the river came over the road."


@pytest.mark.compact
def test_mandarin_is_heard(recognizer):
    transcript = heard(recognizer, load(FIXTURES / "aishell_BAC009S0764W0121.flac"))
    assert transcript.language == "zh"
    assert transcript.text.rstrip("。") == "甚至出现交易几乎停止的情况"


@pytest.mark.compact
def test_what_is_no_speech_gives_no_text(recognizer):
    rng = np.random.default_rng(0)
    for samples in (np.zeros(48_000), rng.standard_normal(80_000) * 0.02, np.sin(np.arange(48_000) * 0.2) * 0.3, [0.0]):
        assert heard(recognizer, Waveform(np.asarray(samples, np.float32), 16_000)).text == ""


@pytest.mark.compact
def test_transcriptions_that_advance_in_turn_do_not_meet(recognizer):
    clips = [
        load(FIXTURES / name) for name in ("kokoro_en.flac", "aishell_BAC009S0764W0121.flac", "kokoro_en_man.flac")
    ]
    alone = [heard(recognizer, clip) for clip in clips]
    abandoned = recognizer.transcribe(clips[0])
    next(abandoned)
    abandoned.close()
    open_ones = {i: recognizer.transcribe(clip) for i, clip in enumerate(clips)}
    last: dict[int, object] = {}
    while open_ones:
        for i in list(open_ones):
            try:
                last[i] = next(open_ones[i])
            except StopIteration:
                del open_ones[i]
    assert [last[i] for i in range(len(clips))] == alone


@pytest.mark.compact
def test_the_network_is_openai_whispers(whisper_file):
    """Logits in float32 against the original model with the same tensors, through cache and mask."""
    import torch
    from whisper.model import ModelDimensions
    from whisper.model import Whisper as Original

    from models.compact.whisper import Whisper

    tensors = ctranslate2.read(whisper_file)
    original = Original(ModelDimensions(80, 1500, 512, 8, 6, 51865, 448, 512, 8, 6)).eval()
    original.load_state_dict(openai_state(tensors, layers=6), strict=False)
    mel = whisper_features(load(FIXTURES / "kokoro_en.flac").samples, 80, 30.0)
    ours = Whisper(tensors, int8=False)
    steps = ours.encode(mel)
    with torch.inference_mode():
        try:
            while True:
                next(steps)
        except StopIteration as end:
            cache = end.value
        tokens = [50258, 50259, 50359, 50363, 467, 40412]
        logits = torch.cat(
            [ours.decode(tokens[:1], cache), ours.decode(tokens[1:5], cache), ours.decode(tokens[5:], cache)]
        )
        expected = original(torch.from_numpy(mel)[None], torch.tensor([tokens]))[0]
    torch.testing.assert_close(logits, expected, atol=2e-3, rtol=1e-3)


def openai_state(tensors: dict[str, np.ndarray], layers: int) -> dict:
    """openai-whisper's state dict, from CTranslate2's fused and renamed tensors."""
    import torch

    def get(name: str):
        return torch.from_numpy(tensors[name].astype(np.float32))

    state = {f"encoder.{c}.{p}": get(f"encoder/{c}/{p}") for c in ("conv1", "conv2") for p in ("weight", "bias")}
    state["encoder.positional_embedding"] = get("encoder/position_encodings/encodings")
    state["decoder.positional_embedding"] = get("decoder/position_encodings/encodings")
    state["decoder.token_embedding.weight"] = get("decoder/embeddings/weight")
    names = {"encoder.ln_post": "encoder/layer_norm", "decoder.ln": "decoder/layer_norm"}
    for side in ("encoder", "decoder"):
        for i in range(layers):
            ours, theirs = f"{side}.blocks.{i}", f"{side}/layer_{i}"
            names[f"{ours}.attn_ln"] = f"{theirs}/self_attention/layer_norm"
            names[f"{ours}.attn.out"] = f"{theirs}/self_attention/linear_1"
            names[f"{ours}.mlp_ln"] = f"{theirs}/ffn/layer_norm"
            names[f"{ours}.mlp.0"], names[f"{ours}.mlp.2"] = f"{theirs}/ffn/linear_0", f"{theirs}/ffn/linear_1"
            fused = {"attn": (f"{theirs}/self_attention/linear_0", ("query", "key", "value"))}
            if side == "decoder":
                names[f"{ours}.cross_attn_ln"] = f"{theirs}/attention/layer_norm"
                names[f"{ours}.cross_attn.query"] = f"{theirs}/attention/linear_0"
                names[f"{ours}.cross_attn.out"] = f"{theirs}/attention/linear_2"
                fused["cross_attn"] = (f"{theirs}/attention/linear_1", ("key", "value"))
            for attention, (source, parts) in fused.items():
                for kind in ("weight", "bias"):
                    for part, tensor in zip(parts, get(f"{source}/{kind}").chunk(len(parts)), strict=True):
                        if (part, kind) != ("key", "bias"):  # Whisper's keys have none
                            state[f"{ours}.{attention}.{part}.{kind}"] = tensor
    for ours, theirs in names.items():
        kinds = ("gamma", "beta") if f"{theirs}/gamma" in tensors else ("weight", "bias")
        state[f"{ours}.weight"], state[f"{ours}.bias"] = (get(f"{theirs}/{kind}") for kind in kinds)
    return state
