"""Training measured beside what people do without it, in one run, as ratios.

    python -m benchmarks.training all --native abid-native-400.tar --resnet50-weights resnet50.pth

head: head mode against the course's recipe, from photos on disk to a trained head. finetune:
steps of fine-tuning against plain PyTorch. loader: the loader against processes that only decode.
snapshots: steps of fine-tuning with snapshots against the same without. processes: two processes
that train together against one. accuracy: head mode and the course's recipe on many photos, once,
which takes long.
Every side runs in a process of its own, in turn with the others. Tables in Markdown go to stdout,
every single run to a JSON file. Let nothing else run meanwhile.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import torchvision

from benchmarks.training.finetune import GOALS, compare_finetune
from benchmarks.training.head import FIXED_PARTS, compare_head
from benchmarks.training.loader import NATIVE, PACKED, compare_loader
from benchmarks.training.measure import FULL, QUICK, BenchmarkError, Comparison
from benchmarks.training.photos import draw_photos, native_entries, unpack_photos
from benchmarks.training.processes import compare_processes
from benchmarks.training.recipe import Work
from benchmarks.training.report import describe, describe_machine, extrapolate, machine, to_json
from benchmarks.training.snapshots import compare_snapshots
from common.command import in_one_line, interruptible
from common.dataset import DatasetError, open_dataset
from data_prep.folder import DataError, dataset_path
from data_prep.pack import pack
from data_prep.split import SIDES
from data_prep.weights import save_weights
from training.learn.model import WeightsError, load_backbone
from training.settings import whole_number

COMPARED = ("head", "finetune", "loader", "snapshots", "processes", "accuracy")
ORIGINAL_PHOTOS = 10_441  # of the original project


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    # The process that is measured ends with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run(args)
    except (BenchmarkError, DataError, DatasetError, WeightsError, OSError) as error:
        sys.exit(f"error: {in_one_line(error)}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flag = parser.add_argument
    flag("compared", choices=(*COMPARED, "all"), help="what to measure")
    flag(
        "--native",
        type=Path,
        metavar="TAR",
        help="photos at native size, laid out as the public bucket (default: drawn ones)",
    )
    flag(
        "--photos",
        type=Path,
        metavar="TAR",
        help="those of accuracy, of any size, laid out the same (default: no accuracy)",
    )
    flag(
        "--resnet50-weights",
        type=Path,
        metavar="FILE",
        help="of `data_prep weights` (default: random, which take as long, and the accuracy is "
        "compared with EfficientNet-Lite0)",
    )
    flag("--repeats", type=whole_number, help="of every side (default: 3; --quick: 1)")
    flag(
        "--threads",
        type=whole_number,
        default=os.cpu_count(),
        help="of every side (default: all, %(default)s)",
    )
    flag("--compile", action="store_true", help="finetune: a row with torch.compile as well")
    flag("--quick", action="store_true", help="try the command out: few, small photos")
    flag(
        "--json",
        type=Path,
        default=Path("training-benchmark.json"),
        metavar="FILE",
        help="results with all runs (default: %(default)s)",
    )
    args = parser.parse_args(arguments)
    if args.compared == "accuracy" and not args.photos:
        parser.error("accuracy needs --photos")
    args.repeats = args.repeats or (1 if args.quick else 3)
    return args


def run(args: argparse.Namespace) -> None:
    """Measure, print and write what `args` asks for."""
    found = machine(args.threads)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    results = []
    print(describe_machine(found), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for comparison in comparisons(args, Path(folder)):
            results.append(to_json(comparison))
            print(f"\n{describe(comparison)}", flush=True)
            if comparison.title == "head" and not args.quick:
                print(f"\n{extrapolate(comparison, FIXED_PARTS, ORIGINAL_PHOTOS)}", flush=True)
            # After each, as a later one may fail.
            content = {"arguments": vars(args), "machine": found, "comparisons": results}
            args.json.write_text(json.dumps(content, indent=1, default=str) + "\n")


def comparisons(args: argparse.Namespace, folder: Path) -> Iterator[Comparison]:
    """Prepare photos and weights in `folder`, off the clock, and compare."""
    scale = QUICK if args.quick else FULL
    chosen = COMPARED if args.compared == "all" else (args.compared,)
    if args.resnet50_weights:
        load_backbone("resnet50", args.resnet50_weights, all_stages=False)  # else one line now
    weights = {
        "resnet50": args.resnet50_weights or random_resnet50(folder),
        "efficientnet_lite0": save_weights("efficientnet_lite0", folder / "weights"),
    }
    photos = folder / "native"
    if args.native:
        unpack_photos(args.native, photos)
    else:
        draw_photos(photos, scale.photos, scale.sides)

    data = dataset_path(photos, "packed")
    if not {"loader", "finetune", "snapshots", "processes"}.isdisjoint(chosen):
        pack(photos, "packed", size=scale.size)
    if "loader" in chosen:
        entries = native_entries(photos)
        yield compare_loader("loader", NATIVE, entries, scale, args.repeats)
        entries = open_dataset(data).index(*SIDES).entries
        yield compare_loader("loader of shards", PACKED, entries, scale, args.repeats)
    if "finetune" in chosen:
        for arch in GOALS:
            yield compare_finetune(
                data,
                weights[arch],
                arch,
                scale,
                args.repeats,
                threads=args.threads,
                compiled=args.compile,
            )
    if "snapshots" in chosen:
        arch = "efficientnet_lite0"
        yield compare_snapshots(
            data, weights[arch], arch, scale, args.repeats, threads=args.threads
        )
    if "processes" in chosen:
        for arch in GOALS:
            yield compare_processes(data, weights[arch], arch, scale, args.repeats)
    if "head" in chosen:
        work = Work(
            photos=photos,
            weights=weights["resnet50"],
            arch="resnet50",
            size=scale.size,
            threads=args.threads,
            judged=args.resnet50_weights is not None,
            probed=scale.probed,
        )
        yield compare_head("head", work, args.repeats)
    if "accuracy" in chosen and args.photos:
        more = folder / "more"
        unpack_photos(args.photos, more)
        arch = "resnet50" if args.resnet50_weights else "efficientnet_lite0"
        work = Work(
            photos=more,
            weights=weights[arch],
            arch=arch,
            size=scale.size,
            threads=args.threads,
            judged=True,
            probed=scale.probed,
        )
        yield compare_head(f"accuracy of head mode, {arch}", work, repeats=1, timed=False)


def random_resnet50(folder: Path) -> Path:
    """ResNet50 as it is before training: fit to be timed."""
    file = folder / "random-resnet50.pth"
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet50().state_dict(), file)
    return file


if __name__ == "__main__":
    with interruptible():
        main()
