"""Mini-Omni's codec against recorded waves of the upstream code, and a stream against the decode of the whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from snac import SNAC

from models.errors import UserError
from models.mini_omni.codec import Codec, CodecStream, to_pcm

GOLDEN = Path(__file__).parent / "golden" / "mini_omni"
TWO_LSB = 2 / 32768  # what two orders of summation may differ by, and what nobody hears


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec.load(GOLDEN / "snac")


@pytest.fixture(scope="module")
def answer() -> torch.Tensor:
    """80 frames of one recorded answer."""
    return recorded("A1A2")[1]


def recorded(case: str) -> tuple[dict[str, np.ndarray], torch.Tensor]:
    data = dict(np.load(GOLDEN / "tiny" / f"{case}.npz"))
    coarse, middle, fine = (torch.from_numpy(data[f"snac_codes_{i}"]).reshape(-1, 2**i) for i in range(3))
    order = [coarse[:, 0], middle[:, 0], fine[:, 0], fine[:, 1], middle[:, 1], fine[:, 2], fine[:, 3]]
    return data, torch.stack(order, dim=1)


def random_snac(seed: int = 3, **config) -> SNAC:
    """A network that can be heard, so that a wrong sample cannot hide: as snac begins, it is close to silent."""
    sizes = {"sampling_rate": 24_000, "encoder_dim": 2, "encoder_rates": [2, 2], "latent_dim": 12, "codebook_size": 50}
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        network = SNAC(**{**sizes, "codebook_dim": 4, "attn_window_size": None, **config}).eval()
        for name, weight in network.named_parameters():
            if name.endswith("alpha"):
                weight.uniform_(0.5, 2.0)
            elif name.endswith("bias"):
                weight.uniform_(-0.2, 0.2)
    return network


def upstream(network: SNAC, frames: torch.Tensor, noise: int | None = None) -> np.ndarray:
    """What the snac package decodes, its noise seeded or off. Codes of a level lie in the order of their time."""
    places: list[list[int]] = [[] for _ in network.vq_strides]
    begun = 0
    for time in range(network.vq_strides[0]):
        for level, stride in enumerate(network.vq_strides):
            if time % stride == 0:
                places[level].append(begun)
                begun += 1
    codes = [frames[:, place].reshape(1, -1) for place in places]
    with torch.random.fork_rng(), torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        if noise is None:
            patch.setattr(torch, "randn", lambda shape, **options: torch.zeros(shape, **options))
        else:
            torch.manual_seed(noise)
        return network.decode(codes)[0, 0].numpy()


def pushed(stream: CodecStream, frames: torch.Tensor, sizes: list[int]) -> np.ndarray:
    """All that a stream gives for pushes of these sizes, over and over, until there are no more frames."""
    pieces, begin = [], 0
    while begin < len(frames):
        for size in sizes:
            pieces.append(stream.push(frames[begin : begin + size]))
            begin += size
    return np.concatenate([*pieces, stream.finish()])


def apart(one: np.ndarray | torch.Tensor, other: np.ndarray | torch.Tensor) -> float:
    assert np.shape(one) == np.shape(other)
    return float(np.abs(np.asarray(one, np.float64) - np.asarray(other, np.float64)).max())


def test_the_whole_answer_is_upstreams(codec: Codec):
    data, frames = recorded("A1A2")
    assert codec.frame == 2048 and codec.codebook == 4096
    sound = codec.decode(frames)
    assert len(sound) == len(frames) * codec.frame
    assert apart(sound[: 16 * 2048], data["audio_noise_off_first16frames"]) <= TWO_LSB
    data, frames = recorded("A1A2_batch")
    assert apart(to_pcm(codec.decode(frames)), data["audio_noise_off_int16"]) <= 2


def test_a_chunk_on_its_own_is_upstreams(codec: Codec):
    data = np.load(GOLDEN / "tiny" / "stream_stride4.npz")
    for frames, pcm in zip(data["chunk_codes"], data["pcm_int16"], strict=True):
        assert apart(to_pcm(codec.decode(torch.from_numpy(frames))), pcm) <= 2


def test_seeded_noise_is_upstreams(codec: Codec):
    data, frames = recorded("A1A2")
    noisy = codec.decode(frames[:4], torch.Generator().manual_seed(1234))
    assert apart(noisy, data["audio_noise_seed1234_first4frames"]) <= TWO_LSB
    assert apart(noisy, codec.decode(frames[:4])) > 100 * TWO_LSB


@pytest.mark.parametrize("sizes", [[1], [2], [4], [3, 1, 0, 7], [80]], ids=str)
def test_a_stream_has_no_seams(codec: Codec, answer: torch.Tensor, sizes: list[int]):
    assert apart(pushed(codec.stream(), answer, sizes), codec.decode(answer)) <= TWO_LSB


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_short_answers_are_whole(codec: Codec, answer: torch.Tensor, frames: int):
    assert apart(pushed(codec.stream(), answer[:frames], [1]), codec.decode(answer[:frames])) <= TWO_LSB


def test_a_push_gives_all_that_no_later_frame_can_change(codec: Codec, answer: torch.Tensor):
    given = len(codec.stream().push(answer[:8]))
    assert given == 8 * codec.frame - codec.lookahead
    other = answer.clone()
    other[8:] = (other[8:] + 1) % codec.codebook
    differ = np.flatnonzero((codec.decode(answer) != codec.decode(other)).numpy())
    assert given <= differ[0] < given + 64


@pytest.mark.parametrize(
    "config",
    [
        {"decoder_dim": 64, "decoder_rates": [8, 8, 4, 2], "vq_strides": [4, 2, 1]},
        {"decoder_dim": 48, "decoder_rates": [3, 5, 2], "vq_strides": [8, 4, 2, 1]},
        {"decoder_dim": 32, "decoder_rates": [7, 2], "vq_strides": [2, 1], "depthwise": False},
        {"decoder_dim": 24, "decoder_rates": [4, 3], "vq_strides": [1], "noise": False},
        {"decoder_dim": 24, "decoder_rates": [2, 2], "vq_strides": [6, 3, 2], "noise": False, "depthwise": False},
    ],
    ids=lambda config: "-".join(map(str, config["decoder_rates"])),
)
def test_any_snac_of_convolutions(config: dict):
    network = random_snac(**config)
    frames = torch.randint(50, (29, sum(config["vq_strides"][0] // stride for stride in config["vq_strides"])))
    quiet, noisy = upstream(network, frames), upstream(network, frames, noise=5)
    codec = Codec(network)
    assert np.abs(quiet).mean() > 0.02
    assert apart(codec.decode(frames), quiet) <= TWO_LSB
    assert apart(codec.decode(frames, torch.Generator().manual_seed(5)), noisy) <= TWO_LSB
    for sizes in ([1], [2, 5], [29]):
        assert apart(pushed(codec.stream(), frames, sizes), quiet) <= TWO_LSB


def test_streams_side_by_side(codec: Codec, answer: torch.Tensor):
    """Each with its own frames and its own seed, pushed in turn: as if it were alone; the global seed is nobody's."""
    answers = [answer[:9], answer[30:39]]
    alone = [pushed(codec.stream(torch.Generator().manual_seed(seed)), answers[seed], [3]) for seed in (0, 1)]
    torch.manual_seed(7)
    before = torch.get_rng_state()
    streams = [codec.stream(torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    pieces: list[list[np.ndarray]] = [[], []]
    for begin in range(0, 9, 3):
        for seed in (0, 1):
            pieces[seed].append(streams[seed].push(answers[seed][begin : begin + 3]))
    for seed in (0, 1):
        assert np.array_equal(np.concatenate([*pieces[seed], streams[seed].finish()]), alone[seed])
    assert torch.equal(torch.get_rng_state(), before)


def test_codes_that_are_none(codec: Codec, answer: torch.Tensor):
    stream = codec.stream()
    first = stream.push(answer[:4])
    special = answer[4:8].clone()
    for code in (4096, -1):
        special[2, 5] = code
        with pytest.raises(ValueError, match="codes are 0 to 4095"):
            codec.decode(special)
        with pytest.raises(ValueError, match="codes are 0 to 4095"):
            stream.push(special)
    for wrong in (answer[:, :6], answer[0], answer.float()):
        with pytest.raises(ValueError, match="frames are"):
            stream.push(wrong)
    rest = np.concatenate([stream.push(answer[4:8]), stream.finish()])
    assert apart(np.concatenate([first, rest]), codec.decode(answer[:8])) <= TWO_LSB


def test_the_end_of_a_stream(codec: Codec, answer: torch.Tensor):
    stream = codec.stream()
    assert len(stream.finish()) == 0
    stream = codec.stream()
    stream.push(answer[:2])
    assert len(stream.finish()) > 0
    for again in (lambda: stream.push(answer[:2]), stream.finish):
        with pytest.raises(ValueError, match="finished"):
            again()
    assert len(codec.decode(answer[:0])) == 0


def test_loud_samples_are_clipped():
    assert to_pcm(np.array([1.0, -1.0, 1.5, -1.5, 0.5, -1.9 / 32768])).tolist() == [
        32767,
        -32768,
        32767,
        -32768,
        16384,
        -1,
    ]


def folder_with(folder: Path, config: dict, state: dict[str, torch.Tensor]) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(state, folder / "pytorch_model.bin")
    return folder


@pytest.fixture(scope="module")
def parts() -> tuple[dict, dict[str, torch.Tensor]]:
    return json.loads((GOLDEN / "snac" / "config.json").read_text()), load_file(GOLDEN / "snac" / "snac.safetensors")


def test_the_file_of_the_hub(tmp_path: Path, parts, codec: Codec, answer: torch.Tensor):
    loaded = Codec.load(folder_with(tmp_path, *parts))
    assert torch.equal(loaded.decode(answer[:3]), codec.decode(answer[:3]))


WIDE = "decoder.model.3.block.1.parametrizations.weight.original1"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: state.pop(WIDE), f"{WIDE} is missing"),
        (lambda state: state.update({WIDE: state[WIDE][:5]}), f"{WIDE} is [5, 16, 16], not [32, 16, 16]"),
        (lambda state: state.update(extra=torch.zeros(1)), "extra is not known"),
        (lambda state: state.update({WIDE: state[WIDE].int()}), f"{WIDE} holds torch.int32"),
    ],
    ids=["missing", "shape", "unknown", "kind"],
)
@pytest.mark.parametrize("kind", ["bin", "safetensors"])
def test_a_wrong_checkpoint_says_what_is_off(tmp_path: Path, parts, change, says: str, kind: str):
    config, state = parts[0], dict(parts[1])
    change(state)
    folder_with(tmp_path, config, state)
    if kind == "safetensors":
        (tmp_path / "pytorch_model.bin").unlink()
        save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UserError) as error:
        Codec.load(tmp_path)
    assert error.value.code == "checkpoint_wrong"
    assert says in error.value.facts["what"]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "snac.safetensors"])
def test_a_truncated_file(tmp_path: Path, parts, name: str):
    folder_with(tmp_path, *parts)
    shutil.copy(GOLDEN / "snac" / "snac.safetensors", tmp_path)
    for file in {"pytorch_model.bin", "snac.safetensors"} - {name}:
        (tmp_path / file).unlink()
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError) as error:
        Codec.load(tmp_path)
    assert error.value.code == "checkpoint_wrong" and error.value.facts["file"] == name


@pytest.mark.parametrize(
    "changes",
    [{"attn_window_size": 4, "decoder_dim": 64}, {"sampling_rate": 44_100}, {"rates": [2]}, {"decoder_dim": None}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_config_that_cannot_be_streamed(tmp_path: Path, parts, changes: dict):
    config = {**parts[0], **changes}
    state = SNAC(**config).state_dict() if "attn_window_size" in changes else parts[1]
    with pytest.raises(UserError) as error:
        Codec.load(folder_with(tmp_path, config, state))
    assert error.value.code == "checkpoint_wrong" and error.value.facts["file"] == "config.json"
    if "attn_window_size" in changes:
        assert "attention" in error.value.facts["what"]


def test_memory_is_the_decoders_alone(parts, codec: Codec):
    """The encoder is not kept, and the decoder only once."""
    decoder = sum(tensor.nbytes for key, tensor in parts[1].items() if not key.startswith("encoder."))
    assert 0.8 * decoder < codec.memory_bytes() < 1.1 * decoder


def test_no_files(tmp_path: Path):
    with pytest.raises(UserError) as error:
        Codec.load(tmp_path)
    assert error.value.facts["file"] == "config.json"


def test_the_older_spelling_of_weight_norm_is_read(tmp_path: Path, parts):
    spelt = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    older = dict(parts[1])
    for key in list(older):
        for new, old in spelt.items():
            if key.endswith(new):
                older[key.replace(new, old)] = older.pop(key)
    frames = torch.randint(0, 4096, (3, 7))
    read = [Codec.load(folder_with(tmp_path, parts[0], state)).decode(frames) for state in (parts[1], older)]
    assert older.keys() != parts[1].keys()
    assert torch.equal(*read)
