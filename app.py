"""Parley's page: read the command line, build the tabs over one registry, serve."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Sequence

from tabs.options import parse


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve the page until interrupted."""
    options = parse(arguments)
    # Before gradio and the hub clients are imported: they read these once.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    # OpenMP reads it once, when torch comes in with a model: threads that spin while they wait slow everybody down.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")

    from tabs.page import serve

    parent = os.environ.get("GRADIO_TEMP_DIR")
    if parent:
        os.makedirs(parent, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # as Ctrl-C: what was uploaded is still deleted
    try:
        with tempfile.TemporaryDirectory(prefix="parley-", dir=parent, ignore_cleanup_errors=True) as uploads:
            os.environ["GRADIO_TEMP_DIR"] = uploads
            serve(options)
    except OSError as error:  # gradio's own for a port that is taken
        sys.exit(f"Parley could not start: {error} Choose another port with --port.")


if __name__ == "__main__":
    main()
