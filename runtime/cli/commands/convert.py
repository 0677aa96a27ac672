"""The command ``percoedge convert``: streams of other programs to .pco and back."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from percoedge.bitstream.container import DEFAULT_MAX_PIXELS, MAX_STREAM_BYTES
from percoedge.engines.bundle import Bundle
from percoedge.engines.selection import select
from percoedge.errors import UsageError
from percoedge.runtime.cli.codec_options import naming_stream
from percoedge.runtime.cli.console import Console
from percoedge.runtime.cli.outputs import output_name, shown_name
from percoedge.runtime.files import STANDARD_STREAM, atomic_write, read_bytes

__all__ = ["convert"]


def convert(options: Namespace, console: Console) -> int:
    """Convert one stream, by the suffix of its name; returns the exit code."""
    from percoedge.runtime.cli.conversion import (
        cod_from_pco,
        pco_from_cod,
        pco_from_perco,
        perco_from_pco,
    )
    from percoedge.runtime.engine_set import EngineSet

    readers = {".cod": pco_from_cod, ".pkl": pco_from_perco}
    writers = {".cod": cod_from_pco, ".pkl": perco_from_pco}
    suffix = Path(options.input).suffix.lower()
    if suffix not in (*readers, ".pco"):
        raise UsageError(
            f"expected a file that ends in {', '.join(readers)} or .pco, got {options.input!r}"
        )
    output = output_name(options.output, options.input, ".pco" if suffix in readers else ".cod")
    wanted = Path(output).suffix.lower()
    fitting = (".pco",) if suffix in readers else tuple(writers)
    if output not in (STANDARD_STREAM, options.input) and wanted not in fitting:
        raise UsageError(
            f"expected an output that ends in {' or '.join(fitting)} for {options.input!r}, got "
            f"{output!r}; rename it"
        )
    function = readers.get(suffix) or writers.get(wanted, cod_from_pco)
    data = read_bytes(options.input, limit_bytes=MAX_STREAM_BYTES)
    bundle = Bundle.open(options.bundle)
    engines = EngineSet(bundle, select("onnxruntime-cpu"), low_memory=False)
    with naming_stream(options.input):
        max_pixels = options.max_pixels or DEFAULT_MAX_PIXELS
        converted = function(engines, data, bare=options.bare, max_pixels=max_pixels)
    atomic_write(output, converted)
    record = {
        "command": "convert",
        "input": options.input,
        "output": output,
        "bundle": bundle.name,
        "bytes_before": len(data),
        "bytes": len(converted),
    }
    line = f"{shown_name(output, 'standard output')}: {len(converted)} bytes, from {len(data)}"
    console.report(record, [line])
    return 0
