"""Commands on a folder: several files at a time, resumable, past whatever is broken."""
