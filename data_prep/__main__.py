"""The command line: `python -m data_prep --help`."""

import argparse
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError

from data_prep import pack as packing
from data_prep import source, split, upload
from data_prep.folder import DataError, dataset_path, summarize
from data_prep.weights import SOURCES, save_weights
from infra.command import in_one_line
from infra.outputs import NotDeployedError, stack_output

DESCRIPTION = """\
Bins from the public bucket into ours, ready to train on.

The usual way, in one go or step by step (every step can be repeated, and goes on
where it was stopped):

  python -m data_prep all --list file_list.json
  python -m data_prep download --list file_list.json   # or: --counts 1-5 --limit 2000
  python -m data_prep split
  python -m data_prep pack
  python -m data_prep upload
  python -m data_prep weights --arch resnet50          # once: the pretrained backbone

Without any photos at hand:

  python -m data_prep synthesize --out data --photos 600 --seed 0
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand; returns the exit status. Errors of the user take one line."""
    options = build_parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], None] = options.run
    try:
        run(options)
    except (DataError, NotDeployedError, Boto3Error, BotoCoreError, ClientError, OSError) as error:
        print(f"error: {in_one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr)
        return 130
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    for name, (run, text, settings) in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=text,
            description=text,
        )
        command.set_defaults(run=run)
        for add in settings:
            add(command)
    return parser


def _folder_setting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", type=Path, default=Path("data"), help="working folder (%(default)s)"
    )


def _counts_setting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--counts",
        type=whole_range,
        default="1-5",
        metavar="FIRST-LAST",
        help="photos with these numbers of items; others are left out (%(default)s)",
    )


def _name_setting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--name", type=dataset_name, default="bins", help="name of the dataset (%(default)s)"
    )


def _bucket_setting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bucket", help="our bucket; by default the one DataStack made")


def _min_photos_setting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--min-photos",
        type=positive,
        default=50,
        help="stop when fewer photos are left (%(default)s)",
    )


def _download_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--list",
        type=Path,
        metavar="FILE",
        help='take these photos: JSON such as file_list.json, {"1": ["data/metadata/<id>.json", '
        "…], …}; without it, those that the bucket lists first",
    )
    parser.add_argument(
        "--limit", type=positive, metavar="N", help="stop after N photos; needed without --list"
    )
    parser.add_argument(
        "--source-bucket",
        default=source.PUBLIC_BUCKET,
        help="public bucket, read anonymously (%(default)s)",
    )
    parser.add_argument(
        "--threads", type=positive, default=source.THREADS, help="requests at a time (%(default)s)"
    )


def _split_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--test-fraction",
        type=fraction,
        default=0.2,
        help="share of the product groups held out for the test (%(default)s)",
    )


def _pack_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--size",
        type=positive,
        default=224,
        help="photos are squashed to SIZE × SIZE pixels (%(default)s)",
    )
    parser.add_argument(
        "--shard-mb", type=positive, default=100, help="megabytes a shard, about (%(default)s)"
    )
    _workers_setting(parser)


def _workers_setting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=positive, help="processes; by default one a core")


def _weights_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--arch",
        choices=sorted(SOURCES),
        default="resnet50",
        help="resnet50 (the default) is downloaded from torchvision's server; the "
        "others come with installed packages",
    )
    parser.add_argument(
        "--local", action="store_true", help="leave them in DATA/weights, without our bucket"
    )


def _synthesize_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, default=Path("data"), help="working folder to fill (%(default)s)"
    )
    parser.add_argument("--photos", type=positive, default=600, help="how many (%(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, help="the same seed gives the same bytes (%(default)s)"
    )
    parser.add_argument(
        "--side",
        type=whole_range,
        default="300-600",
        metavar="LEAST-MOST",
        help="pixels a side; small photos are drawn faster (%(default)s)",
    )
    _workers_setting(parser)


def run_download(options: argparse.Namespace) -> None:
    if options.list is None and options.limit is None:
        raise DataError("say which photos: --list FILE, or --limit N (the bucket has 535,234)")
    ids: Iterable[str] = (
        source.read_list(options.list)
        if options.list is not None
        else source.list_bucket(source.public_client(), options.source_bucket)
    )
    photos, left_out = source.download(
        ids,
        options.data,
        options.counts,
        bucket=options.source_bucket,
        limit=options.limit,
        threads=options.threads,
    )
    print(f"{len(photos):,} photos in {options.data}; {summarize(left_out)}")


def run_split(options: argparse.Namespace) -> None:
    result = split.split_folder(
        options.data,
        options.counts,
        test_fraction=options.test_fraction,
        min_photos=options.min_photos,
    )
    print(split.describe(result.photos))
    print(summarize(result.left_out))


def run_pack(options: argparse.Namespace) -> None:
    manifest = packing.pack(
        options.data,
        options.name,
        size=options.size,
        shard_mb=options.shard_mb,
        workers=options.workers,
        min_photos=options.min_photos,
    )
    shards = [shard for listed in manifest["shards"].values() for shard in listed]
    print(
        f"{sum(shard['photos'] for shard in shards):,} photos in {len(shards)} shards, "
        f"{sum(shard['bytes'] for shard in shards) / 1e6:.1f} MB; "
        f"{manifest['left_out']['total']:,} left out, listed in "
        f"{dataset_path(options.data, options.name) / 'manifest.json'}"
    )


def run_upload(options: argparse.Namespace) -> None:
    bucket = options.bucket or stack_output("DataStack", "BucketName")
    print(upload.upload_dataset(options.data, options.name, bucket))


def run_all(options: argparse.Namespace) -> None:
    options.bucket = options.bucket or stack_output(
        "DataStack", "BucketName"
    )  # fail before the long part
    for step in (run_download, run_split, run_pack, run_upload):
        step(options)


def run_weights(options: argparse.Namespace) -> None:
    if options.local:
        print(save_weights(options.arch, options.data / "weights"))
        return
    bucket = options.bucket or stack_output("DataStack", "BucketName")
    file = save_weights(options.arch, options.data / "weights")
    print(upload.upload_weights(file, bucket))


def run_synthesize(options: argparse.Namespace) -> None:
    from data_prep.synthetic import synthesize

    synthesize(
        options.out, options.photos, options.seed, sides=options.side, workers=options.workers
    )
    print(f"{options.photos:,} synthetic photos in {options.out}")


def whole_range(text: str) -> range:
    """`1-5` → 1, 2, 3, 4, 5; `3` → 3."""
    first, _, last = text.partition("-")
    try:
        found = range(int(first), int(last or first) + 1)
    except ValueError:
        found = range(0)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not a range of whole numbers such as 1-5")
    return found


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and 1")
    return value


def dataset_name(text: str) -> str:
    if (
        not text
        or not all(letter.isalnum() or letter in "-_." for letter in text)
        or text[0] == "."
    ):
        raise argparse.ArgumentTypeError(f"{text!r}: use letters, digits, '-', '_' and '.'")
    return text


COMMANDS: dict[
    str,
    tuple[
        Callable[[argparse.Namespace], None],
        str,
        tuple[Callable[[argparse.ArgumentParser], None], ...],
    ],
] = {
    "all": (
        run_all,
        "download, split, pack and upload",
        (
            _folder_setting,
            _counts_setting,
            _name_setting,
            _download_settings,
            _split_settings,
            _min_photos_setting,
            _pack_settings,
            _bucket_setting,
        ),
    ),
    "download": (
        run_download,
        "public bucket → working folder",
        (_folder_setting, _counts_setting, _download_settings),
    ),
    "split": (
        run_split,
        "train and test, no product on both sides",
        (_folder_setting, _counts_setting, _split_settings, _min_photos_setting),
    ),
    "pack": (
        run_pack,
        "split photos → WebDataset shards with a manifest",
        (_folder_setting, _name_setting, _pack_settings, _min_photos_setting),
    ),
    "upload": (
        run_upload,
        "packed dataset → our bucket",
        (_folder_setting, _name_setting, _bucket_setting),
    ),
    "weights": (
        run_weights,
        "pretrained backbone → our bucket",
        (_folder_setting, _weights_settings, _bucket_setting),
    ),
    "synthesize": (
        run_synthesize,
        "draw bins, in the public bucket's format",
        (_synthesize_settings,),
    ),
}


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # being ended is a Ctrl-C, too
    sys.exit(main())
