"""What every tab is built with: the registry, and how the app was started. Nothing of a person is in here."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from models.registry import Registry

# How a handler that streams an answer is wired: the worker of each model queues and shares fairly, so that Gradio
# need not; glue is not part of the public API.
STREAMING = {"concurrency_limit": 32, "show_progress": "hidden", "api_visibility": "private"}
GLUE = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


@dataclass(frozen=True)
class House:
    registry: Registry
    options: argparse.Namespace
