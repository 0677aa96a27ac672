"""The command ``percoedge serve``: HTTP on this machine."""

from __future__ import annotations

import os
from argparse import Namespace
from dataclasses import fields

from percoedge.errors import EngineError
from percoedge.runtime.cli.console import Console

__all__ = ["serve"]

_EXTRA = {"fastapi", "prometheus_client", "starlette", "uvicorn"}


def serve(options: Namespace, console: Console) -> int:
    """Serve until a signal; returns the exit code. The token is that of PERCOEDGE_TOKEN."""
    try:
        from percoedge.serving import server
        from percoedge.serving.settings import ServiceSettings
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _EXTRA:
            raise
        raise EngineError(
            f"expected the packages of the service, cannot import {error.name}; install them with: "
            "pip install 'percoedge[serve]'"
        ) from error
    named = {
        **vars(options),
        "bundles": tuple(options.bundle or ()) or None,
        "cors_origins": tuple(options.cors_origin or ()) or None,
        "token": os.environ.get("PERCOEDGE_TOKEN"),
    }
    chosen = {field.name: named[field.name] for field in fields(ServiceSettings)}
    settings = ServiceSettings(**{name: v for name, v in chosen.items() if v is not None})
    return server.serve(settings, options.host, options.port, quiet=options.quiet)
