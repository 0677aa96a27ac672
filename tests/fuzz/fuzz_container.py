"""Fuzz everything that hostile bytes reach before the float graphs; see README.md beside this file.

    python tests/fuzz/fuzz_container.py CORPUS... [-runs=N and other options of libFuzzer]
    python tests/fuzz/fuzz_container.py --mutants N [--seed S]

The first is guided by coverage and needs atheris. The second, for machines without it, mutates the
shipped corpus blindly; it stops at the first input that breaks a rule and writes it to
``crash-<SHA-1>`` as libFuzzer does. Give a folder for new inputs as the first CORPUS.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import sys
import time
from pathlib import Path

__all__ = ["main"]

HERE = Path(__file__).parent

# The target itself checks the memory and the processor time of each input. libFuzzer's limit of the
# whole process (2 GiB) is left to what its instrumentation leaks, see README.md; its clock, which
# goes on while the process is paused, is for loops without end.
LIMITS = ("-malloc_limit_mb=256", "-max_len=2048", "-timeout=600")


def guided(arguments: list[str]) -> None:
    """Run libFuzzer with its own arguments; it ends the process."""
    import atheris  # type: ignore[import-untyped, import-not-found, unused-ignore]

    with atheris.instrument_imports(include=["percoedge"]):
        from fuzz_checks import Target

    dictionary = f"-dict={HERE / 'container.dict'}"
    atheris.Setup([sys.argv[0], dictionary, *LIMITS, *arguments], Target().check)
    atheris.Fuzz()


def blind(count: int, seed: int) -> None:
    """Run so many mutations of the corpus."""
    from fuzz_checks import Target
    from fuzz_inputs import mutants

    target = Target()
    streams = [path.read_bytes() for path in sorted((HERE / "corpus").glob("*.pco"))]
    began, slowest = time.process_time(), 0.0
    for data in itertools.islice(mutants(streams, seed), count):
        started = time.process_time()
        try:
            target.check(data)
        except BaseException:
            path = Path(f"crash-{hashlib.sha1(data).hexdigest()}")
            path.write_bytes(data)
            print(f"{path}: {data.hex()}", file=sys.stderr)
            raise
        slowest = max(slowest, time.process_time() - started)
    seconds = time.process_time() - began
    print(
        f"{count} inputs in {seconds:.0f} s of the processor, the slowest {slowest:.3f} s; "
        f"{target.decoded} decoded to tokens in some framing"
    )


def main(arguments: list[str]) -> None:
    """Choose between the two ways."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--mutants", type=int, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    known, others = parser.parse_known_args(arguments)
    if known.mutants is None:
        guided(others)
    else:
        blind(known.mutants, known.seed)


if __name__ == "__main__":
    main(sys.argv[1:])
