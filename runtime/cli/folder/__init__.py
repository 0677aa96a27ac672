"""``percoedge decode`` of a folder: several at a time, resumable, past whatever is broken."""
