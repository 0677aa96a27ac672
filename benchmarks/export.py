"""Time and peak memory of an export at full size, with random weights.

    python -m benchmarks.export DIR [--save NAME] [further arguments of percoedge.export.bundle]

The bundle is written to DIR and kept. Processor time is measured besides wall time, for the latter
depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.environment import report
from benchmarks.timing import process_cost


def main() -> None:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="directory of the bundle")
    parser.add_argument("--config", default="sd3-medium")
    parser.add_argument("--save", help="also write results/NAME.json")
    args, further = parser.parse_known_args()
    arguments = [args.config, "--random", "--skip-parity", *further]
    command = [sys.executable, "-m", "percoedge.export.bundle", *arguments, "--out", str(args.out)]
    cost = process_cost(command)
    sizes = {path.name: path.stat().st_size for path in sorted(args.out.iterdir())}
    report(
        args.save or "export",
        {
            "export": " ".join(arguments),
            "wall_s": round(cost.wall_s),
            "processor_s": round(cost.processor_s),
            "peak_memory_gib": round(cost.peak_mib / 1024, 2),
            "size_gib": round(sum(sizes.values()) / 2**30, 2),
            "largest_files_mib": {
                name: round(size / 2**20, 1) for name, size in sizes.items() if size > 1 << 20
            },
        },
        save=args.save is not None,
    )


if __name__ == "__main__":
    main()
