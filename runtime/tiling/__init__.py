"""Images larger than one run of a graph: cutting into tiles, and putting together again."""
