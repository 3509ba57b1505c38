"""Mini-Omni's ears: upstream's features, to the last digits; what cannot be loaded says why."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from whisper.model import ModelDimensions

from models.audio import load
from models.catalog import WHISPER_BASE
from models.compact import ctranslate2
from models.errors import UserError
from models.layers import Int8Linear
from models.mini_omni.encoder import AudioEncoder, _thinned
from tests.test_hear import FIXTURES, openai_state

GOLDEN = Path(__file__).parent / "golden" / "mini_omni"
CASES = [
    (variant, name, case)
    for variant in ("tiny", "truevocab")
    for name, case in json.loads((GOLDEN / variant / "cases.json").read_text(encoding="utf-8"))["cases"].items()
    if "wav" in case and case["task"] != "stream"
]


@pytest.fixture(scope="module")
def encoder() -> AudioEncoder:
    return AudioEncoder.load(GOLDEN / "whisper")


def sound(name: str) -> np.ndarray:
    samples, rate = soundfile.read(GOLDEN / "wav" / name, dtype="float32")
    assert rate == 16_000
    return samples


def least_cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    """Cosine similarity of the positions that differ most."""
    return float(torch.cosine_similarity(one.float(), other.float(), dim=-1).min())


@pytest.fixture
def checkpoint() -> dict:
    """What openai-whisper's small.pt holds: sizes, and float16 tensors of encoder and decoder."""
    state = {key: tensor.half() for key, tensor in load_file(GOLDEN / "whisper" / "whisper.safetensors").items()}
    return {"dims": json.loads((GOLDEN / "whisper" / "dims.json").read_text()), "model_state_dict": state}


# --- features ---


@pytest.mark.parametrize("path", sorted((GOLDEN / "wav").glob("*.wav")), ids=lambda path: path.stem)
def test_log_mel_is_upstreams(encoder, path):
    golden = np.load(path.with_name(f"{path.stem}_mel.npz"))
    mel, length = encoder.log_mel(sound(path.name))
    assert length == golden["leng"]
    torch.testing.assert_close(mel, torch.from_numpy(golden["mel"]), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("variant", "name", "case"), CASES, ids=[f"{variant}-{name}" for variant, name, _ in CASES])
def test_features_are_upstreams(encoder, variant, name, case):
    expected = torch.from_numpy(np.load(GOLDEN / variant / f"{name}.npz")["audio_features"][0])
    features = encoder.encode(*encoder.log_mel(sound(Path(case["wav"]).name)))
    assert features.shape == (case["leng"], encoder.width)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("precision", "dtype"), [("int8", torch.float32), ("bf16", torch.bfloat16)])
def test_other_precisions_come_close(encoder, precision, dtype):
    heard = encoder.log_mel(sound("w0.wav"))
    features = AudioEncoder.load(GOLDEN / "whisper", precision).encode(*heard)
    assert features.dtype == dtype
    assert least_cosine(features, encoder.encode(*heard)) > 0.999


def test_a_trimmed_window_needs_nothing_of_the_padding(encoder):
    mel, length = encoder.log_mel(sound("w1.wav"))
    features = encoder.encode(mel, length, trimmed=True)
    assert features.shape == (length, encoder.width)
    assert torch.equal(features, encoder.encode(mel[:, : 2 * length + 7], length, trimmed=True))


def test_a_trimmed_window_counts_what_it_leaves_out(encoder):
    mel, length = encoder.log_mel(sound("w0.wav"))
    full, trimmed = encoder.encode(mel, length), encoder.encode(mel, length, trimmed=True)
    assert not torch.equal(trimmed, full)
    assert least_cosine(trimmed, full) > 0.99


def test_a_trimmed_window_of_30_s_of_sound_is_the_full_one(encoder):
    mel, length = encoder.log_mel(np.random.default_rng(0).standard_normal(480_000).astype(np.float32) * 0.1)
    full, trimmed = encoder.encode(mel, length), encoder.encode(mel, length, trimmed=True)
    torch.testing.assert_close(trimmed, full, atol=1e-5, rtol=0)


@pytest.mark.parametrize("length", [1, 6, 151, 1400, 1499, 1500])
def test_every_position_is_counted_once(length):
    positions, counts = _thinned(length, 1500)
    assert counts.sum() == 1500
    assert positions[: length + 16].tolist() == list(range(min(length + 16, 1500)))
    assert (positions.diff() > 0).all() and positions[-1] < 1500


@pytest.mark.parametrize(("samples", "length"), [(1, 1), (1600, 6), (479_999, 1500), (480_000, 1500)])
def test_every_length_up_to_30_s_is_heard(encoder, samples, length):
    mel, found = encoder.log_mel(np.zeros(samples, np.float32))
    assert (mel.shape, found) == ((80, 3000), length)
    for trimmed in (False, True):
        features = encoder.encode(mel, found, trimmed)
        assert features.shape == (length, encoder.width) and features.isfinite().all()


@pytest.mark.parametrize("samples", [0, 480_001])
def test_no_clip_is_cut(encoder, samples):
    with pytest.raises(ValueError, match="30 s"):
        encoder.log_mel(np.zeros(samples, np.float32))


# --- loading ---


def test_a_checkpoint_of_openai_whisper_is_read(encoder, checkpoint, tmp_path):
    torch.save(checkpoint, tmp_path / "small.pt")
    heard = encoder.log_mel(sound("w0.wav"))
    for path in (tmp_path, tmp_path / "small.pt"):
        features = AudioEncoder.load(path).encode(*heard)
        assert features.dtype == torch.float32
        assert least_cosine(features, encoder.encode(*heard)) > 0.9999  # the weights are those of float16


def test_only_the_encoder_is_kept(encoder, checkpoint, tmp_path):
    own = {key: tensor for key, tensor in checkpoint["model_state_dict"].items() if key.startswith("encoder.")}
    assert encoder.memory_bytes() == 4 * sum(tensor.numel() for tensor in own.values())
    torch.save({**checkpoint, "model_state_dict": own}, tmp_path / "small.pt")
    AudioEncoder.load(tmp_path)  # nothing of a decoder is asked for


def test_int8_makes_every_linear_layer_small():
    encoder = AudioEncoder.load(GOLDEN / "whisper", "int8")
    layers = [layer for layer in encoder._network.modules() if isinstance(layer, (torch.nn.Linear, Int8Linear))]
    assert len(layers) == 12 and all(isinstance(layer, Int8Linear) for layer in layers)


def spoil(state: dict, trouble: str) -> None:
    key = "encoder.blocks.1.attn.query.weight"
    if trouble == "missing":
        del state[key]
    elif trouble == "unknown":
        state["encoder.blocks.9.attn.query.weight"] = state[key].clone()
    else:
        state[key] = state[key][:, :5].clone()


@pytest.mark.parametrize(
    ("trouble", "says"),
    [
        ("missing", "encoder.blocks.1.attn.query.weight is missing"),
        ("unknown", "encoder.blocks.9.attn.query.weight is not known"),
        ("shape", "encoder.blocks.1.attn.query.weight is [32, 5], not [32, 32]"),
    ],
)
@pytest.mark.parametrize("file", ["small.pt", "whisper.safetensors"])
def test_a_wrong_checkpoint_names_what_is_off(checkpoint, tmp_path, file, trouble, says):
    spoil(checkpoint["model_state_dict"], trouble)
    if file == "small.pt":
        torch.save(checkpoint, tmp_path / file)
    else:
        save_file(checkpoint["model_state_dict"], tmp_path / file)
        shutil.copy(GOLDEN / "whisper" / "dims.json", tmp_path)
    with pytest.raises(UserError) as raised:
        AudioEncoder.load(tmp_path)
    assert raised.value.code == "checkpoint_wrong"
    assert raised.value.facts == {"file": file, "what": says}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("file", ["small.pt", "whisper.safetensors", "dims.json"])
def test_a_truncated_file_is_refused(checkpoint, tmp_path, file):
    if file == "small.pt":
        torch.save(checkpoint, tmp_path / file)
    else:
        for path in (GOLDEN / "whisper").iterdir():
            shutil.copyfile(path, tmp_path / path.name)
    cut(tmp_path / file)
    with pytest.raises(UserError) as raised:
        AudioEncoder.load(tmp_path)
    assert raised.value.code == "checkpoint_wrong" and raised.value.facts["what"]


@pytest.mark.parametrize("content", [[1, 2], {"dims": {}}, {"dims": {"n_mels": 80}, "model_state_dict": {}}, None])
def test_what_is_no_whisper_is_refused(tmp_path, content):
    if content is not None:  # None: there is no file at all
        torch.save(content, tmp_path / "small.pt")
    with pytest.raises(UserError) as raised:
        AudioEncoder.load(tmp_path)
    assert raised.value.facts["file"] == "small.pt"


@pytest.mark.parametrize("sizes", [{"n_audio_head": 5}, {"n_audio_layer": 0}, {"n_audio_state": "wide"}])
def test_impossible_sizes_are_refused(checkpoint, tmp_path, sizes):
    checkpoint["dims"].update(sizes)
    torch.save(checkpoint, tmp_path / "small.pt")
    with pytest.raises(UserError):
        AudioEncoder.load(tmp_path)


def test_code_in_a_checkpoint_is_not_run(checkpoint, tmp_path):
    torch.save({**checkpoint, "dims": Trap(tmp_path / "sprung")}, tmp_path / "small.pt")
    with pytest.raises(UserError):
        AudioEncoder.load(tmp_path)
    assert not (tmp_path / "sprung").exists()


class Trap:
    """Pickled, it makes a file when it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


# --- on real speech, with weights that were trained: Whisper base in the place of Whisper small ---


@pytest.mark.compact
@pytest.mark.parametrize(("precision", "trimmed"), [("int8", False), ("fp32", True), ("int8", True)])
@pytest.mark.parametrize("clip", ["kokoro_en.flac", "kokoro_en_man.flac", "aishell_BAC009S0764W0121.flac"])
def test_savings_keep_what_was_heard(whisper_base, precision, trimmed, clip):
    full = whisper_base["fp32"]
    heard = full.log_mel(load(FIXTURES / clip).samples)
    alike = torch.cosine_similarity(whisper_base[precision].encode(*heard, trimmed), full.encode(*heard), dim=-1)
    assert alike.median() > 0.995
    assert (alike > 0.95).float().mean() > 0.95  # a position or two in a pause may differ


@pytest.fixture(scope="module")
def whisper_base(compact_weights) -> dict[str, AudioEncoder]:
    tensors = ctranslate2.read(compact_weights.path(WHISPER_BASE))
    sizes = ModelDimensions(80, 1500, 512, 8, 6, 51865, 448, 512, 8, 6)
    state = openai_state(tensors, layers=6)
    return {precision: AudioEncoder(state, sizes, precision, "cpu") for precision in ("fp32", "int8")}
