"""README's head for a Hugging Face Space, requirements.txt and the catalog agree."""

import re
import subprocess
from pathlib import Path

import yaml
from packaging.requirements import Requirement

from models.catalog import CATALOG, Hub

ROOT = Path(__file__).resolve().parent.parent
COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}


def front_matter() -> dict:
    empty, head, _ = (ROOT / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert not empty
    return yaml.safe_load(head)


def requirements() -> list[Requirement]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    stripped = (line.split("#")[0].strip() for line in lines)
    return [Requirement(line) for line in stripped if line]


def applying(python: str) -> dict[str, Requirement]:
    environment = {"python_version": python}
    held = [each for each in requirements() if not each.marker or each.marker.evaluate(environment)]
    names = [each.name for each in held]
    assert len(names) == len(set(names)), "a package is required twice"
    return {each.name: each for each in held}


def test_the_space_runs_what_is_pinned():
    head = front_matter()
    assert head["sdk"] == "gradio"
    assert f"gradio=={head['sdk_version']}" in {str(each) for each in requirements()}
    assert head["python_version"] == "3.12"  # in quotes: a bare 3.10 would be read as 3.1
    assert (ROOT / head["app_file"]).is_file()
    assert (ROOT / "packages.txt").is_file()


def test_the_front_matter_keeps_the_hubs_rules():
    head = front_matter()
    assert len(head["short_description"]) <= 60
    assert {head["colorFrom"], head["colorTo"]} <= COLOURS
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+", model) for model in head["models"])


def test_every_hub_repository_of_the_catalog_is_named():
    sources = (source for spec in CATALOG for weights in spec.weights for source in weights.sources)
    hubs = {source.repository for source in sources if isinstance(source, Hub) and source.hub == "huggingface"}
    assert hubs <= set(front_matter()["models"])


def test_readme_names_every_download_with_its_licence():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for spec in CATALOG:
        for weights in spec.weights:
            row = next(
                line for line in readme.splitlines() if line.startswith("|") and f"]({weights.homepage})" in line
            )
            assert weights.licence in row
            size = f"{weights.bytes / 1e9:.1f}".removesuffix(".0") + " GB"
            assert (size if weights.bytes >= 1e9 else f"{weights.bytes / 1e6:.0f} MB") in row


def test_requirements_hold_the_packages_of_the_design_on_every_python():
    named = {"gradio", "torch", "transformers", "modelscope", "librosa", "soundfile", "vocos", "snac"}
    named |= {"openai-whisper", "litgpt", "pydub", "silero-vad", "spaces", "misaki"}
    for python in ("3.10", "3.11", "3.12", "3.13"):
        held = applying(python)
        assert named <= held.keys(), python
        assert {"2.8.0", "2.11.0", "2.13.0", "2.13.0+cpu"} == set(
            held["torch"].specifier.filter(["2.7.1", "2.8.0", "2.11.0", "2.13.0", "2.13.0+cpu", "2.14.0"])
        )


def test_make_refuses_another_python_with_a_sentence(tmp_path):
    other = tmp_path / "python3.9"
    other.write_text("#!/bin/sh\nexit 1\n")
    other.chmod(0o755)
    done = subprocess.run(
        ["make", "-s", "run", f"PYTHON={other}", f"VENV={tmp_path / 'venv'}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "Parley needs Python 3.10, 3.11, 3.12 or 3.13" in done.stdout
    assert not (tmp_path / "venv").exists()
