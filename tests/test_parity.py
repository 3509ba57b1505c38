"""Golden data of the original implementations, through the very command that runs any other folder of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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
