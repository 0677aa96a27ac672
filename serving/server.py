"""The service in one process with uvicorn: sockets, signals, and the log on standard error."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from types import FrameType

import uvicorn

from percoedge.errors import UsageError
from percoedge.serving.access import JsonFormatter
from percoedge.serving.app import create_app
from percoedge.serving.service import Service
from percoedge.serving.settings import ServiceSettings

__all__ = ["listening", "serve"]

_FORCED = 130
_SPARE_S = 5.0  # for answers to be sent, after the last one is there

log = logging.getLogger("percoedge.serving")


def serve(settings: ServiceSettings, host: str, port: int, *, quiet: bool = False) -> int:
    """Serve until a signal; the exit code: 0, or 130 where a second one ended it at once.

    ``port`` 0 takes a free one, which the log names. ``quiet``: log warnings and errors only.
    Raises UsageError for an address that cannot be taken, and BundleError or BackendError when the
    codecs cannot be loaded.
    """
    _log_as_json(logging.WARNING if quiet else logging.INFO)
    app = create_app(settings)
    service: Service = app.state.service
    with listening(host, port) as listener:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=round(settings.drain_s + _SPARE_S),
        )
        server = _Server(config, service)
        shown = f"[{host}]" if ":" in host else host
        log.info("listening", extra={"url": f"http://{shown}:{listener.getsockname()[1]}"})
        asyncio.run(server.serve([listener]))
    if service.failure is not None:
        raise service.failure
    return _FORCED if server.force_exit else 0


class _Server(uvicorn.Server):
    """Drains at SIGTERM and SIGINT, stops at once at the second, and when loading has failed."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal, which uvicorn would raise again after all is done, for an exit code."""
        self.force_exit = self.should_exit
        self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Whether to stop; asked ten times a second."""
        return self._service.failure is not None or await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer what was accepted, within the time for it."""
        draining = asyncio.create_task(self._service.stop())
        await super().shutdown(sockets)
        if self.force_exit:
            logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # it tells what is cancelled
            draining.cancel()
            self._service.kill()
        await asyncio.gather(draining, return_exceptions=True)


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens at an address. Raises UsageError."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"expected a free address of this machine, got {host} port {port} ({error}); choose "
            "another --port or --host"
        ) from error
    # Connections have what their listener has. Without it, an answer's body waits until the client
    # has acknowledged the head: 40 ms on a connection that is kept.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _log_as_json(level: int) -> None:
    """A JSON object a line on standard error, of this service and of uvicorn."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("percoedge").setLevel(level)
