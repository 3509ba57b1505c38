"""Mini-Omni's network, prompts, generation and loading, on the golden tiny model; what parity does not say."""

from __future__ import annotations

import json
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.mini_omni import CONFIG as REAL
from models.capabilities import Sampling
from models.errors import UserError
from models.layers import FewRowsLinear, Int8Embedding, Int8Linear, quantize_rows
from models.mini_omni import checkpoint
from models.mini_omni.config import ANSWER, PAD, MiniOmniConfig
from models.mini_omni.generate import Column, Frames, Sampler, columns
from models.mini_omni.model import MiniOmni
from models.mini_omni.prompts import Task, speech_prompt, text_prompt
from models.mini_omni.tokenizer import Tokenizer, Writing
from tests.conftest import ROOT

GOLDEN = ROOT / "tests" / "golden" / "mini_omni"
TINY = GOLDEN / "tiny"


def config(**other: Any) -> MiniOmniConfig:
    return MiniOmniConfig.of({**yaml.safe_load((TINY / "model_config.yaml").read_text()), **other})


@lru_cache
def tiny(precision: str = "fp32") -> MiniOmni:
    return checkpoint.build(config(), lambda: load_file(TINY / "model.safetensors"), "tiny", precision)


def case(name: str) -> dict[str, Any]:
    return json.loads((TINY / "cases.json").read_text())["cases"][name]


def features(name: str) -> Tensor:
    return torch.from_numpy(np.load(TINY / f"{name}.npz")["audio_features"][0])


def answer(model: MiniOmni, task: Task, sampler: Sampler | None = None, limit: int = 40) -> list[Column]:
    sound = features("A1A2_batch") if task.hears else None
    words = model.config.vocabulary
    prompt = text_prompt(task, words, [5, 6, 7]) if sound is None else speech_prompt(task, words, len(sound))
    return [column for column in columns(model, prompt, sound, sampler or Sampler(), limit) if column]


# --- the real checkpoint's shape --------------------------------------------------------------------------------------


def test_the_network_has_every_key_and_shape_of_the_real_checkpoint():
    real = json.loads((GOLDEN / "real_manifest.json").read_text())
    with torch.device("meta"):
        model = MiniOmni(MiniOmniConfig.of(REAL))
    ours = {key: list(shape) for key, shape in checkpoint.expected(model).items()}
    assert ours == {key: entry["shape"] for key, entry in real.items()}
    assert len(ours) == 198
    unique = sum(np.prod(shape) for key, shape in ours.items() if key != "lm_head.weight")
    assert round(unique / 1e6, 1) == 532.0


def test_special_tokens_of_the_real_vocabulary():
    words = MiniOmniConfig.of(REAL).vocabulary
    assert (words.text_end, words.audio_end, words.codes) == (151936, 4096, 4096)
    assert words.text_special(ANSWER) == 151939
    assert words.row(6, words.audio_special(PAD)) == 152000 + 6 * 4160 + 4097


# --- one step, written in ways that must agree ------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@torch.inference_mode()
def test_the_static_step_of_a_gpu_agrees_with_the_growing_one(precision: str):
    model = tiny(precision)
    prompt, sound = speech_prompt(Task.A1A2_BATCH, model.config.vocabulary, 51), features("A1A2_batch")
    caches = [model.cache(2, 80) for _ in range(2)]
    for cache in caches:
        model.prefill(model.embed(prompt.columns, sound), cache)
        cache.share()
    for _ in range(6):
        x = model.embed(prompt.last)
        grown, fixed = model.step(x, caches[0]), model.static_step(x, caches[1])
        assert caches[0].length == caches[1].length
        assert torch.allclose(grown, fixed, atol=1e-5 if precision == "fp32" else 0.1)
        assert torch.isfinite(fixed).all()
    assert fixed.dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)


@torch.inference_mode()
def test_a_recorded_static_step_serves_other_positions():
    """What makes it fit for a CUDA graph: nothing of a position is baked into the recorded operations."""
    from torch.fx.experimental.proxy_tensor import make_fx

    model = tiny()
    cache = model.cache(2, 32)
    model.prefill(torch.randn(5, 64), cache)
    cache.share()
    x = torch.randn(2, 64)
    recorded = make_fx(lambda x, where: model.step_at(x, where, cache))(x, torch.tensor([5]))
    before = cache._held.clone()
    for place in (5, 6, 9):
        cache._held.copy_(before)
        expected = model.step_at(x, torch.tensor([place]), cache)
        cache._held.copy_(before)
        assert torch.allclose(recorded(x, torch.tensor([place])), expected, atol=1e-6)


@pytest.mark.parametrize("task", list(Task))
def test_bf16_answers_with_valid_tokens(task: Task):
    words = config().vocabulary
    for column in answer(tiny("bf16"), task):
        assert 0 <= column.text < words.text
        assert column.audio is None or all(0 <= each < words.audio for each in column.audio)


def test_int8_is_smaller_and_close():
    exact, small = tiny(), tiny("int8")
    assert small.memory_bytes() < 0.45 * exact.memory_bytes()
    x = torch.randn(3, 64)
    with torch.inference_mode():
        hidden = [model.prefill(x, model.cache(1, 8)) for model in (exact, small)]
    assert torch.nn.functional.cosine_similarity(*hidden).min() > 0.995


def test_int8_keeps_a_quiet_row_beside_a_loud_one():
    torch.manual_seed(0)
    weight, rows = torch.randn(32, 64), torch.randn(2, 64) * torch.tensor([[1.0], [5000.0]])
    ours, exact = Int8Linear(weight, torch.ones(32))(rows), rows @ weight.t() + 1
    assert ((ours - exact).norm(dim=1) / exact.norm(dim=1)).max() < 0.03


def test_int8_takes_zeros_and_embeds():
    assert Int8Linear(torch.randn(4, 8))(torch.zeros(1, 8)).abs().max() == 0
    table = torch.randn(10, 8)
    table[3] = 0
    ours = Int8Embedding(table)(torch.tensor([[3, 4]]))
    assert ours.shape == (1, 2, 8)
    assert (ours - table[[3, 4]]).abs().max() < 0.03
    assert quantize_rows(table, at_once=3)[0].equal(quantize_rows(table)[0])


@pytest.mark.parametrize("width", [16, 3000])
@pytest.mark.parametrize("rows", [1, 2, 8, 9])
def test_few_rows_give_what_many_give(rows: int, width: int):
    torch.manual_seed(0)
    layer, x = FewRowsLinear(width, 12), torch.randn(rows, width)
    assert torch.allclose(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias), atol=1e-5)
    assert layer(x[None]).shape == (1, rows, 12)


# --- generation -------------------------------------------------------------------------------------------------------


def test_two_answers_at_once_are_as_alone():
    model, words = tiny(), tiny().config.vocabulary
    alone = {task: answer(model, task) for task in (Task.A1A2_BATCH, Task.T1A2)}
    sound = features("A1A2_batch")
    open_answers = {
        Task.A1A2_BATCH: columns(model, speech_prompt(Task.A1A2_BATCH, words, len(sound)), sound, Sampler(), 40),
        Task.T1A2: columns(model, text_prompt(Task.T1A2, words, [5, 6, 7]), None, Sampler(), 40),
    }
    made: dict[Task, list[Column]] = {task: [] for task in alone}
    for _ in range(41):
        for task, steps in open_answers.items():
            column = next(steps, None)
            if column:
                made[task].append(column)
    assert made == alone


def test_untied_weights_use_the_head_of_their_own():
    state = load_file(TINY / "model.safetensors")
    state["lm_head.weight"] = state["lm_head.weight"].roll(1, 0)
    untied = checkpoint.build(config(tie_word_embeddings=False), lambda: state, "untied")
    tied = checkpoint.build(config(), lambda: state, "tied")
    hidden = torch.randn(64)
    with torch.inference_mode():
        assert torch.allclose(untied.text_logits(hidden).roll(-1)[:-1], tied.text_logits(hidden)[:-1], atol=1e-5)
        assert torch.equal(tied.text_logits(hidden), tiny().text_logits(hidden))


def test_the_answer_ends_where_the_block_is_full():
    model = tiny()
    made = answer(model, Task.T1T2, limit=10_000)
    assert len(made) <= model.config.transformer.block_size - 5
    cache = model.cache(1, 2)
    model.prefill(torch.randn(2, 64), cache)
    for step in (model.step, model.static_step):
        with pytest.raises(IndexError):
            step(torch.randn(1, 64), cache)


def test_greedy_unless_asked_otherwise():
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.9]])
    assert {Sampler(Sampling(seed=seed))(logits)[0] for seed in range(30)} == {1}
    assert {Sampler(Sampling(seed=seed, top_k=1, temperature=2.0))(logits)[0] for seed in range(30)} == {1}
    assert {Sampler(Sampling(seed=seed, temperature=0.0))(logits)[0] for seed in range(30)} == {1}


def test_every_sampling_setting_works():
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.9]]).expand(400, -1)

    def drawn(**settings: Any) -> Counter:
        return Counter(Sampler(Sampling(seed=3, **settings))(logits))

    assert set(drawn(top_k=2)) == {1, 3}
    assert set(drawn(top_p=0.4)) == {1}
    assert set(drawn(top_p=0.8)) == {1, 3}
    assert set(drawn(temperature=1.0)) == {0, 1, 2, 3}
    assert drawn(temperature=0.1, top_k=4)[1] > drawn(temperature=2.0, top_k=4)[1]
    assert drawn(temperature=1.0) == drawn(temperature=1.0)
    assert Sampler(Sampling(seed=3, temperature=1.0))(logits) != Sampler(Sampling(seed=4, temperature=1.0))(logits)
    share = drawn(temperature=1.0)[1] / 400
    assert abs(share - logits[0].softmax(0)[1].item()) < 0.08


def test_sampling_reaches_text_and_sound():
    greedy = answer(tiny(), Task.A1A2_BATCH)
    hot = [answer(tiny(), Task.A1A2_BATCH, Sampler(Sampling(seed=seed, temperature=1.5))) for seed in (1, 1, 2)]
    assert hot[0] == hot[1] != hot[2]
    assert hot[0] != greedy


def test_frames_follow_the_delay_pattern_and_end_at_a_special_token():
    frames, words = Frames(config().vocabulary), config().vocabulary
    made = [frames.push(tuple(10 * column + layer for layer in range(7))) for column in range(10)]
    assert made[:7] == [None] * 7
    assert made[7] == tuple(10 * (1 + layer) + layer for layer in range(7))
    assert frames.push((words.codes, *range(6))) is not None  # layer 0's special token belongs to a later frame
    while not frames.ended:
        frames.push((0,) * 7)
    assert frames.push((0,) * 7) is None


# --- text -------------------------------------------------------------------------------------------------------------


def test_special_tokens_in_a_persons_text_are_letters():
    tokenizer = Tokenizer(TINY / "tokenizer.json")
    ids = tokenizer.encode("<|endoftext|><|im_end|> hello")
    assert max(ids) < config().vocabulary.text_end
    assert tokenizer.decode(ids) == "<|endoftext|><|im_end|> hello"


def test_text_grows_by_whole_characters():
    tokenizer = Tokenizer(TINY / "tokenizer.json")
    text = "how are you — 你好?"
    writing, parts = Writing(tokenizer), []
    for each in tokenizer.encode(text):
        parts.append(writing.push(each))
        assert "\ufffd" not in parts[-1]
    assert "".join([*parts, writing.finish()]) == text
    assert parts.count("") >= 2  # the bytes of 你 come one by one


# --- loading ----------------------------------------------------------------------------------------------------------


def folder_of(tmp_path: Path, **changes: Any) -> Path:
    """A tiny checkpoint in the real one's files; a change is a tensor, or None to leave the key out."""
    state = {**load_file(TINY / "model.safetensors"), **changes}
    torch.save({key: tensor for key, tensor in state.items() if tensor is not None}, tmp_path / "lit_model.pth")
    (tmp_path / "model_config.yaml").write_text((TINY / "model_config.yaml").read_text())
    return tmp_path


@pytest.mark.parametrize("precision", ["fp32", "int8", "bf16"])
def test_a_checkpoint_file_loads_at_every_precision(tmp_path: Path, precision: str):
    loaded, expected = checkpoint.load(folder_of(tmp_path), precision), tiny(precision)
    assert answer(loaded, Task.A1T2) == answer(expected, Task.A1T2)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"transformer.ln_f.weight": None}, "transformer.ln_f.weight is missing"),
        ({"transformer.h.1.mlp.proj.weight": torch.zeros(64, 127)}, "mlp.proj.weight is [64, 127], not [64, 128]"),
        ({"visual.weight": torch.zeros(1)}, "visual.weight is not known"),
        ({"lm_head.weight": torch.zeros(2816, 64, dtype=torch.int64)}, "lm_head.weight holds torch.int64"),
    ],
)
def test_a_wrong_checkpoint_is_named(tmp_path: Path, changes: dict[str, Any], said: str):
    with pytest.raises(UserError) as caught:
        checkpoint.load(folder_of(tmp_path, **changes))
    assert caught.value.code == "checkpoint_wrong"
    assert said in str(caught.value)


def test_a_truncated_or_poisoned_checkpoint_is_refused(tmp_path: Path):
    file = folder_of(tmp_path) / "lit_model.pth"
    file.write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(UserError, match=r"lit_model\.pth"):
        checkpoint.load(tmp_path)
    torch.save({"a": Path("/")}, file)  # unpickling it would need more than tensors
    with pytest.raises(UserError, match=r"lit_model\.pth"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize(
    "changes", [{"padded_vocab_size": 7}, {"asr_adapter": "conv"}, {"mlp_class_name": "GemmaMLP"}, {"n_layer": "two"}]
)
def test_a_wrong_config_is_named(tmp_path: Path, changes: dict[str, Any]):
    given = {**yaml.safe_load((TINY / "model_config.yaml").read_text()), **changes}
    (tmp_path / "model_config.yaml").write_text(yaml.safe_dump(given))
    with pytest.raises(UserError, match=r"model_config\.yaml"):
        MiniOmniConfig.read(tmp_path / "model_config.yaml")


# --- other sizes, against litgpt's own forward without any cache ------------------------------------------------------

SIZES = {
    "no groups": {"n_head": 4, "n_query_groups": 4, "n_layer": 1},
    "one group": {"n_head": 6, "n_query_groups": 1, "head_size": 8, "n_embd": 48},
    "untied, wide heads": {"tie_word_embeddings": False, "head_size": 24, "n_layer": 3},
    "another vocabulary": {"text_vocab_size": 130, "audio_vocab_size": 96, "padded_vocab_size": 130 + 7 * 96},
    "biases": {"bias": True, "add_qkv_bias": False, "lm_head_bias": False, "whisper_adapter_dim": 20},
}


@pytest.mark.parametrize("name", list(SIZES))
@torch.inference_mode()
def test_other_sizes_answer_as_litgpts_own_forward(name: str):
    torch.manual_seed(len(name))
    own = config(**SIZES[name])
    with torch.device("meta"):
        shapes = checkpoint.expected(MiniOmni(own))
    state = {key: torch.randn(shape) * (0.3 if len(shape) > 1 else 1.0) for key, shape in shapes.items()}
    if own.tied:
        state["lm_head.weight"] = state["transformer.wte.weight"]
    model = checkpoint.build(own, lambda: state, name)
    sound = torch.randn(5, own.adapter_width)
    prompt = speech_prompt(Task.A1A2_BATCH, own.vocabulary, 5)
    made = [column for column in columns(model, prompt, sound, Sampler(), 10) if column]
    assert made == naive(model, state["lm_head.weight"], prompt.ids, sound, 10)[: len(made)]
    assert len(made) >= 5


def naive(model: MiniOmni, head: Tensor, ids: Tensor, sound: Tensor, count: int) -> list[Column]:
    """Both rows whole, every time anew, through litgpt's blocks as they are."""
    words, blocks = model.config.vocabulary, model.transformer
    made: list[Column] = []
    ended = False
    for _ in range(count):
        parts = blocks.wte(ids)
        parts[:7, :, 1 : 1 + len(sound)] = model.whisper_adapter(sound)
        x = parts.mean(0)
        cos, sin = model.cos[None, : x.shape[1]], model.sin[None, : x.shape[1]]
        for block in blocks.h:
            x = block(x, cos, sin)
        logits = blocks.ln_f(x)[:, -1] @ head.t()
        audio = logits[0, words.text :].view(7, words.audio).argmax(-1)
        text = words.text_special(PAD) if ended else int(logits[1, : words.text].argmax())
        made.append(Column(text, tuple(audio.tolist())))
        ended = ended or text == words.text_end
        rows = [words.row(layer, each) for layer, each in enumerate(audio.tolist())]
        pads = [words.row(layer, words.audio_special(PAD)) for layer in range(7)]
        ids = torch.cat([ids, torch.tensor([[*rows, text], [*pads, text]]).t()[:, :, None]], 2)
    return made
