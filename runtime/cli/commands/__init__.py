"""One module for each command: a function that takes the parsed options and a console.

It returns the exit code and raises errors of percoedge.errors; what it needs is imported when the
command runs.
"""
