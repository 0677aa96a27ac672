"""Time and peak memory of an export at full size, with random weights.

    python -m benchmarks.export DIR [--save NAME] [further arguments of percoedge.export.bundle]

The bundle is written to DIR and kept. Processor time is measured besides wall time, for the latter
depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.environment import report


def main() -> None:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="directory of the bundle")
    parser.add_argument("--config", default="sd3-medium")
    parser.add_argument("--save", help="also write results/NAME.json")
    args, further = parser.parse_known_args()
    arguments = [args.config, "--random", "--skip-parity", *further]
    command = [sys.executable, "-m", "percoedge.export.bundle", *arguments, "--out", str(args.out)]
    began = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed with status {status}")
    sizes = {path.name: path.stat().st_size for path in sorted(args.out.iterdir())}
    report(
        args.save or "export",
        {
            "export": " ".join(arguments),
            "wall_s": round(time.perf_counter() - began),
            "processor_s": round(usage.ru_utime + usage.ru_stime),
            "peak_memory_gib": round(usage.ru_maxrss / 2**20, 2),
            "size_gib": round(sum(sizes.values()) / 2**30, 2),
            "largest_files_mib": {
                name: round(size / 2**20, 1) for name, size in sizes.items() if size > 1 << 20
            },
        },
        save=args.save is not None,
    )


if __name__ == "__main__":
    main()
