"""The command line: every option also by environment variable, PARLEY_ and the option's name in capitals."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from models.catalog import CATALOG, ModelSpec

PREFIX = "PARLEY_"


def parser(environment: Mapping[str, str] = os.environ) -> argparse.ArgumentParser:
    """The parser, its defaults taken from `environment` where a variable is set."""
    known = ", ".join(spec.id for spec in CATALOG)
    made = argparse.ArgumentParser(
        prog="python app.py",
        description="Parley: one page for talking with open speech models.",
        epilog="Each option can also be given as an environment variable: --max-queue as PARLEY_MAX_QUEUE, and so on. "
        "Lists are separated by commas there; switches take 1 or 0.",
    )

    def option(name: str, **settings) -> None:
        variable = PREFIX + name.strip("-").replace("-", "_").upper()
        if variable in environment:
            settings["default"] = _from_environment(environment[variable], settings)
        made.add_argument(name, **settings)

    option("--host", help="address to listen on (default 127.0.0.1; 0.0.0.0 for every network of this machine)")
    option("--port", type=int, help="port to listen on (default 7860)")
    option("--device", choices=("auto", "cuda", "mps", "cpu"), default="auto", help="where models run (default auto)")
    option("--models", type=_list, help=f"offer only these, separated by commas (default all: {known})")
    option(
        "--model-folder", action="append", default=[], metavar="ID=PATH", help="files of a model that lie here already"
    )
    choices = "; ".join(f"{spec.id}: {', '.join(names)}" for spec in CATALOG if len(names := _precisions(spec)) > 1)
    option(
        "--precision",
        action="append",
        default=[],
        metavar="ID=PRECISION",
        help=f"the precision a model runs in, instead of its default for the device ({choices})",
    )
    option("--cache", type=Path, metavar="FOLDER", help="where downloads are kept (default ~/.cache/parley)")
    option("--memory-budget", type=float, metavar="GB", help="most memory that loaded models may take together")
    option("--preload", type=_list, default=[], metavar="IDS", help="load these at start, so that no answer waits")
    option("--offline", action="store_true", help="never ask the network; what is missing is said at once")
    option(
        "--language", choices=("auto", "en", "zh"), default="auto", help="the page's language (default: the browser's)"
    )
    option("--max-queue", type=int, default=32, help="how many requests may wait (default 32)")
    option("--share", action="store_true", help="a public link through Gradio's relay")
    option("--auth", metavar="USER:PASSWORD", help="ask for this user and password")
    option("--ssl-certfile", type=Path, help="serve https with this certificate (microphones need https or localhost)")
    option("--ssl-keyfile", type=Path, help="the certificate's key")
    option("--ssl-keyfile-password", help="the key's password")
    return made


def parse(arguments: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ) -> argparse.Namespace:
    """Parse and check; what is wrong ends the program with a sentence.

    `model_folder` becomes {id: Path}, `precision` {id: precision}.
    """
    made = parser(environment)
    options = made.parse_args(arguments)
    ids = {spec.id for spec in CATALOG}
    weights_ids = ids | {weights.id for spec in CATALOG for weights in spec.weights}
    for name in ("models", "preload"):
        unknown = set(getattr(options, name) or ()) - ids
        if unknown:
            made.error(
                f"--{name}: there is no model called {', '.join(sorted(unknown))}; known: {', '.join(sorted(ids))}"
            )
    folders = {}
    for given in options.model_folder:
        name, equals, path = given.partition("=")
        if not equals or name not in weights_ids:
            made.error(f"--model-folder takes ID=PATH, with ID one of {', '.join(sorted(weights_ids))}; got {given}")
        if not Path(path).exists():
            made.error(f"--model-folder: {path} does not exist")
        folders[name] = Path(path)
    options.model_folder = folders
    offered = {spec.id: _precisions(spec) for spec in CATALOG}
    wanted = {}
    for given in options.precision:
        name, _, precision = given.partition("=")
        if precision not in offered.get(name, ()):
            choices = "; ".join(f"{each}={' or '.join(names)}" for each, names in offered.items())
            made.error(f"--precision takes ID=PRECISION, one of {choices}; got {given}")
        wanted[name] = precision
    options.precision = wanted
    if options.auth is not None and ":" not in options.auth:
        made.error("--auth takes USER:PASSWORD")
    return options


def _precisions(spec: ModelSpec) -> list[str]:
    """What the model can run in, on one device or another."""
    return list(dict.fromkeys(name for names in spec.precisions.values() for name in names))


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _from_environment(text: str, settings: Mapping) -> object:
    if settings.get("action") == "store_true":
        return text.lower() in ("1", "true", "yes")
    if settings.get("action") == "append":
        return _list(text)
    return text  # argparse applies `type` to a string default itself
