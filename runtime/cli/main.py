"""The command line: arguments in, exit code out, and never a traceback.

Only argparse is loaded here; a command's own modules are imported when it runs, so that
``percoedge --version`` and mistyped commands answer at once.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import NoReturn

from percoedge import __version__
from percoedge.errors import EngineError, PercoedgeError, UsageError
from percoedge.runtime.cli.console import Console, discard_stdout, flush_stdout, say_error

__all__ = ["main"]

_INTERRUPTED = 130  # what shells say of a program that Ctrl-C ended

_EPILOG = """\
exit codes:
  0  ok
  2  usage: wrong arguments
  3  bad input: not an image or stream, damaged, missing, or of another bundle
  4  engine: a bundle or backend is missing or broken, or memory is short
  5  output: the result cannot be written
  1  a bug in percoedge; 130 interrupted

Failures print one line on stderr and leave no partial file. PERCOEDGE_DEBUG=1 adds a traceback.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, by default that of the process, and return its exit code."""
    code = 0
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.simplefilter("ignore")  # of libraries: they are no lines of ours
            code = _run(arguments)
            flush_stdout()
    except KeyboardInterrupt:
        code = _fail(_INTERRUPTED, "interrupted")
    except MemoryError:
        code = _fail(
            EngineError.exit_code,
            "expected more memory than there is; use --low-memory, a smaller picture or fewer "
            "programs at a time",
        )
    except PercoedgeError as error:
        code = _fail(error.exit_code, str(error))
    except ImportError as error:
        code = _fail(
            EngineError.exit_code,
            f"a library cannot be loaded ({error}); see percoedge doctor, or install percoedge "
            "again",
        )
    except Exception as error:
        code = _fail(
            1,
            f"unexpected {type(error).__name__}: {error}; this is a bug: please report it, with "
            "the output of the same command under PERCOEDGE_DEBUG=1",
        )
    discard_stdout()
    return code


def _run(arguments: Sequence[str] | None) -> int:
    try:
        options = _parser().parse_args(arguments)
    except SystemExit:  # --help and --version; wrong arguments raise UsageError
        return 0
    run: Callable[[argparse.Namespace, Console], int] = options.run
    output = getattr(options, "output", None)
    data_on_stdout = output == "-" or (
        output is None and getattr(options, "streams", False) and options.input == "-"
    )
    return run(options, Console(options.json, options.quiet, data_on_stdout))


def _fail(code: int, message: str) -> int:
    """Say what went wrong; called while the exception is handled."""
    if os.environ.get("PERCOEDGE_DEBUG", "0") not in ("", "0"):
        traceback.print_exc()
    say_error(message)
    return code


class _Parser(argparse.ArgumentParser):
    """Tells wrong arguments as every other error: in one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see '{self.prog} --help'")


def _encode(options: argparse.Namespace, console: Console) -> int:
    from percoedge.runtime.cli import commands

    return commands.encode(options, console)


def _decode(options: argparse.Namespace, console: Console) -> int:
    if os.path.isdir(options.input):
        from percoedge.runtime.cli import folder

        return folder.decode_folder(options, console)
    from percoedge.runtime.cli import commands

    return commands.decode(options, console)


def _info(options: argparse.Namespace, console: Console) -> int:
    from percoedge.runtime.cli import commands

    return commands.info(options, console)


def _demo(options: argparse.Namespace, console: Console) -> int:
    from percoedge.runtime.cli import demo

    return demo.demo(options, console)


def _doctor(options: argparse.Namespace, console: Console) -> int:
    from percoedge.runtime.cli import doctor

    return doctor.doctor(options, console)


def _build(options: argparse.Namespace, console: Console) -> int:
    from percoedge.runtime.cli import build as build_command

    return build_command.build(options, console)


def _compare(options: argparse.Namespace, console: Console) -> int:
    from percoedge.runtime.cli import compare

    return compare.compare(options, console)


def _bench(options: argparse.Namespace, console: Console) -> int:
    from percoedge.runtime.cli import bench as command

    return command.bench(options, console)


def _bundle_verify(options: argparse.Namespace, console: Console) -> int:
    from percoedge.runtime.cli import commands

    return commands.bundle_verify(options, console)


def _bundle_zip(options: argparse.Namespace, console: Console) -> int:
    from percoedge.runtime.cli import commands

    return commands.bundle_zip(options, console)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text}")
    return value


_positive.__name__ = "number"  # argparse says "invalid number value"


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="percoedge",
        description="Photos in a few hundred bytes: a generative image codec for edge devices.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"percoedge {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    spoken = _Parser(add_help=False)
    spoken.add_argument("--json", action="store_true", help="print the result as one JSON object")
    spoken.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")

    engines = _Parser(add_help=False)
    engines.add_argument(
        "--bundle", default="tiny", help="shipped name, directory or .zip (default: tiny)"
    )
    engines.add_argument(
        "--backend", default="auto", help="a name that doctor lists (default: auto)"
    )
    engines.add_argument("--threads", type=_positive, metavar="N", help="CPU threads per engine")
    engines.add_argument(
        "--low-memory", action="store_true", help="keep one engine in memory at a time"
    )

    def command(
        name: str,
        run: Callable[[argparse.Namespace, Console], int],
        summary: str,
        *parents: _Parser,
        into: argparse._SubParsersAction[_Parser] = commands,
        streams: bool = False,
    ) -> _Parser:
        made = into.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            parents=[*parents, spoken],
            allow_abbrev=False,
        )
        made.set_defaults(run=run, streams=streams)
        return made

    encode = command("encode", _encode, "encode a photo to a .pco stream", engines, streams=True)
    encode.add_argument("input", metavar="IN", help="JPEG, PNG, WebP or AVIF; - for stdin")
    encode.add_argument(
        "-o", "--output", metavar="OUT", help="default: IN with the suffix .pco; - for stdout"
    )
    encode.add_argument("--caption", default="", metavar="TEXT", help="stored, up to 1 KiB")
    encode.add_argument(
        "--schedule",
        metavar="NAME",
        help="uniform, checkerboard, quincunx, qlds-4, qlds-8, qlds-12 or var (default: bundle's)",
    )
    encode.add_argument(
        "--passes", type=_positive, metavar="N", help="send the first N passes only"
    )
    encode.add_argument("--seed", type=int, metavar="N", help="of the decoder's noise, sent along")
    encode.add_argument("--bare", action="store_true", help="no magic, fingerprint and checksum")

    decode = command("decode", _decode, "decode a .pco stream to an image", engines, streams=True)
    decode.add_argument("input", metavar="IN", help="a .pco file; - for stdin; or a folder of them")
    decode.add_argument(
        *("-o", "--output", "--out"),
        metavar="OUT",
        help=".png, .jpg or .webp; default: IN with the suffix .png; - for stdout; or a folder",
    )
    decode.add_argument(
        "--jobs", type=_positive, metavar="N", help="images of a folder at a time (default: few)"
    )
    decode.add_argument(
        "--force", action="store_true", help="decode those of a folder again that are there"
    )
    decode.add_argument("--format", metavar="NAME", help="png, jpeg or webp, whatever OUT's suffix")
    decode.add_argument(
        "--steps", type=_positive, metavar="N", help="more are finer and slower (1..255)"
    )
    decode.add_argument("--guidance", type=float, metavar="X", help="0..16; 1 is none")
    decode.add_argument("--seed", type=int, metavar="N", help="of the noise, in place of the sent")
    decode.add_argument("--bare", action="store_true", help="the stream was encoded with --bare")
    decode.add_argument(
        "--cut", action="store_true", help="decode what is left of a cut or damaged stream"
    )
    decode.add_argument(
        "--max-pixels", type=_positive, metavar="N", help="refuse larger images (default: 2^24)"
    )

    info = command("info", _info, "tell what a stream says and where each byte goes")
    info.add_argument("input", metavar="FILE", help="a .pco file; - for stdin")
    info.add_argument("--bundle", help="that made it, if it is not a shipped one")
    info.add_argument("--bare", action="store_true", help="the stream was encoded with --bare")
    info.add_argument("--cut", action="store_true", help="accept a cut or damaged stream")

    demo = command("demo", _demo, "encode and decode a photo and compare the two", engines)
    demo.add_argument("photo", nargs="?", metavar="PHOTO", help="default: one that is shipped")
    demo.add_argument(
        "-o",
        "--output",
        default="percoedge-demo.png",
        metavar="OUT",
        help="original and decoded side by side (default: percoedge-demo.png)",
    )
    demo.add_argument("--steps", type=_positive, metavar="N", help="of the decoder (1..255)")

    build = command("build", _build, "build a bundle's graphs into plans of TensorRT, kept here")
    build.add_argument("bundle", metavar="BUNDLE", help="shipped name, directory or .zip")
    build.add_argument(
        "--backend",
        required=True,
        choices=("tensorrt", "tensorrt-rtx"),
        help="tensorrt-rtx needs no GPU to build; tensorrt builds for the GPU at hand",
    )
    build.add_argument(
        "--sm",
        metavar="SM,...",
        help="compute capabilities of GPUs, 89 for 8.9 (default: all that tensorrt-rtx knows)",
    )
    build.add_argument(
        "--sizes",
        metavar="WxH,...",
        help="pictures up to the largest width and height of these, fastest at the first "
        "(default: every size, fastest at 512x512)",
    )
    build.add_argument(
        "--batch",
        metavar="N,...",
        help="pictures at a time: up to the largest, fastest at the first (default: 1)",
    )
    build.add_argument(
        "--graph", metavar="KIND", action="append", help="only this one (may be repeated)"
    )
    build.add_argument(
        "--cache",
        metavar="DIR",
        help="where plans are kept (default: $PERCOEDGE_CACHE, else the user's cache folder)",
    )
    build.add_argument(
        "--workspace", type=_positive, metavar="MIB", help="most memory for one layer"
    )

    compare = command("compare", _compare, "run a bundle's graphs on two backends and compare")
    compare.add_argument("bundle", metavar="BUNDLE", help="shipped name, directory or .zip")
    for side in ("a", "b"):
        compare.add_argument(
            f"--{side}",
            required=True,
            metavar="BACKEND",
            help="a name that doctor lists; one of ONNX Runtime may end in :fp32, :fp16 or :int8",
        )
    compare.add_argument(
        "--graph", metavar="KIND", action="append", help="only this one (may be repeated)"
    )

    bench = command("bench", _bench, "measure decoding: latency, stages, memory, energy, ceilings")
    lists = "several with commas between them"
    bench.add_argument(
        "--bundle", default="tiny", metavar="NAME,...", help=f"{lists} (default: tiny)"
    )
    bench.add_argument(
        "--backend", default="auto", metavar="NAME,...", help=f"{lists} (default: auto)"
    )
    bench.add_argument(
        "--size", default="512x512", metavar="WxH,...", help=f"{lists} (default: 512x512)"
    )
    bench.add_argument("--batch", default="1", metavar="N,...", help=f"{lists} (default: 1)")
    bench.add_argument("--steps", metavar="N,...", help=f"{lists} (default: the bundle's)")
    bench.add_argument("--threads", metavar="N,...", help="CPU threads per engine, as above")
    bench.add_argument(
        "--low-memory", action="store_true", help="keep one engine in memory at a time"
    )
    bench.add_argument(
        "--warmup", type=float, default=0.2, metavar="S", help="seconds before (default: 0.2)"
    )
    bench.add_argument(
        "--seconds", type=float, default=3.0, metavar="S", help="least time of a case (default: 3)"
    )
    bench.add_argument(
        "--iterations", type=_positive, default=10, metavar="N", help="least number (default: 10)"
    )
    bench.add_argument(
        "--format", default="table", choices=("table", "markdown", "csv"), help="default: table"
    )
    bench.add_argument("--report", metavar="FILE", help=argparse.SUPPRESS)  # now benchmarks.report
    bench.add_argument(
        "--export-times", metavar="FILE", help="write the times of every iteration as JSON"
    )

    command("doctor", _doctor, "check this installation and say what works here")

    bundle = commands.add_parser("bundle", help="check or pack a bundle of models")
    actions = bundle.add_subparsers(metavar="ACTION", required=True)
    verify = command(
        "verify", _bundle_verify, "check every file of a bundle against its hash", into=actions
    )
    verify.add_argument("bundle", metavar="BUNDLE", help="shipped name, directory or .zip")
    pack = command("zip", _bundle_zip, "pack a bundle into one .zip", into=actions)
    pack.add_argument("bundle", metavar="BUNDLE", help="shipped name, directory or .zip")
    pack.add_argument(
        "-o", "--output", metavar="OUT", help="default: NAME.zip in the working directory"
    )
    return parser
