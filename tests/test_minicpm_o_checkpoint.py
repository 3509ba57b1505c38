"""MiniCPM-o's config and checkpoint: the real shapes, and files that are not what they should be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from models.errors import UserError
from models.minicpm_o import language
from models.minicpm_o.audio_encoder import (
    AudioEncoder,
    _skeleton,
)
from models.minicpm_o.checkpoint import Checkpoint, shapes, used_keys
from models.minicpm_o.config import MiniCPMOConfig
from models.minicpm_o.language import LanguageModel
from tests.minicpm_o_parts import (
    FOLDER,
    GOLDEN,
    config,
    model,
)

# --- the real checkpoint's shape --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["speech_only", "with_vision"])
def test_the_networks_have_every_key_and_shape_of_the_real_checkpoint(kind: str):
    real = json.loads((GOLDEN / "real_state_dict_manifest.json").read_text())[kind]
    used = {key: real[key] for key in used_keys(real)}
    sizes = MiniCPMOConfig.of(json.loads((GOLDEN / "real_config_reconstructed.json").read_text()))
    encoder, projector = _skeleton(sizes)
    parts = {"llm.": language.skeleton(sizes), "apm.": encoder, "audio_projection_layer.": projector}
    ours = {prefix + key: list(shape) for prefix, part in parts.items() for key, shape in shapes(part).items()}
    assert ours == {key: shape for key, shape in used.items() if not key.startswith("tts.")}
    # Left aside, by name: vision, and what only training uses.
    aside = set(real) - set(used)
    vision = {key for key in aside if key.startswith(("vpm.", "resampler."))}
    assert len(vision) == {"speech_only": 0, "with_vision": 450}[kind]
    assert all(key.startswith(("tts.dvae.", "tts.model.embed_tokens.")) for key in aside - vision)
    # And of the shapes, by the checkpoint's own reader: nothing to object.
    checkpoint = Checkpoint(dict.fromkeys(used, Path("real")), used)
    for prefix, part in parts.items():
        checkpoint.check(prefix, shapes(part))
    assert sum(np.prod(shape) for key, shape in ours.items() if key.startswith("llm.")) / 1e6 == pytest.approx(
        7613, 1e-3
    )


def test_the_speech_decoders_sizes_are_the_real_ones_where_config_is_silent():
    sizes = MiniCPMOConfig.of(json.loads((GOLDEN / "real_config_reconstructed.json").read_text())).tts
    assert (sizes.llm_dim, sizes.hidden_size, sizes.num_hidden_layers, sizes.num_text_tokens) == (3584, 768, 20, 21178)


# --- a checkpoint that is not what it should be -----------------------------------------------------------------------


def refused(folder: Path) -> str:
    """Load everything of a folder; what the error says."""

    def load() -> None:
        sizes, checkpoint = MiniCPMOConfig.read(folder), Checkpoint.open(folder)
        LanguageModel(checkpoint, sizes)
        AudioEncoder(checkpoint, sizes)

    with pytest.raises(UserError) as found:
        load()
    assert found.value.code == "checkpoint_wrong"
    return str(found.value)


def sharded(folder: Path, index: bool) -> list[Path]:
    """The golden weights in three shards, with or without an index."""
    folder.mkdir()
    shutil.copy(FOLDER / "config.json", folder)
    state = load_file(FOLDER / "model.safetensors")
    names = [f"model-{number:05}-of-00003.safetensors" for number in (1, 2, 3)]
    placed = {key: names[place % 3] for place, key in enumerate(sorted(state))}
    for name in names:
        save_file({key: state[key] for key in state if placed[key] == name}, folder / name)
    if index:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    return [folder / name for name in names]


@pytest.mark.parametrize("index", [True, False])
def test_shards_are_read_as_one(tmp_path: Path, index: bool):
    sharded(tmp_path / "c", index)
    checkpoint = Checkpoint.open(tmp_path / "c")
    assert checkpoint.shapes == Checkpoint.open(FOLDER).shapes
    loaded = LanguageModel(checkpoint, config())
    for ours, golden in zip(loaded.network.parameters(), model().network.parameters(), strict=True):
        assert torch.equal(ours, golden)


@pytest.mark.parametrize("index", [True, False])
def test_a_missing_shard_is_named(tmp_path: Path, index: bool):
    shard = sharded(tmp_path / "c", index)[1]
    shard.unlink()
    assert "model-00002-of-00003.safetensors" in refused(tmp_path / "c")


@pytest.mark.parametrize("left", [0, 7, 5000, -1])
def test_a_truncated_shard_is_named(tmp_path: Path, left: int):
    shard = sharded(tmp_path / "c", True)[2]
    shard.write_bytes(shard.read_bytes()[:left])
    assert shard.name in refused(tmp_path / "c")


def test_a_broken_index_is_named(tmp_path: Path):
    sharded(tmp_path / "c", True)
    (tmp_path / "c" / "model.safetensors.index.json").write_text('{"weight_map": 3')
    assert "model.safetensors.index.json" in refused(tmp_path / "c")


def changed(folder: Path, change: Any) -> str:
    folder.mkdir()
    shutil.copy(FOLDER / "config.json", folder)
    state = load_file(FOLDER / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")
    return refused(folder)


@pytest.mark.parametrize("key", ["llm.model.layers.1.mlp.up_proj.weight", "apm.layers.0.self_attn.k_proj.weight"])
def test_keys_and_shapes_that_are_off_are_named(tmp_path: Path, key: str):
    assert f"{key} is missing" in changed(tmp_path / "a", lambda state: state.pop(key))
    said = changed(tmp_path / "b", lambda state: state.update({key: torch.zeros(3, 4)}))
    assert f"{key} is [3, 4], not [" in said and "model.safetensors" in said
    said = changed(tmp_path / "c", lambda state: state.update({key: torch.zeros(state[key].shape, dtype=torch.int32)}))
    assert f"{key} holds I32" in said
    assert "llm.lora.x is not known" in changed(
        tmp_path / "d", lambda state: state.update({"llm.lora.x": torch.zeros(1)})
    )
    assert "other.x is not known" in changed(tmp_path / "e", lambda state: state.update({"other.x": torch.zeros(1)}))


def test_vision_and_what_is_never_read_may_be_there_or_not(tmp_path: Path):
    shutil.copytree(FOLDER, tmp_path / "c", copy_function=shutil.copyfile)
    state = load_file(FOLDER / "model.safetensors")
    state["vpm.x"] = state["resampler.y"] = state["tts.model.embed_tokens.weight"] = torch.zeros(2)
    save_file({key: tensor.clone() for key, tensor in state.items()}, tmp_path / "c" / "model.safetensors")
    assert Checkpoint.open(tmp_path / "c").shapes == Checkpoint.open(FOLDER).shapes


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("", "config.json"),
        ("[]", "config.json"),
        ('{"model_type": "qwen2"}', "'qwen2'"),
        ({"hidden_size": None}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"audio_config": {"d_model": "64"}}, "d_model"),
        ({"tts_config": {"llm_dim": 63}}, "llm_dim"),
    ],
)
def test_a_config_that_is_off_is_named(tmp_path: Path, given: Any, said: str):
    text = given
    if isinstance(given, dict):
        text = json.dumps({**json.loads((FOLDER / "config.json").read_text()), **given})
    (tmp_path / "config.json").write_text(text)
    assert said in refused(tmp_path)


def test_no_folder_and_an_empty_one(tmp_path: Path):
    assert "config.json" in refused(tmp_path / "none")
    shutil.copy(FOLDER / "config.json", tmp_path)
    assert "safetensors" in refused(tmp_path)
