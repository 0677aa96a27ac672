"""The service and fleets measured: ``python -m benchmarks.serving``."""
