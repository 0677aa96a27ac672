"""The command line: ``main`` is its entry point, ``commands`` has a module for each command."""
