"""Flags of the subcommands."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.command import hours
from data_prep.download import REQUESTS
from data_prep.objects import PUBLIC_BUCKET
from data_prep.shares import Share
from data_prep.split import METHODS
from data_prep.weights import SOURCES


def folder_setting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", type=Path, default=Path("data"), help="working folder (%(default)s)"
    )


def counts_setting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--counts",
        type=whole_range,
        default="1-5",
        metavar="FIRST-LAST",
        help="photos with these numbers of items; others are left out (%(default)s)",
    )


def name_setting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--name", type=dataset_name, default="bins", help="name of the dataset (%(default)s)"
    )


def bucket_setting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bucket", help="our bucket; by default the one DataStack made")


def min_photos_setting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--min-photos",
        type=positive,
        default=50,
        help="stop when fewer photos are left (%(default)s)",
    )


def download_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--list",
        type=Path,
        metavar="FILE",
        help="take these photos: ids, one a line, as `list` writes them, or JSON such as "
        'file_list.json, {"1": ["data/metadata/<id>.json", …], …}; without it, the bucket is '
        "listed first, which takes a minute or two",
    )
    parser.add_argument(
        "--limit",
        type=positive,
        metavar="N",
        help="take a sample of N photos, chosen by a hash of the id: the same ones each time, and "
        "a larger N adds to them; needed without --list. With --share, --sagemaker or your own "
        "photos, those that are left out are among the N",
    )
    parser.add_argument(
        "--source",
        nargs="+",
        action=Source,
        default=("public", None),
        metavar=("KIND", "PATH"),
        help="where photos come from: `public` (the default), `folder PATH` (your own, one folder "
        "a count: PATH/3/any.jpg) or `csv PATH` (columns photo, count and perhaps group; a photo "
        "is a path or s3://bucket/key)",
    )
    source_bucket_setting(parser)
    parser.add_argument(
        "--requests", type=positive, default=REQUESTS, help="at a time (%(default)s)"
    )


def source_bucket_setting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--source-bucket",
        default=PUBLIC_BUCKET,
        help="public bucket, read anonymously (%(default)s)",
    )


def split_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--test-fraction",
        type=fraction,
        default=0.2,
        help="share of the product groups held out for the test (%(default)s)",
    )
    parser.add_argument(
        "--split",
        choices=METHODS,
        default="group",
        help="group: photos that hang together by their products are on one side (the default); "
        "purge: for very many photos, nearly all of which hang together: those that share a "
        "product with a test photo are left out; random: photo by photo, as in the course project, "
        "for comparison",
    )


def pack_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--size",
        type=positive,
        default=224,
        help="photos are squashed to SIZE × SIZE pixels (%(default)s)",
    )
    parser.add_argument(
        "--shard-mb", type=megabytes, default=100.0, help="megabytes a shard, about (%(default)s)"
    )
    workers_setting(parser)


def workers_setting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=positive, help="processes; by default one a core")


def bucket_to_verify_setting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bucket", help="look at the dataset in this bucket, by its hashes")


def page_setting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="the page (default: DATA/stats.html)"
    )


def share_setting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--share",
        type=share,
        metavar="K/N",
        help="do the K-th of N shares of the work; N machines run the same command, each its own, "
        "and the first one joins what they made",
    )


SAGEMAKER_DEFAULTS = {
    "instances": 1,
    "instance_type": "ml.m5.xlarge",
    "max_hours": 3.0,
    "dry_run": False,
    "yes": False,
}


def sagemaker_settings(parser: argparse.ArgumentParser) -> None:
    flag = parser.add_argument_group("on SageMaker").add_argument
    flag(
        "--sagemaker",
        action="store_true",
        help="as a processing job, of public photos: all of them without --list and --limit",
    )
    flag("--instances", type=positive, help="machines, each a share (%(default)s)")
    flag("--instance-type", help="SageMaker's type (%(default)s)")
    flag(
        "--max-hours",
        type=hours,
        help="the job is ended by force after this (%(default)s)",
    )
    flag(
        "--dry-run",
        action="store_true",
        help="check, print the request as JSON, and start nothing",
    )
    flag("--yes", action="store_true", help="start without asking")
    parser.set_defaults(**SAGEMAKER_DEFAULTS)


def weights_settings(parser: argparse.ArgumentParser) -> None:
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


def synthesize_settings(parser: argparse.ArgumentParser) -> None:
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
    workers_setting(parser)


def share(text: str) -> Share:
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a share such as 2/8")
    return Share(int(number), int(of))


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


def megabytes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


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


class Source(argparse.Action):
    """`public`, `folder PATH` or `csv PATH`."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option: str | None = None,
    ) -> None:
        match values:
            case ["public"]:
                setattr(namespace, self.dest, ("public", None))
            case ["folder" | "csv" as kind, path]:
                setattr(namespace, self.dest, (kind, Path(path)))
            case _:
                parser.error("--source takes `public`, `folder PATH` or `csv PATH`")
