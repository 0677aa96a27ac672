"""The tree of commands and their arguments.

A command is a function of its name, in a module of its name (that of the group, for `fleet` and
`bundle`) in percoedge.runtime.cli.commands, which is imported when the command runs. Options stand
here, and not in these modules, so that --help and mistakes import none of what they need.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from percoedge import __version__
from percoedge.errors import UsageError
from percoedge.runtime.cli.arguments import (
    Parser,
    add_bundle,
    add_fleet_options,
    add_graphs,
    add_service_options,
    add_stream_options,
    engine_options,
    positive,
    report_options,
    size_options,
)

__all__ = ["make_parser", "parse"]

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


def parse(arguments: Sequence[str] | None) -> argparse.Namespace | None:
    """Parse the arguments given, None for those of the process.

    Returns the options of one command, among them ``command``, its module and function, and
    ``streams``, whether it takes one input and one output, where "-" is a standard stream. Returns
    None when all is done already (``--help``, ``--version``). Raises UsageError.
    """
    try:
        options, others = make_parser().parse_known_args(arguments)
    except SystemExit:  # of --help and --version; wrong arguments raise UsageError
        return None
    if options.streams:
        _settle_output(options, others)
    if others:
        options.parser.refuse(others)
    return options


def _settle_output(options: argparse.Namespace, others: list[str]) -> None:
    """Put the output into ``options.output``, whichever way it was named. Raises UsageError."""
    # argparse takes a second argument that stands behind options for one too many
    if options.second is None and len(others) == 1 and (others == ["-"] or others[0][:1] != "-"):
        options.second = others.pop()
    if options.second is None:
        return
    if options.output is not None:
        raise UsageError(
            f"expected one output, got {options.second!r} and -o {options.output!r}; leave one out"
        )
    options.output = options.second


class _Commands:
    """Adds commands to a parser; each takes the options of reports, too.

    ``module``: that of all commands; None for one that is called as the command is.
    """

    def __init__(self, parser: Parser, metavar: str, module: str | None = None) -> None:
        self._into = parser.add_subparsers(metavar=metavar, required=True)
        self._module = module
        self._report = report_options()

    def add(
        self,
        name: str,
        summary: str,
        *parents: Parser,
        function: str | None = None,
        streams: bool = False,
    ) -> Parser:
        """Add a command; ``function``: its name, if not the command's. ``streams``: see `parse`."""
        made = self._into.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            parents=[*parents, self._report],
            allow_abbrev=False,
        )
        command = (self._module or name, function or name)
        made.set_defaults(command=command, streams=streams, parser=made)
        return made

    def group(self, name: str, summary: str) -> _Commands:
        """Add a command that has commands of its own."""
        made = self._into.add_parser(name, help=summary, allow_abbrev=False)
        return _Commands(made, "ACTION", name)


def make_parser() -> Parser:
    """The parser of the whole command line."""
    parser = Parser(
        prog="percoedge",
        description="Photos in a few hundred bytes: a generative image codec for edge devices.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"percoedge {__version__}")
    commands = _Commands(parser, "COMMAND")
    _add_encode(commands)
    _add_decode(commands)
    _add_info(commands)
    _add_convert(commands)
    _add_demo(commands)
    _add_build(commands)
    _add_compare(commands)
    _add_bench(commands)
    _add_serve(commands)
    _add_fleet_commands(
        commands.group("fleet", "decode or encode millions of files on Ray: needs percoedge[fleet]")
    )
    commands.add("doctor", "check this installation and say what works here")
    _add_bundle_commands(commands.group("bundle", "verify or zip a bundle of models"))
    return parser


def _add_encode(commands: _Commands) -> None:
    encode = commands.add(
        *("encode", "encode a photo to a .pco stream"),
        *(engine_options(), size_options()),
        streams=True,
    )
    encode.add_argument(
        "input", metavar="IN", help="JPEG, PNG, WebP or AVIF; - for stdin; or a folder of them"
    )
    _add_output(
        encode,
        "default: IN with the suffix .pco; - for stdout; of a folder, the folder of its streams",
        *("-o", "--output", "--out"),
    )
    _add_folder(encode)
    encode.add_argument("--caption", default="", metavar="TEXT", help="stored, up to 1 KiB")
    _add_rate(encode)
    encode.add_argument("--bare", action="store_true", help="no magic, fingerprint and checksum")


def _add_folder(parser: Parser) -> None:
    """How a folder is gone through."""
    add = parser.add_argument
    add("--jobs", type=positive, metavar="N", help="files of a folder at a time (default: few)")
    add(
        "--force",
        action="store_true",
        help="make outputs of a folder again that are there, and replace other files",
    )


def _add_rate(parser: Parser) -> None:
    """How an image becomes a stream."""
    parser.add_argument(
        "--schedule",
        metavar="NAME",
        help="uniform, checkerboard, quincunx, qlds-4, qlds-8, qlds-12 or var (default: bundle's)",
    )
    rate = parser.add_mutually_exclusive_group()
    rate.add_argument("--passes", type=positive, metavar="N", help="send the first N passes only")
    rate.add_argument(
        "--bytes", type=positive, metavar="N", help="send the most passes that fit into N bytes"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="of the decoder's noise, sent along")


def _add_decode(commands: _Commands) -> None:
    decode = commands.add(
        *("decode", "decode a .pco stream to an image"),
        *(engine_options(), size_options()),
        streams=True,
    )
    decode.add_argument("input", metavar="IN", help="a .pco file; - for stdin; or a folder of them")
    _add_output(
        decode,
        "a .png, .jpg or .webp file (default: IN with the suffix .png; - for stdout); of a folder, "
        "the folder of its images",
        *("-o", "--output", "--out"),
    )
    _add_folder(decode)
    decode.add_argument("--format", metavar="NAME", help="png, jpeg or webp, whatever OUT's suffix")
    _add_decoding(decode)
    add_stream_options(decode, "decode what is left of")


def _add_decoding(parser: Parser) -> None:
    """How a stream becomes an image."""
    add = parser.add_argument
    add("--steps", type=positive, metavar="N", help="more are finer and slower (1..255)")
    add("--guidance", type=float, metavar="X", help="0..16; 1 is none")
    add("--seed", type=int, metavar="N", help="of the noise, in place of the sent")


def _add_output(parser: Parser, help: str, *names: str) -> None:
    """The output of a command, which may be named behind the input or with an option."""
    parser.add_argument("second", metavar="OUT", nargs="?", help=help)
    parser.add_argument(*names, dest="output", metavar="OUT", help="the same")


def _add_info(commands: _Commands) -> None:
    info = commands.add("info", "show the settings of a stream and where each byte goes")
    info.add_argument("input", metavar="FILE", help="a .pco file; - for stdin")
    info.add_argument("--bundle", help="that made it, if it is not a shipped one")
    add_stream_options(info, "accept")


def _add_convert(commands: _Commands) -> None:
    convert = commands.add(
        *("convert", "convert .cod (CoD-Lite) or .pkl (PerCo) to .pco, or back"),
        size_options(),
        streams=True,
    )
    convert.add_argument("input", metavar="IN", help="a .cod, .pkl or .pco file")
    _add_output(convert, "default: IN with .pco, or .cod; .pkl for PerCo (SD)", "-o", "--output")
    convert.add_argument("--bundle", required=True, help="of the stream's rate")
    convert.add_argument("--bare", action="store_true", help="the .pco stream is a bare one")


def _add_demo(commands: _Commands) -> None:
    demo = commands.add(
        *("demo", "encode and decode a photo and compare the two"),
        *(engine_options(), size_options()),
    )
    demo.add_argument("photo", nargs="?", metavar="PHOTO", help="default: one that is shipped")
    demo.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        help="original and decoded side by side (default: percoedge-demo.png)",
    )
    demo.add_argument("--steps", type=positive, metavar="N", help="of the decoder (1..255)")


def _add_build(commands: _Commands) -> None:
    build = commands.add("build", "build a bundle's graphs into TensorRT engine files, kept here")
    add_bundle(build)
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
        help="images up to the largest width and height of these, fastest at the first "
        "(default: every size, fastest at 512x512)",
    )
    build.add_argument(
        "--batch",
        metavar="N,...",
        help="images at a time: up to the largest, fastest at the first (default: 1,8, and 1 where "
        "the GPU shares its memory with the host)",
    )
    add_graphs(build)
    build.add_argument(
        "--cache",
        metavar="DIR",
        help="folder of engine files (default: $PERCOEDGE_CACHE, else the user's cache folder)",
    )
    build.add_argument(
        "--each-batch",
        action="store_true",
        help="fast at the largest of --batch, too: longer builds, larger engine files",
    )
    build.add_argument(
        "--workspace", type=positive, metavar="MIB", help="most memory for one layer"
    )
    build.add_argument(
        "--level",
        type=int,
        choices=range(6),
        help="optimisation of the library: 5 searches longest (default: the library's)",
    )


def _add_compare(commands: _Commands) -> None:
    compare = commands.add("compare", "run a bundle's graphs on two backends and compare")
    add_bundle(compare)
    for side in ("a", "b"):
        compare.add_argument(
            f"--{side}",
            required=True,
            metavar="BACKEND",
            help="a name that doctor lists; one of ONNX Runtime may end in :fp32, :fp16 or :int8",
        )
    add_graphs(compare)


def _add_bench(commands: _Commands) -> None:
    bench = commands.add("bench", "measure decoding: latency, stages, memory, energy, ceilings")
    for name, default, metavar in (
        ("bundle", "tiny", "NAME"),
        ("backend", "auto", "NAME"),
        ("size", "512x512", "WxH"),
        ("streams", "1", "N"),
        ("batch", "1", "N"),
        ("steps", None, "N"),
        ("threads", None, "N"),
    ):
        text = {"steps": "the bundle's", "threads": "the backend's"}.get(name, default)
        bench.add_argument(
            f"--{name}",
            dest="lanes" if name == "streams" else name,  # "streams" is taken: see parse
            default=default,
            metavar=f"{metavar},...",
            help=f"several with commas between them (default: {text})",
        )
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
        "--iterations", type=positive, default=10, metavar="N", help="least number (default: 10)"
    )
    bench.add_argument(
        "--layers",
        action="store_true",
        help="each graph by itself too: throughput, compute, copies, and time by layer",
    )
    bench.add_argument(
        "--format", default="table", choices=("table", "markdown", "csv"), help="default: table"
    )
    bench.add_argument("--report", metavar="FILE", help=argparse.SUPPRESS)  # benchmarks.report
    bench.add_argument(
        "--export-times", metavar="FILE", help="write the times of every iteration as JSON"
    )


def _add_serve(commands: _Commands) -> None:
    serve = commands.add("serve", "answer HTTP requests, and serve a page to try the codec")
    serve.epilog = (
        "Needs: pip install 'percoedge[serve]'. The environment variable PERCOEDGE_TOKEN holds a "
        "bearer token that requests must carry."
    )
    add_service_options(serve)


def _add_fleet_commands(actions: _Commands) -> None:
    decode = actions.add(
        *("decode", "decode every .pco file of a folder or address"),
        *(engine_options(), size_options()),
    )
    add_fleet_options(decode, "folder or address (s3://, gs://, file://) of .pco files")
    decode.add_argument("--format", metavar="NAME", help="png, jpeg or webp (default: png)")
    _add_decoding(decode)
    encode = actions.add(
        *("encode", "encode every image of a folder or address"),
        *(engine_options(), size_options()),
    )
    add_fleet_options(encode, "folder or address (s3://, gs://, file://) of images")
    _add_rate(encode)


def _add_bundle_commands(actions: _Commands) -> None:
    verify = actions.add("verify", "check every file of a bundle against its hash")
    add_bundle(verify)
    pack = actions.add("zip", "pack a bundle into one .zip", function="pack")
    add_bundle(pack)
    pack.add_argument(
        "-o", "--output", metavar="OUT", help="default: NAME.zip in the working directory"
    )
