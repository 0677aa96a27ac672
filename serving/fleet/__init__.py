"""Fleets on Ray: folders of millions of files, and replicas of the service.

``percoedge fleet`` runs ``jobs`` on Ray Data; ``serve run percoedge.serving.fleet:app`` runs the
application of ``percoedge serve`` on Ray Serve. Ray spreads, retries and scales; what is here
knows files, and nothing of the network.
"""

from __future__ import annotations

from typing import Any

__all__ = ["app"]


def app(arguments: dict[str, Any]) -> Any:
    """The application for ``serve run percoedge.serving.fleet:app``.

    ``arguments``: fields of ``ServiceSettings`` by their names, as ``serve.yaml`` and the command
    line give them. Raises UsageError for an unknown one, or one that is out of its range.
    """
    from percoedge.serving.fleet.replicas import application

    return application(arguments)
