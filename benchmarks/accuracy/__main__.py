"""How well recipes count, one row each: what was tried is kept, whether it paid or not.

    python -m benchmarks.accuracy prepare --photos abid-224.tar     the data set, split by product
    python -m benchmarks.accuracy prepare --drawn 8000 --folder D   the same of drawn bins
    python -m benchmarks.accuracy try NAME [--seed 1]               train it, judge it on validation
    python -m benchmarks.accuracy try NAME --processes 2            the same under torchrun
    python -m benchmarks.accuracy test                              the chosen one, on test photos
    python -m benchmarks.accuracy final --photos abid-224.tar       on all photos → model.tar.gz
    python -m benchmarks.accuracy table                             the rows as Markdown

Photos are a tar laid out as the public bucket: bin-images/<id>.jpg, metadata/<id>.json. A try
trains on four fifths of the products of the training side and is judged on the last fifth; the
test side is looked at by `test` alone. Rows go to benchmarks/accuracy/tries.jsonl.
"""

import argparse
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

from benchmarks.training.report import machine
from common.storage import pack_files
from data_prep.folder import DataError, start_selection, write_selection
from data_prep.pack import pack
from data_prep.split import split_folder
from data_prep.synthetic import synthesize
from data_prep.weights import save_weights
from training.settings import whole_number

ROWS = Path(__file__).with_name("tries.jsonl")
DATASET = "bins"
VALIDATION = "0.2"  # of the training side's products
COUNTS = range(1, 6)
SIDE = 224  # of a drawn bin, pixels

# Flags of training.train.
LITE0 = ("--arch", "efficientnet_lite0")
LITE2 = ("--arch", "efficientnet_lite2")
MIRROR = ("--mirror", "yes")
FINETUNE = (*MIRROR, "--mode", "finetune", "--size", "160", "--precision", "bfloat16")
TRIES: dict[str, tuple[str, ...]] = {
    "head": (*LITE0, *MIRROR),
    "head-members-5": (*LITE0, *MIRROR, "--ensemble-size", "5"),
    "finetune": (*LITE0, *FINETUNE, "--epochs", "5"),
    "finetune-half-batch": (*LITE0, *FINETUNE, "--epochs", "5", "--batch-size", "16"),
    "finetune-members-3": (*LITE0, *FINETUNE, "--epochs", "5", "--ensemble-size", "3"),
    "lite2-members-5": (*LITE2, *FINETUNE, "--epochs", "4", "--ensemble-size", "5"),
    "lite2-members-4": (*LITE2, *FINETUNE, "--epochs", "4", "--ensemble-size", "4"),
}
# On validation; five networks are better still, but do not learn all photos within an hour.
CHOSEN = "lite2-members-4"


def prepare(folder: Path, photos: Path | None, drawn: int = 0) -> None:
    """Unpack or draw, split by product and pack as data preparation does; weights beside it."""
    if photos:
        start_selection(folder)
        with tarfile.open(photos) as tar:
            tar.extractall(folder, filter="data")
        ids = sorted(file.stem for file in (folder / "bin-images").glob("*.jpg"))
        write_selection(folder, ids, [])
    else:
        synthesize(folder, drawn, 0, sides=range(SIDE, SIDE + 1))
    split_folder(folder, COUNTS)
    pack(folder, DATASET)
    for arch in ("efficientnet_lite0", "efficientnet_lite2"):
        save_weights(arch, folder / "weights")


def train(name: str, folder: Path, output: Path, *more: str, processes: int = 1) -> float:
    """Run training.train with the flags of a try; returns the seconds it took."""
    flags = TRIES[name]
    arch = flags[flags.index("--arch") + 1]
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", str(processes))
    started = time.monotonic()
    subprocess.run(
        [
            *(sys.executable, *(torchrun if processes > 1 else ()), "-m", "training.train"),
            *("--data", str(folder / "datasets" / DATASET)),
            *("--weights", str(folder / "weights" / f"{arch}.pth")),
            *("--output", str(output), "--run-id", name, *flags, *more),
        ],
        check=True,
    )
    return time.monotonic() - started


def row(name: str, output: Path, seconds: float, seed: int, side: str) -> dict[str, Any]:
    """One line of accuracy.jsonl."""
    metrics = json.loads((output / "metrics.json").read_text())
    return {
        "try": name,
        "flags": " ".join(TRIES[name]),
        "seed": seed,
        "side": side,
        **figures(metrics[side]),
        "epoch": metrics["train"]["epoch"],
        "temperature": metrics["temperature"],
        "minutes": round(seconds / 60, 1),
        "machine": machine(os.cpu_count() or 1),
    }


def figures(judged: dict[str, Any]) -> dict[str, Any]:
    """Of one side in metrics.json, what a row has of it."""
    return {
        "photos": judged["photos"],
        "exact": judged["accuracy"],
        "within_one": judged["within_one"],
        "mae": judged["mae"],
        "rmse_of_expected": judged["rmse_of_expected"],
        "loss": round(judged["cross_entropy"], 4),
        "calibration_error": judged["calibration"]["expected_calibration_error"],
        "auroc": judged["inventory"].get("auroc"),
    }


def try_recipe(args: argparse.Namespace) -> None:
    output = args.folder / "tries" / f"{args.name}-{args.seed}-{args.processes}"
    more = ("--skip-test", "--validation-fraction", VALIDATION, "--seed", str(args.seed))
    seconds = train(args.name, args.folder, output, *more, processes=args.processes)
    line = row(args.name, output, seconds, args.seed, "validation")
    line["processes"] = args.processes
    with ROWS.open("a") as stream:
        stream.write(json.dumps(line) + "\n")


def test_recipe(args: argparse.Namespace) -> None:
    output = args.folder / "tests" / f"{args.name}-{args.seed}"
    seconds = train(args.name, args.folder, output, "--seed", str(args.seed))
    line = row(args.name, output, seconds, args.seed, "test")
    with ROWS.open("a") as stream:
        stream.write(json.dumps(line) + "\n")


def final(args: argparse.Namespace) -> None:
    if args.photos:
        prepare(args.folder, args.photos)
    output = args.folder / "final"
    train(args.name, args.folder, output, "--train-on", "all", "--seed", str(args.seed))
    archive = output / "model.tar.gz"
    pack_files(archive, sorted((output / "model").iterdir()))
    print(archive)


def table() -> str:
    """The rows as Markdown, tries in the order in which they were made."""
    lines = [
        "| try | flags | exact, 95 % | within one | RMSE | loss | AUROC | minutes |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for text in ROWS.read_text().splitlines():
        found = json.loads(text)
        exact = found["exact"]
        cells = [
            name_of(found),
            f"`{found['flags']}`",
            f"{exact['value']:.1%} ({exact['low']:.1%}–{exact['high']:.1%})",
            f"{found['within_one']:.1%}",
            f"{found['rmse_of_expected']:.3f}",
            f"{found['loss']:.3f}",
            "" if found["auroc"] is None else f"{found['auroc']['value']:.3f}",
            f"{found['minutes']:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def name_of(found: dict[str, Any]) -> str:
    """Of a row: the try, and what was special about it."""
    processes = found.get("processes", 1)
    special = [
        f"seed {found['seed']}" if found["seed"] else "",
        f"{processes} processes" if processes > 1 else "",
        "test photos" if found["side"] == "test" else "",
    ]
    return ", ".join([found["try"], *filter(None, special)])


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    folder = argparse.ArgumentParser(add_help=False)
    folder.add_argument(
        "--folder",
        type=Path,
        default=Path(".accuracy"),
        help="data set and runs (default: %(default)s)",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("prepare", parents=[folder], help="make the data set")
    what = add.add_mutually_exclusive_group(required=True)
    what.add_argument("--photos", type=Path, help="tar of photos and metadata")
    what.add_argument("--drawn", type=whole_number, help="so many bins, drawn")
    for command, text in (
        ("try", "train a recipe and judge it on validation"),
        ("test", "judge the chosen recipe on the test photos"),
        ("final", "train the chosen recipe on all photos"),
    ):
        add = commands.add_parser(command, parents=[folder], help=text)
        if command == "try":
            add.add_argument("name", choices=TRIES, help="of a recipe")
        else:
            words = "of another recipe (default: %(default)s)"
            add.add_argument("name", nargs="?", choices=TRIES, default=CHOSEN, help=words)
        add.add_argument("--seed", type=int, default=0, help="default: %(default)s")
        if command == "final":
            add.add_argument("--photos", type=Path, help="tar to prepare first")
        if command == "try":
            add.add_argument(
                "--processes",
                type=int,
                default=1,
                help="of torchrun; --batch-size is that of each (default: %(default)s)",
            )
    commands.add_parser("table", help="print the rows as Markdown")
    return parser.parse_args(arguments)


def main() -> None:
    args = parse_arguments()
    actions = {"try": try_recipe, "test": test_recipe, "final": final}
    try:
        if args.command == "prepare":
            prepare(args.folder, args.photos, args.drawn)
        elif args.command == "table":
            print(table())
        else:
            actions[args.command](args)
    except (DataError, FileNotFoundError, tarfile.TarError) as error:
        sys.exit(f"error: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)


if __name__ == "__main__":
    main()
