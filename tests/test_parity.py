"""Golden data of the original implementations, through the very command that runs any other folder of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import ROOT

GOLDEN = ROOT / "tests" / "golden"


def parity(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.parity", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True
    )


@pytest.mark.parametrize(("variant", "cases"), [("tiny", 10), ("truevocab", 10)])
def test_mini_omni_answers_as_the_original_did(variant: str, cases: int):
    done = parity("mini_omni", GOLDEN / "mini_omni" / variant)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{cases} of {cases} cases equal" in done.stdout


def test_parity_fails_where_one_token_differs(tmp_path: Path):
    for name in ("tiny", "whisper", "snac", "wav"):
        shutil.copytree(GOLDEN / "mini_omni" / name, tmp_path / name)
    file = tmp_path / "tiny" / "cases.json"
    cases = json.loads(file.read_text())
    cases["cases"] = {name: cases["cases"][name] for name in ("T1T2", "A1T1")}
    cases["cases"]["T1T2"]["tokens"]["text"][5] += 1
    file.write_text(json.dumps(cases))
    done = parity("mini_omni", tmp_path)
    assert done.returncode == 1
    assert "WRONG tiny/T1T2" in done.stdout
    assert "ok    tiny/A1T1" in done.stdout
    assert "differs from token 5" in done.stdout


def test_minicpm_o_answers_as_the_original_did():
    done = parity("minicpm_o", GOLDEN / "minicpm_o")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "40 of 40 cases equal, 4 not run" in done.stdout


@pytest.fixture
def two_cases(tmp_path: Path) -> Path:
    """A folder of MiniCPM-o's golden data with two cases, under names of its own, and no components."""
    source = GOLDEN / "minicpm_o"
    shutil.copytree(source / "checkpoint", tmp_path / "checkpoint")
    for name in ("audio.npz", "audio.json"):
        shutil.copy(source / name, tmp_path)
    cases = json.loads((source / "cases.json").read_text())
    kept = {"plain": cases["e_text_no_tts_template"], "spoken": cases["f_voice_cloning_zh"]}
    (tmp_path / "cases.json").write_text(json.dumps(kept))
    for name, case in kept.items():
        shutil.copy(source / f"case_{case['case']}.safetensors", tmp_path / f"case_{name}.safetensors")
    return tmp_path


def test_parity_of_minicpm_o_takes_any_folder(two_cases: Path):
    done = parity("minicpm_o", two_cases)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 cases equal" in done.stdout


def test_parity_of_minicpm_o_names_what_differs_and_what_it_does_not_know(two_cases: Path):
    file = two_cases / "case_spoken.safetensors"
    tensors = load_file(file)
    tensors["tts_audio_ids"][0, 20, 1] += 1
    tensors["spk_embeds"][0, 3] += 1e-3
    tensors["something_new_first4"] = torch.zeros(4)
    save_file(tensors, file)
    told = json.loads((two_cases / "cases.json").read_text())
    told["plain"]["answer_text"] += "!"
    (two_cases / "cases.json").write_text(json.dumps(told))
    done = parity("minicpm_o", two_cases)
    assert done.returncode == 1
    for line in (
        "WRONG plain",
        "WRONG spoken",
        "tts_audio_ids: differs from token 81 on",
        "spk_embeds: differs by 0.001",
        "something_new_first4: recorded, but nothing here gives it",
        "answer_text: ",
        "0 of 2 cases equal",
    ):
        assert line in done.stdout
