"""The command line, and the same by environment variable."""

import subprocess
import sys
from pathlib import Path

import pytest

from tabs.options import parse

ROOT = Path(__file__).resolve().parent.parent


def test_defaults():
    options = parse([], {})
    assert (options.device, options.language, options.max_queue) == ("auto", "auto", 32)
    assert options.preload == [] and options.model_folder == {} and options.precision == {} and not options.offline


def test_environment_gives_defaults_and_the_command_line_wins(tmp_path):
    environment = {
        "PARLEY_PORT": "8000",
        "PARLEY_OFFLINE": "1",
        "PARLEY_SHARE": "0",
        "PARLEY_PRELOAD": "compact, mini-omni",
        "PARLEY_MODEL_FOLDER": f"mini-omni={tmp_path}",
        "PARLEY_MEMORY_BUDGET": "1.5",
        "PARLEY_PRECISION": "mini-omni=fp32",
    }
    options = parse(["--port", "9000"], environment)
    assert options.port == 9000
    assert options.offline and not options.share
    assert options.preload == ["compact", "mini-omni"]
    assert options.model_folder == {"mini-omni": tmp_path}
    assert options.memory_budget == 1.5
    assert options.precision == {"mini-omni": "fp32"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--preload", "gpt-9"], "no model called gpt-9"),
        (["--model-folder", "compact"], "ID=PATH"),
        (["--model-folder", "mini-omni=/not/there"], "does not exist"),
        (["--auth", "nobody"], "USER:PASSWORD"),
        (["--precision", "mini-omni=int4"], "mini-omni=bf16 or int8 or fp32"),
        (["--precision", "fp32"], "ID=PRECISION"),
    ],
)
def test_wrong_options_end_with_a_sentence(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as end:
        parse(arguments, {})
    assert end.value.code == 2
    assert sentence in capsys.readouterr().err


def test_help_names_every_option_and_needs_no_gradio():
    code = "import sys, app\ntry: app.main(['--help'])\nexcept SystemExit: sys.exit('gradio' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for option in (
        "--host --port --device --models --model-folder --precision --preload --offline --share --auth --ssl-certfile "
        "--language --max-queue"
    ).split():
        assert option in done.stdout
