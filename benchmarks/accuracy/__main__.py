"""How accurately recipes count. Every try becomes a row of a table, whether it paid off or not.

Photos come as a tar laid out as the public bucket: bin-images/`<id>`.jpg, metadata/`<id>`.json.
A try trains on four fifths of the products of the training side and is judged on the last fifth;
only `test` uses the test photos. Rows are kept in benchmarks/accuracy/tries.jsonl.

    python -m benchmarks.accuracy prepare --photos abid-224.tar
    python -m benchmarks.accuracy try head --seed 1
    python -m benchmarks.accuracy table
    python -m benchmarks.accuracy test
    python -m benchmarks.accuracy final --photos abid-224.tar
"""

import json
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter
from cyclopts.validators import LimitedChoice

from benchmarks.measure import machine
from common.command import interruptible
from common.flags import NonNegativeInt, PositiveInt, command_line
from common.storage import pack_files
from data_prep.folder import DataError, start_selection, write_selection
from data_prep.pack import pack
from data_prep.split import split_folder
from data_prep.synthetic import synthesize
from data_prep.weights import save_weights

ROWS = Path(__file__).with_name("tries.jsonl")
DATASET = "bins"
VALIDATION = "0.2"  # of the training side's products
COUNTS = range(1, 6)
SIDE = 224  # of a synthetic photo, pixels

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
# On validation; five networks are better still, but take over an hour to train on all photos.
CHOSEN = "lite2-members-4"

APP = command_line("python -m benchmarks.accuracy", __doc__)
PHOTOS_FROM = Group("Photos", validator=LimitedChoice(min=1))

Folder = Annotated[Path, Parameter(help="Folder of the data set and the runs.")]
Seed = Annotated[NonNegativeInt, Parameter(help="Random seed of the training.")]
Recipe = Annotated[str, Parameter(help="Name of the recipe.", choices=TRIES)]
FOLDER = Path(".accuracy")


@APP.command
def prepare(
    *,
    photos: Annotated[Path | None, Parameter(group=PHOTOS_FROM)] = None,
    drawn: Annotated[PositiveInt | None, Parameter(group=PHOTOS_FROM)] = None,
    folder: Folder = FOLDER,
) -> None:
    """Make the data set: unpack or draw photos, split them by product and pack them.

    Parameters
    ----------
    photos
        A tar of photos and metadata.
    drawn
        Number of synthetic photos to draw instead.
    """
    if photos:
        start_selection(folder)
        with tarfile.open(photos) as tar:
            tar.extractall(folder, filter="data")
        ids = sorted(file.stem for file in (folder / "bin-images").glob("*.jpg"))
        write_selection(folder, ids, [])
    elif drawn:
        synthesize(folder, drawn, 0, sides=range(SIDE, SIDE + 1))
    split_folder(folder, COUNTS)
    pack(folder, DATASET)
    for arch in ("efficientnet_lite0", "efficientnet_lite2"):
        save_weights(arch, folder / "weights")


@APP.command(name="try")
def try_recipe(
    name: Recipe, /, *, seed: Seed = 0, processes: PositiveInt = 1, folder: Folder = FOLDER
) -> None:
    """Train a recipe and judge it on the validation photos.

    Parameters
    ----------
    processes
        Number of processes that torchrun starts; --batch-size is that of each.
    """
    output = folder / "tries" / f"{name}-{seed}-{processes}"
    more = ("--skip-test", "--validation-fraction", VALIDATION, "--seed", str(seed))
    seconds = train(name, folder, output, *more, processes=processes)
    keep_row({**row(name, output, seconds, seed, "validation"), "processes": processes})


@APP.command(name="test")
def test_recipe(name: Recipe = CHOSEN, /, *, seed: Seed = 0, folder: Folder = FOLDER) -> None:
    """Train the chosen recipe and judge it on the test photos."""
    output = folder / "tests" / f"{name}-{seed}"
    seconds = train(name, folder, output, "--seed", str(seed))
    keep_row(row(name, output, seconds, seed, "test"))


@APP.command
def final(
    name: Recipe = CHOSEN,
    /,
    *,
    photos: Path | None = None,
    seed: Seed = 0,
    folder: Folder = FOLDER,
) -> None:
    """Train the chosen recipe on all photos, and write model.tar.gz.

    Parameters
    ----------
    photos
        A tar of photos to prepare first.
    """
    if photos:
        prepare(photos=photos, folder=folder)
    output = folder / "final"
    train(name, folder, output, "--train-on", "all", "--seed", str(seed))
    archive = output / "model.tar.gz"
    pack_files(archive, sorted((output / "model").iterdir()))
    print(archive)


@APP.command(name="table")
def print_table() -> None:
    """Print the rows as a Markdown table."""
    print(table())


def train(name: str, folder: Path, output: Path, *more: str, processes: int = 1) -> float:
    """Run training.train with the flags of a recipe; returns the seconds it took."""
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
    """One line of tries.jsonl."""
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
        "machine": machine(),
    }


def figures(judged: dict[str, Any]) -> dict[str, Any]:
    """The figures of a row, from one side in metrics.json."""
    with_products = judged.get("with_products")  # absent if no record names products
    return {
        "photos": judged["photos"],
        "exact": judged["accuracy"],
        "within_one": judged["within_one"],
        "mae": judged["mae"],
        "rmse_of_mean": judged["rmse_of_mean"],
        "loss": round(judged["cross_entropy"], 4),
        "calibration_error": judged["calibration"]["expected_calibration_error"],
        "auroc": judged["inventory"].get("auroc"),
        "with_products": with_products
        and {
            "exact": with_products["accuracy"],
            "within_one": with_products["within_one"],
            "rmse_of_mean": with_products["rmse_of_mean"],
            "loss": round(with_products["cross_entropy"], 4),
            "number_alone": with_products["number_alone"],
        },
    }


def keep_row(line: dict[str, Any]) -> None:
    with ROWS.open("a") as stream:
        stream.write(json.dumps(line) + "\n")


def table() -> str:
    """The rows as a Markdown table, in the order in which they were made."""
    lines = [
        "| try | flags | exact, 95 % | within one | RMSE | loss | AUROC "
        "| with products: exact, 95 % | RMSE | minutes |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for text in ROWS.read_text().splitlines():
        found = json.loads(text)
        exact, with_products = found["exact"], found.get("with_products")
        cells = [
            name_of(found),
            f"`{found['flags']}`",
            share(exact),
            f"{found['within_one']:.1%}",
            f"{found['rmse_of_mean']:.3f}",
            f"{found['loss']:.3f}",
            "" if found["auroc"] is None else f"{found['auroc']['value']:.3f}",
            share(with_products["exact"]) if with_products else "",
            f"{with_products['rmse_of_mean']:.3f}" if with_products else "",
            f"{found['minutes']:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def share(of: dict[str, float]) -> str:
    return f"{of['value']:.1%} ({of['low']:.1%}–{of['high']:.1%})"


def name_of(found: dict[str, Any]) -> str:
    """The name of a row's recipe, and what was special about the try."""
    processes = found.get("processes", 1)
    special = [
        f"seed {found['seed']}" if found["seed"] else "",
        f"{processes} processes" if processes > 1 else "",
        "test photos" if found["side"] == "test" else "",
    ]
    return ", ".join([found["try"], *filter(None, special)])


@interruptible()
def main(arguments: list[str] | None = None) -> None:
    try:
        APP(arguments)
    except (DataError, FileNotFoundError, tarfile.TarError) as error:
        sys.exit(f"error: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)


if __name__ == "__main__":
    main()
