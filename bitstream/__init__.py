"""Bytes to integers and back: container, range coder, captions and the tables of the passes.

Nothing here knows a model. The format is specified in FORMAT.md; import the modules by name.
"""
