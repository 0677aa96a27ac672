"""percoedge as a service: one ASGI application, for one process or for a fleet.

``percoedge serve`` runs it with uvicorn on this machine; ``percoedge.serving.fleet`` runs the same
application on Ray Serve, and folders of files on Ray Data.
"""
