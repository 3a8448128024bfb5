"""The command line: `python -m data_prep --help`."""

import signal
import sys
from dataclasses import fields
from pathlib import Path
from typing import Annotated

from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError
from cyclopts import Parameter

from common.choices import Arch
from common.command import in_one_line
from common.flags import NonNegativeInt, PositiveInt, Switch, command_line, run
from common.outputs import NotDeployedError, chosen_bucket
from data_prep import download as downloading
from data_prep import own_photos, own_tables, shares, source, stats, upload, verify
from data_prep import pack as packing
from data_prep import split as splitting
from data_prep.folder import DataError, dataset_path, summarize
from data_prep.objects import PUBLIC_BUCKET, exit_at_once
from data_prep.options import (
    Counts,
    Data,
    DatasetName,
    DatasetOptions,
    JobOptions,
    OurBucket,
    PackOptions,
    PhotoOptions,
    ShareOfWork,
    SourceBucket,
    SplitOptions,
    WholeRange,
    Workers,
)
from data_prep.weights import save_weights

DATA = Path("data")

app = command_line(
    "python -m data_prep",
    """\
Prepare photos of bins for training, and upload them to our bucket.

The usual way, in one go or step by step. Every step can be repeated, and continues where it was
stopped:

    python -m data_prep all --list file_list.json
    python -m data_prep download --list file_list.json    # or: --limit 2000
    python -m data_prep split
    python -m data_prep pack
    python -m data_prep upload
    python -m data_prep weights --arch resnet50    # once: the backbone

All 535,234 photos of the public bucket, or your own photos:

    python -m data_prep list > ids.txt && python -m data_prep all --list ids.txt
    python -m data_prep all --sagemaker --instances 8    # on 8 machines
    python -m data_prep all --source folder photos --counts 0-9

To see what the photos are like, and to check the packed data set:

    python -m data_prep stats
    python -m data_prep verify

Without photos, draw synthetic ones:

    python -m data_prep synthesize --out data --photos 600 --seed 0
""",
)


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status. A user's error is reported in one line."""
    try:
        run(app, arguments)
    except (DataError, NotDeployedError, Boto3Error, BotoCoreError, ClientError, OSError) as error:
        print(f"error: {in_one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; run the same command again to continue", file=sys.stderr)
        return 130
    return 0


@app.command(name="all")
def prepare(
    *,
    data: Data = DATA,
    photos: PhotoOptions = PhotoOptions(),
    dataset: DatasetOptions = DatasetOptions(),
    bucket: OurBucket = None,
    share: ShareOfWork = None,
    job: JobOptions = JobOptions(),
) -> None:
    """Download, split, pack and upload."""
    bucket = chosen_bucket(bucket)  # fail before the long part
    if job.sagemaker:
        if share:
            raise DataError("--sagemaker gives each machine its share: leave --share out")
        _prepare_on_sagemaker(photos, dataset, bucket, job)
        return
    for option in fields(job):
        if getattr(job, option.name) != option.default:
            flag = option.name.replace("_", "-")
            raise DataError(f"--{flag} is for a job on SageMaker: give --sagemaker as well")
    if share:
        if photos.source.kind != "public" or photos.list_file is None:
            raise DataError("several machines share a list of public photos: give them --list FILE")
        ids = _listed_ids(photos)[: photos.limit]
        uri = shares.prepare_share(ids, share, dataset, photos, data, bucket)
        print(f"share {share.number} of {share.of}: done, for {uri}")
        return
    download(data=data, counts=dataset.counts, photos=photos)
    split(data=data, options=dataset)
    pack(data=data, options=dataset)
    upload_packed(data=data, name=dataset.name, bucket=bucket)


def _prepare_on_sagemaker(
    photos: PhotoOptions, dataset: DatasetOptions, bucket: str, job: JobOptions
) -> None:
    from data_prep.processing_job import Preparation, prepare_on_sagemaker  # slow: SageMaker's SDK

    if photos.source.kind != "public":
        raise DataError("a job cannot read your own photos: leave --source or --sagemaker out")
    ids = _listed_ids(photos)[: photos.limit]
    prepare_on_sagemaker(
        Preparation(ids=ids, bucket=bucket, photos=photos, dataset=dataset, job=job)
    )


def _listed_ids(photos: PhotoOptions) -> list[str]:
    """Return the ids in the order to try them; with a limit, the first ones are a sample."""
    ids = (
        source.read_list(photos.list_file)
        if photos.list_file
        else list(source.list_bucket(photos.source_bucket))
    )
    return ids if photos.limit is None else source.spread(ids)


@app.command(name="list")
def list_ids(*, source_bucket: SourceBucket = PUBLIC_BUCKET) -> None:
    """Print the ids of all photos in the public bucket, for `--list`."""
    sys.stdout.writelines(f"{photo_id}\n" for photo_id in source.list_bucket(source_bucket))


@app.command
def download(
    *,
    data: Data = DATA,
    counts: Counts = SplitOptions.counts,
    photos: PhotoOptions = PhotoOptions(),
) -> None:
    """Copy photos of the public bucket, or your own, to the working folder."""
    if photos.source.kind == "public":
        if photos.list_file is None and photos.limit is None:
            raise DataError(
                "say which photos to take: --list FILE, or --limit N (the bucket has "
                f"{source.PUBLIC_PHOTOS:,})"
            )
        taken, left_out = downloading.download(
            _listed_ids(photos),
            data,
            counts,
            bucket=photos.source_bucket,
            limit=photos.limit,
            requests=photos.requests,
        )
    else:
        readers = {
            "folder": own_photos.read_folder,
            "csv": own_tables.read_csv,
            "jsonl": own_tables.read_jsonl,
        }
        own = readers[photos.source.kind](photos.source.path)
        found = source.spread(own, lambda photo: photo.id)
        taken, left_out = own_photos.take_in(
            found[: photos.limit], data, counts, requests=photos.requests
        )
    print(f"{len(taken):,} photos in {data}; {summarize(left_out)}")


@app.command
def split(*, data: Data = DATA, options: SplitOptions = SplitOptions()) -> None:
    """Split the photos into train and test, with no product on both sides."""
    result = splitting.split_folder(
        data,
        options.counts,
        method=options.method,
        test_fraction=options.test_fraction,
        min_photos=options.min_photos,
    )
    print(splitting.describe(result.photos))
    print(summarize(result.left_out))


@app.command
def pack(*, data: Data = DATA, options: PackOptions = PackOptions()) -> None:
    """Pack the split photos into WebDataset shards with a manifest."""
    manifest = packing.pack(
        data,
        options.name,
        size=options.size,
        shard_mb=options.shard_mb,
        workers=options.workers,
        min_photos=options.min_photos,
    )
    shards = [shard for side in manifest["shards"].values() for shard in side]
    print(
        f"{sum(shard['photos'] for shard in shards):,} photos in {len(shards)} shards, "
        f"{sum(shard['bytes'] for shard in shards) / 1e6:.1f} MB; "
        f"{manifest['left_out']['total']:,} left out, listed in "
        f"{dataset_path(data, options.name) / 'manifest.json'}"
    )


@app.command(name="upload")
def upload_packed(
    *, data: Data = DATA, name: DatasetName = PackOptions.name, bucket: OurBucket = None
) -> None:
    """Upload a packed data set to our bucket."""
    print(upload.upload_dataset(data, name, chosen_bucket(bucket)))


@app.command(name="verify")
def verify_packed(
    *,
    data: Data = DATA,
    name: DatasetName = PackOptions.name,
    bucket: Annotated[
        str | None, Parameter(help="Check the hashes of the data set in this bucket instead.")
    ] = None,
    workers: Workers = None,
) -> None:
    """Compare a packed data set with its manifest: every byte, or the hashes in a bucket."""
    if bucket:
        problems, place = verify.verify_bucket(bucket, name), bucket
    else:
        problems = verify.verify_folder(data, name, workers)
        place = str(dataset_path(data, name))
    for problem in problems:
        print(problem)
    if problems:
        raise DataError(f"{len(problems)} problems in {place}: pack and upload again")
    print(f"{place}: no problems")


@app.command(name="stats")
def show_stats(*, data: Data = DATA, output: Path | None = None, workers: Workers = None) -> None:
    """Write a page about the split photos: counts, sizes, brightness, duplicates and leakage.

    Parameters
    ----------
    output
        File for the page [default: DATA/stats.html].
    """
    print(stats.write_page(data, output or data / "stats.html", workers))


@app.command
def weights(
    *, data: Data = DATA, arch: Arch = "resnet50", bucket: OurBucket = None, local: Switch = False
) -> None:
    """Save a pretrained backbone, and upload it to our bucket.

    Parameters
    ----------
    arch
        Backbone: resnet50 is downloaded from torchvision's server; the others come with installed
        packages.
    local
        Leave the weights in DATA/weights and upload nothing.
    """
    if local:
        print(save_weights(arch, data / "weights"))
        return
    bucket = chosen_bucket(bucket)  # fail before the download
    print(upload.upload_weights(save_weights(arch, data / "weights"), bucket))


@app.command
def synthesize(
    *,
    out: Path = DATA,
    photos: PositiveInt = 600,
    seed: NonNegativeInt = 0,
    side: WholeRange = range(300, 601),
    workers: Workers = None,
) -> None:
    """Draw synthetic photos of bins, in the public bucket's format.

    Parameters
    ----------
    out
        Working folder to fill.
    photos
        Number of photos.
    seed
        Random seed; the same seed gives the same bytes.
    side
        Smallest and largest side of a photo, in pixels; small photos are drawn faster.
    """
    from data_prep import synthetic

    synthetic.synthesize(out, photos, seed, sides=side, workers=workers)
    print(f"{photos:,} synthetic photos in {out}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # treat it like Ctrl-C
    exit_at_once(main())
