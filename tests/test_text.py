"""Every sentence a person may read exists in both languages, with the same blanks."""

import ast
import pickle
import string
from pathlib import Path

import pytest
import yaml

from models.capabilities import PHASES
from models.errors import UserError
from models.text import FOLDER, LANGUAGES, say, sentences

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [ROOT / "app.py", *sorted(ROOT.glob("models/**/*.py")), *sorted(ROOT.glob("tabs/**/*.py"))]


def blanks(sentence: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(sentence) if name}


def error_codes() -> dict[str, str]:
    """{code: file} of every UserError("code", …), and of every super().__init__("code", …) of its subclasses."""
    found = {}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant)):
                continue
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if name == "UserError":
                found[node.args[0].value] = path.name
    return found


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.name)
def test_both_languages_with_the_same_blanks(path):
    class Unique(yaml.SafeLoader):
        pass

    def no_doubles(loader, node, deep=False):
        keys = [key.value for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"a key stands twice in {path.name}"
        return yaml.SafeLoader.construct_mapping(loader, node, deep)

    Unique.add_constructor("tag:yaml.org,2002:map", no_doubles)
    for key, translations in yaml.load(path.read_text(encoding="utf-8"), Unique).items():
        assert set(translations) == set(LANGUAGES), key
        assert all(isinstance(sentence, str) and sentence.strip() for sentence in translations.values()), key
        assert blanks(translations["en"]) == blanks(translations["zh"]), key


def test_every_error_in_the_source_has_its_sentence():
    codes = error_codes()
    assert {"audio_silent", "model_unloaded", "model_unknown"} <= codes.keys(), "the search itself works"
    missing = {code: file for code, file in codes.items() if f"errors.{code}" not in sentences()}
    assert not missing


def test_every_error_sentence_is_raised_somewhere():
    source = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)
    unused = [name for name in sentences() if name.startswith("errors.") and f'"{name[7:]}"' not in source]
    assert not unused


def test_every_phase_has_its_sentence():
    assert not [phase for phase in PHASES if f"status.{phase}" not in sentences()]


def test_blanks_are_filled_in_the_language_asked_for():
    error = UserError("audio_too_short", seconds=0.14, least=0.3)
    assert str(error) == error.sentence("en")
    assert "0.1 s long" in error.sentence("en")
    assert "0.1 秒" in error.sentence("zh")
    assert error.sentence("fr") == error.sentence("en")
    assert say("errors.no_audio", "zh") == UserError("no_audio").sentence("zh")


def test_what_a_person_typed_is_not_taken_for_a_blank():
    assert "{known}{0}<b>" in UserError("model_unknown", model="{known}{0}<b>", known="compact").sentence()


def test_an_error_keeps_its_facts_between_processes():
    error = pickle.loads(pickle.dumps(UserError("audio_too_short", seconds=0.1, least=0.3)))
    assert (error.code, error.facts) == ("audio_too_short", {"seconds": 0.1, "least": 0.3})
