"""Draw what was measured elsewhere.

    percoedge bench --json > bench.json                        (on the device)
    python -m benchmarks.report bench.json -o bench.html       (anywhere, with the extra [bench])

The page needs no other file and no network. ``--png FOLDER`` writes the charts as pictures.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.report.charts import case_charts, overall_charts
from benchmarks.report.page import html_page
from benchmarks.report.read import Measurement, read_measurement
from percoedge.errors import PercoedgeError

_DPI = 110


def write_pictures(measurement: Measurement, folder: Path) -> list[Path]:
    """Write every chart as a PNG: ``stages.png``, ``case-1-roofline.png`` and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    charts = overall_charts(measurement)
    for number, _, result in measurement.measured:
        charts |= {f"case-{number}-{name}": chart for name, chart in case_charts(result).items()}
    written = []
    for name, chart in charts.items():
        written.append(folder / f"{name}.png")
        chart.savefig(written[-1], dpi=_DPI)
    return written


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("measurement", type=Path, help="what percoedge bench --json printed")
    parser.add_argument("-o", "--output", type=Path, help="page of HTML to write")
    parser.add_argument("--png", type=Path, metavar="FOLDER", help="folder for charts as PNG")
    args = parser.parse_args()
    if args.output is None and args.png is None:
        parser.error("expected -o or --png, got neither")
    try:
        measurement = read_measurement(args.measurement)
        if args.output is not None:
            args.output.write_text(html_page(measurement), encoding="utf-8")
        if args.png is not None:
            write_pictures(measurement, args.png)
    except PercoedgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
