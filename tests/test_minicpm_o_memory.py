"""What MiniCPM-o needs of memory: the catalog's figures, and what is loaded, against a count of the weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.catalog import GB, MINICPM_O, MINICPM_O_FILES
from models.minicpm_o import engine, speech_decoder
from models.minicpm_o.audio_encoder import _skeleton
from models.minicpm_o.checkpoint import shapes, used_keys
from models.minicpm_o.config import MiniCPMOConfig
from models.minicpm_o.language import PREFIX, skeleton
from tests.conftest import ROOT

GOLDEN = ROOT / "tests" / "golden" / "minicpm_o"
FOLDER = GOLDEN / "checkpoint"
MANIFEST: dict[str, dict[str, list[int]]] = json.loads(
    (GOLDEN / "real_state_dict_manifest.json").read_text(encoding="utf-8")
)
POSITIONS = engine.PROMPT_TOKENS + engine.TOKENS  # of a conversation at its longest, whose keys and values are kept
WORK = 0.4 * GB  # what a step makes on its way: a slice of a prompt, a piece of 30 s in the ears, logits
SLACK = 1.15
INT4 = 0.5 + 4 / 128  # bytes a weight: four bits, and for each 128 a scale and a zero of two bytes
SMALL: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 8192,
}
SMALL_EARS = {"d_model": 256, "encoder_layers": 4, "encoder_attention_heads": 4, "encoder_ffn_dim": 1024}
SMALL_SPEECH = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4, "num_hidden_layers": 4}


def weights_bytes(sizes: Mapping[str, Sequence[int]], vocoder: Mapping[str, Sequence[int]], way: str, on: str) -> float:
    """Bytes of a checkpoint's weights at a precision on a kind of device."""
    return sum(weight_bytes(key, sizes[key], way, on) for key in used_keys(sizes)) + sum(
        4 * prod(shape) for key, shape in vocoder.items() if not key.startswith("feature_extractor.")
    )


def weight_bytes(key: str, shape: Sequence[int], way: str, on: str) -> float:
    """On a GPU only the language model is made smaller than bfloat16; the DVAE is always float32, as is Vocos."""
    plain = 4 if way == "fp32" or on == "cpu" or key.startswith("tts.dvae.") else 2
    small = len(shape) == 2 and way in ("int8", "int4")
    if on == "cpu":  # … but the ears and the speech decoder's layers are too
        small = small and key.startswith(("llm.", "apm.layers.", "audio_projection_layer.", "tts.model.layers."))
    else:
        small = small and key.startswith("llm.") and "embed_tokens" not in key
    if not small:
        return plain * prod(shape)
    if way == "int4" and "lm_head" not in key:
        return INT4 * prod(shape)
    return prod(shape) + plain * shape[0]


def conversation_bytes(config: MiniCPMOConfig, way: str, on: str) -> int:
    llm: Any = config.llm
    head = llm.hidden_size // llm.num_attention_heads
    each = 4 if way == "fp32" or on == "cpu" else 2
    return POSITIONS * llm.num_hidden_layers * 2 * llm.num_key_value_heads * head * each


@pytest.mark.parametrize("way", MINICPM_O.memory)
def test_the_catalog_names_what_the_real_checkpoint_needs(way: str):
    config = MiniCPMOConfig.of(json.loads((GOLDEN / "real_config_reconstructed.json").read_text(encoding="utf-8")))
    needed = max(
        weights_bytes(MANIFEST["speech_only"], MANIFEST["Vocos.pt"], way, on)
        + conversation_bytes(config, way, on)
        + WORK
        for on, ways in MINICPM_O.precisions.items()
        if way in ways
    )
    assert needed <= MINICPM_O.memory[way] <= SLACK * needed, f"{way}: {needed / GB:.2f} GB"


@pytest.mark.parametrize(("way", "card"), [("int8", 12), ("int4", 8)])
def test_it_fits_the_cards_it_is_made_small_for(way: str, card: int):
    from models.registry import MEMORY_SHARE

    assert MINICPM_O.memory[way] <= MEMORY_SHARE * card * 2**30


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint of a hundredth of the real size, with the golden one's tokenizers, DVAE and Vocos."""
    folder = tmp_path_factory.mktemp("small") / "checkpoint"
    shutil.copytree(FOLDER, folder)
    given = json.loads((folder / "config.json").read_text(encoding="utf-8")) | SMALL
    given["audio_config"] |= SMALL_EARS
    given["tts_config"] |= {**SMALL_SPEECH, "llm_dim": SMALL["hidden_size"]}
    (folder / "config.json").write_text(json.dumps(given))
    config = MiniCPMOConfig.read(folder)
    ears, projector = map(shapes, _skeleton(config))
    parts = {PREFIX: shapes(skeleton(config)), "apm.": ears, "audio_projection_layer.": projector}
    parts["tts."] = speech_decoder.expected(config.tts)
    state = {f"{part}{key}": torch.randn(shape) * 0.02 for part, own in parts.items() for key, shape in own.items()}
    state |= {key: each for key, each in load_file(FOLDER / "model.safetensors").items() if key.startswith("tts.dvae.")}
    save_file(state, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("way", MINICPM_O.precisions["cpu"])
def test_what_is_loaded_is_what_was_counted(small: Path, way: str):
    sizes = {key: list(each.shape) for key, each in load_file(small / "model.safetensors").items()}
    vocoder = {key: list(each.shape) for key, each in torch.load(small / "assets" / "Vocos.pt").items()}
    counted = weights_bytes(sizes, vocoder, way, "cpu")
    model = engine.load(MINICPM_O, {MINICPM_O_FILES.id: small}.__getitem__, "cpu", way)
    assert model.memory_bytes() == pytest.approx(counted, rel=0.05)
