"""The flags that several commands, or several steps, share, as types and as fields of classes."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from cyclopts import CycloptsError, Parameter, Token

from common.flags import Fraction, Hours, Positive, PositiveInt, Switch
from data_prep.download import REQUESTS
from data_prep.objects import PUBLIC_BUCKET
from data_prep.split import Method

T = TypeVar("T")


def _to_range(_: object, tokens: Sequence[Token]) -> range:
    text = tokens[0].value
    first, _dash, last = text.partition("-")
    try:
        found = range(int(first), int(last or first) + 1)
    except ValueError:
        found = range(0)
    if not found:
        raise ValueError(f"{text!r} is not a range of whole numbers such as 1-5")
    return found


def format_range(numbers: range) -> str:
    """Write a range as its flag has it: 1, 2, 3, 4, 5 → `1-5`."""
    return f"{numbers.start}-{numbers.stop - 1}"


WholeRange = Annotated[
    range, Parameter(converter=_to_range, n_tokens=1, accepts_keys=False, show_default=format_range)
]


@dataclass(frozen=True)
class Source:
    """Where photos come from: the public bucket, or a folder or a table of the user's."""

    kind: Literal["public", "folder", "csv", "jsonl"]
    path: Path = Path()


def _to_source(_: object, tokens: Sequence[Token]) -> Source:
    match [token.value for token in tokens]:
        case ["public"]:
            return Source("public")
        case ["folder" | "csv" | "jsonl" as kind, path]:
            return Source(kind, Path(path))
    raise CycloptsError(msg="--source takes `public`, `folder PATH`, `csv PATH` or `jsonl PATH`")


@dataclass(frozen=True)
class Share:
    """Machine `number` of `of` machines that share the work, counted from 1."""

    number: int
    of: int

    def mine(self, things: Sequence[T]) -> Sequence[T]:
        """Return the things that this machine works on."""
        return things[self.number - 1 :: self.of]


def _to_share(_: object, tokens: Sequence[Token]) -> Share:
    text = tokens[0].value
    number, _slash, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise ValueError(f"{text!r} is not a share such as 2/8")
    return Share(int(number), int(of))


def _check_name(_: object, name: str) -> None:
    if not re.fullmatch(r"[\w-][\w.-]*", name):
        raise ValueError("Use letters, digits, '-', '_' and '.', and do not begin with '.'.")


Data = Annotated[Path, Parameter(help="Working folder.")]
DatasetName = Annotated[str, Parameter(validator=_check_name, help="Name of the data set.")]
Counts = Annotated[
    WholeRange,
    Parameter(
        metavar="FIRST-LAST",
        help="Numbers of items: photos with another count are left out.",
    ),
]
MinPhotos = Annotated[PositiveInt, Parameter(help="Fail if fewer photos than this are left.")]
Workers = Annotated[
    PositiveInt | None, Parameter(help="Number of processes [default: one per core].")
]
SourceBucket = Annotated[str, Parameter(help="Public bucket, which is read anonymously.")]
ShareOfWork = Annotated[
    Share | None,
    Parameter(
        converter=_to_share,
        n_tokens=1,
        accepts_keys=False,
        metavar="K/N",
        help="Do only the K-th of N shares of the work, such as 2/8. N machines run the same "
        "command, each with its own K, and the first one completes the data set.",
    ),
]
OurBucket = Annotated[
    str | None, Parameter(help="Bucket to upload to [default: the one of DataStack].")
]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class PhotoOptions:
    """Which photos to take, and from where."""

    list_file: Annotated[Path | None, Parameter("--list", metavar="FILE")] = None
    """Take the photos of this list: ids, one per line, as `python -m data_prep list` prints them,
    or JSON such as `{"1": ["data/metadata/<id>.json", …], …}`. Without it, the public bucket is
    listed first, which takes a minute or two."""
    limit: PositiveInt | None = None
    """Take a sample of this many photos, chosen by a hash of the id: always the same ones, and a
    larger sample contains a smaller one. For public photos on this machine, `--list` or `--limit`
    is required. With `--share`, `--sagemaker` or your own photos, photos that are left out count
    as well."""
    source: Annotated[
        Source,
        Parameter(
            converter=_to_source,
            consume_multiple=(1, 2),
            n_tokens=-1,
            accepts_keys=False,
            metavar="KIND [PATH]",
            show_default=lambda source: source.kind,
        ),
    ] = Source("public")
    """Where the photos come from: `public`, the public bucket; `folder PATH`, your own photos in
    one folder per count, such as PATH/3/any.jpg; `csv PATH` or `jsonl PATH`, your own photos in a
    table or in JSON lines, with their counts and optionally groups and products, where a photo is
    a path or s3://bucket/key."""
    source_bucket: SourceBucket = PUBLIC_BUCKET
    requests: PositiveInt = REQUESTS
    """Number of concurrent requests to S3."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """How photos become training and test photos."""

    counts: Counts = range(1, 6)
    test_fraction: Fraction = 0.2
    """Share of the product groups that is held out for the test."""
    method: Annotated[Method, Parameter("--split")] = "group"
    """group: photos connected through shared products are on the same side; purge: photos that
    share a product with a test photo are left out, for very many photos, nearly all of which are
    connected; random: photo by photo, for comparison with the course project."""
    min_photos: MinPhotos = 50


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """How photos become shards."""

    name: DatasetName = "bins"
    size: PositiveInt = 224
    """Width and height of the packed photos, in pixels; photos are squashed, not cropped."""
    shard_mb: Positive = 100.0
    """Approximate size of a shard, in megabytes."""
    min_photos: MinPhotos = 50
    workers: Workers = None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class DatasetOptions(PackOptions, SplitOptions):
    """Everything that decides which data set comes out of the same photos; also `workers`."""


@Parameter(name="*", group="On SageMaker")
@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """Whether a processing job on SageMaker prepares the data set, and on which machines."""

    sagemaker: Switch = False
    """Run as a processing job on SageMaker, with public photos: all of them, unless `--list` or
    `--limit` is given."""
    instances: PositiveInt = 1
    """Number of machines, each of which does a share of the work."""
    instance_type: str = "ml.m5.xlarge"
    """SageMaker instance type."""
    max_hours: Hours = 3.0
    """Hours after which SageMaker stops the job."""
    dry_run: Switch = False
    """Check, print the request as JSON, and start nothing."""
    yes: Switch = False
    """Start without asking for confirmation."""
