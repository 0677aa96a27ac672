"""Replicas of the service on Ray Serve: the application of ``percoedge serve``, many times."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from fastapi import FastAPI
from ray import serve

from percoedge.errors import UsageError
from percoedge.serving.app import create_app
from percoedge.serving.service import Service
from percoedge.serving.settings import ServiceSettings

__all__ = ["application"]

_WAIT_SECONDS = 0.05


def application(arguments: Mapping[str, Any]) -> Any:
    """The application of Ray Serve for these settings.

    A replica listens and computes nothing; its lane is a process of its own, as in ``percoedge
    serve``, because Ray answers 500 for what a replica that dies was doing, and a lane's tasks are
    done again. It counts as ready, and gets requests, when its codecs have warmed up. Options of
    the deployment (replicas, GPUs) are those of ``serve.yaml``.
    Raises UsageError for unknown settings, or ones out of their range.
    """
    settings = _settings(arguments)

    def build() -> FastAPI:
        return create_app(settings)

    replica = serve.ingress(build)(_Replica)
    deployment = serve.deployment(
        replica,
        name="percoedge",
        max_ongoing_requests=settings.max_queue,
        max_queued_requests=settings.max_queue,
        autoscaling_config={"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 2},
        graceful_shutdown_timeout_s=settings.drain_s,
    )
    return deployment.bind()


class _Replica:
    """What Ray Serve asks of a replica beside requests."""

    async def check_health(self) -> None:
        """Return once it has warmed up; raises what stops it from that, or a lane that ended."""
        service: Service = self.app.state.service  # type: ignore[attr-defined]
        while not service.is_ready:
            if service.failure is not None:
                raise service.failure
            await asyncio.sleep(_WAIT_SECONDS)


def _settings(arguments: Mapping[str, Any]) -> ServiceSettings:
    types = {field.name: field.type for field in fields(ServiceSettings)}
    chosen: dict[str, Any] = {"lanes": 1, "in_process": False}
    for name, value in arguments.items():
        if name not in types:
            raise UsageError(f"expected one of the settings {', '.join(types)}, got {name!r}")
        chosen[name] = _converted(name, value, str(types[name]))
    return ServiceSettings(**chosen)


def _converted(name: str, value: Any, kind: str) -> Any:
    """A value as ``serve run name=value`` gives it, which is text, or as YAML does."""
    try:
        if kind.startswith("tuple"):
            return (value,) if isinstance(value, str) else tuple(value)
        if isinstance(value, str) and kind.startswith("int"):
            return int(value)
        if isinstance(value, str) and kind.startswith("float"):
            return float(value)
        if isinstance(value, str) and kind.startswith("bool"):
            return {"true": True, "false": False}[value.lower()]
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"expected {name} to be of type {kind}, got {value!r}") from error
    return value
