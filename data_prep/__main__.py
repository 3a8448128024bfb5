"""The command line: `python -m data_prep --help`."""

import argparse
import signal
import sys
from collections.abc import Callable

from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError

from common.command import in_one_line
from common.outputs import NotDeployedError, chosen_bucket
from data_prep import arguments as flags
from data_prep import own_photos, shares, source, split, stats, upload, verify
from data_prep import pack as packing
from data_prep.download import download
from data_prep.folder import DataError, dataset_path, summarize
from data_prep.objects import exit_at_once
from data_prep.weights import save_weights

DESCRIPTION = """\
Photos of bins into our bucket, ready to train on.

The usual way, in one go or step by step (every step can be repeated, and goes on
where it was stopped):

  python -m data_prep all --list file_list.json
  python -m data_prep download --list file_list.json   # or: --counts 1-5 --limit 2000
  python -m data_prep split
  python -m data_prep pack
  python -m data_prep upload
  python -m data_prep weights --arch resnet50          # once: the pretrained backbone

All 535,234 of the public bucket, and your own:

  python -m data_prep list > ids.txt && python -m data_prep all --list ids.txt
  python -m data_prep all --sagemaker --instances 8    # all, by eight machines of SageMaker
  python -m data_prep all --source folder photos --counts 0-9

What there is, and whether it is whole:

  python -m data_prep stats
  python -m data_prep verify

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
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        for add in settings:
            add(command)
    return parser


def run_list(options: argparse.Namespace) -> None:
    sys.stdout.writelines(f"{photo_id}\n" for photo_id in source.list_bucket(options.source_bucket))


def run_download(options: argparse.Namespace) -> None:
    kind, path = options.source
    if kind == "public":
        photos, left_out = download(
            _public_ids(options),
            options.data,
            options.counts,
            bucket=options.source_bucket,
            limit=options.limit,
            requests=options.requests,
        )
    else:
        read = own_photos.read_folder if kind == "folder" else own_photos.read_csv
        photos, left_out = own_photos.take_in(
            source.spread(read(path), lambda photo: photo.id)[: options.limit],
            options.data,
            options.counts,
            requests=options.requests,
        )
    print(f"{len(photos):,} photos in {options.data}; {summarize(left_out)}")


def _public_ids(options: argparse.Namespace) -> list[str]:
    """The ids to try, in this order: with --limit, that of a sample."""
    if options.list is None and options.limit is None:
        raise DataError(
            f"say which photos: --list FILE, or --limit N (the bucket has {source.PUBLIC_PHOTOS:,})"
        )
    return _listed_ids(options)


def _listed_ids(options: argparse.Namespace) -> list[str]:
    ids = (
        list(source.list_bucket(options.source_bucket))
        if options.list is None
        else source.read_list(options.list)
    )
    return ids if options.limit is None else source.spread(ids)


def run_split(options: argparse.Namespace) -> None:
    result = split.split_folder(
        options.data,
        options.counts,
        method=options.split,
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
    bucket = chosen_bucket(options.bucket)
    print(upload.upload_dataset(options.data, options.name, bucket))


def run_all(options: argparse.Namespace) -> None:
    # Fail before the long part.
    options.bucket = chosen_bucket(options.bucket)
    if options.sagemaker and options.share:
        raise DataError("--sagemaker gives each machine its share: leave --share out")
    if options.sagemaker:
        run_on_sagemaker(options)
        return
    for name, usual in flags.SAGEMAKER_DEFAULTS.items():
        if getattr(options, name) != usual:
            flag = name.replace("_", "-")
            raise DataError(f"--{flag} is for a job: give --sagemaker as well")
    if options.share:
        run_share(options)
        return
    for step in (run_download, run_split, run_pack, run_upload):
        step(options)


def run_share(options: argparse.Namespace) -> None:
    """Of `all`, what falls to this machine."""
    if options.source[0] != "public" or options.list is None:
        raise DataError("several machines share a list of public photos: give them --list FILE")
    settings = shares.Settings(
        name=options.name,
        counts=options.counts,
        method=options.split,
        test_fraction=options.test_fraction,
        size=options.size,
        shard_mb=options.shard_mb,
        min_photos=options.min_photos,
    )
    place = shares.prepare_share(
        _listed_ids(options)[: options.limit],
        options.share,
        settings,
        options.data,
        options.bucket,
        source_bucket=options.source_bucket,
        requests=options.requests,
        workers=options.workers,
    )
    print(f"share {options.share.number} of {options.share.of}: done, for {place}")


def run_on_sagemaker(options: argparse.Namespace) -> None:
    """The same by a job, whose machines share the work."""
    from data_prep.processing_job import prepare_on_sagemaker  # SageMaker's SDK, which is slow

    if options.source[0] != "public":
        raise DataError("a job has no way to your own photos: leave --source or --sagemaker out")
    prepare_on_sagemaker(_listed_ids(options)[: options.limit], options)


def run_verify(options: argparse.Namespace) -> None:
    if options.bucket:
        problems, place = verify.verify_bucket(options.bucket, options.name), options.bucket
    else:
        problems = verify.verify_folder(options.data, options.name, options.workers)
        place = str(dataset_path(options.data, options.name))
    for problem in problems:
        print(problem)
    if problems:
        raise DataError(f"{len(problems)} problems in {place}: pack and upload again")
    print(f"{place}: whole")


def run_stats(options: argparse.Namespace) -> None:
    print(
        stats.write_page(
            options.data, options.output or options.data / "stats.html", options.workers
        )
    )


def run_weights(options: argparse.Namespace) -> None:
    if options.local:
        print(save_weights(options.arch, options.data / "weights"))
        return
    bucket = chosen_bucket(options.bucket)
    file = save_weights(options.arch, options.data / "weights")
    print(upload.upload_weights(file, bucket))


def run_synthesize(options: argparse.Namespace) -> None:
    from data_prep.synthetic import synthesize

    synthesize(
        options.out, options.photos, options.seed, sides=options.side, workers=options.workers
    )
    print(f"{options.photos:,} synthetic photos in {options.out}")


Setting = Callable[[argparse.ArgumentParser], None]
COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], None], str, tuple[Setting, ...]]] = {
    "all": (
        run_all,
        "download, split, pack and upload",
        (
            flags.folder_setting,
            flags.counts_setting,
            flags.name_setting,
            flags.download_settings,
            flags.split_settings,
            flags.min_photos_setting,
            flags.pack_settings,
            flags.bucket_setting,
            flags.share_setting,
            flags.sagemaker_settings,
        ),
    ),
    "list": (
        run_list,
        "ids of the public bucket → standard output, for --list",
        (flags.source_bucket_setting,),
    ),
    "download": (
        run_download,
        "public bucket, or your own photos → working folder",
        (flags.folder_setting, flags.counts_setting, flags.download_settings),
    ),
    "split": (
        run_split,
        "train and test, no product on both sides",
        (
            flags.folder_setting,
            flags.counts_setting,
            flags.split_settings,
            flags.min_photos_setting,
        ),
    ),
    "pack": (
        run_pack,
        "split photos → WebDataset shards with a manifest",
        (
            flags.folder_setting,
            flags.name_setting,
            flags.pack_settings,
            flags.min_photos_setting,
        ),
    ),
    "upload": (
        run_upload,
        "packed dataset → our bucket",
        (flags.folder_setting, flags.name_setting, flags.bucket_setting),
    ),
    "verify": (
        run_verify,
        "is a packed dataset what its manifest says? Here, or with --bucket in that bucket",
        (
            flags.folder_setting,
            flags.name_setting,
            flags.bucket_to_verify_setting,
            flags.workers_setting,
        ),
    ),
    "stats": (
        run_stats,
        "a page about the photos of the split: counts, sizes, light, doubles, leaks",
        (flags.folder_setting, flags.page_setting, flags.workers_setting),
    ),
    "weights": (
        run_weights,
        "pretrained backbone → our bucket",
        (flags.folder_setting, flags.weights_settings, flags.bucket_setting),
    ),
    "synthesize": (
        run_synthesize,
        "draw bins, in the public bucket's format",
        (flags.synthesize_settings,),
    ),
}


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # being ended is a Ctrl-C, too
    exit_at_once(main())
