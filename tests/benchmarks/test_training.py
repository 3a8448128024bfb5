import io
import json
import multiprocessing
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from benchmarks.training import __main__ as training
from benchmarks.training import finetune as training_finetune
from benchmarks.training import head as training_head
from benchmarks.training import loader as training_loader
from benchmarks.training import measure as training_measure
from benchmarks.training import recipe as training_recipe
from benchmarks.training import snapshots as training_snapshots
from benchmarks.training.finetune import OURS, ROWS, compare_finetune
from benchmarks.training.head import compare_head
from benchmarks.training.loader import NATIVE, compare_loader
from benchmarks.training.measure import (
    BenchmarkError,
    Clock,
    Comparison,
    Measured,
    Range,
    Scale,
    Side,
    compare,
    run_alone,
)
from benchmarks.training.photos import draw_photos, image_folder, native_entries, unpack_photos
from benchmarks.training.recipe import Work, fastest_workers
from benchmarks.training.report import describe, extrapolate, number, to_json
from benchmarks.training.snapshots import compare_snapshots
from common.dataset import DatasetError
from common.files import ROOT
from data_prep.folder import DataError, dataset_path
from data_prep.pack import pack
from data_prep.split import read_split
from data_prep.weights import save_weights
from training.learn import checkpoint, features, task
from training.learn.checkpoint import Snapshot, save_snapshot

TINY = Scale(
    photos=80,
    sides=range(64, 73),
    size=32,
    batch_size=4,
    warm_up=1,
    steps=1,
    passes=1,
    probed=8,
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder."""
    folder = tmp_path_factory.mktemp("native")
    draw_photos(folder, TINY.photos, TINY.sides)
    return folder


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process takes seconds to start; what sides set in theirs is taken back here."""
    threads = torch.get_num_threads()
    cores = os.sched_getaffinity(0) if sys.platform == "linux" else set()
    for module in (training_measure, training_recipe):
        monkeypatch.setattr(module, "run_alone", lambda run: run())
    for module in (training_finetune, training_head, training_loader):
        monkeypatch.setattr(module, "keep_freed_memory", lambda: None)
    yield
    torch.set_num_threads(threads)
    if sys.platform == "linux":
        os.sched_setaffinity(0, cores)


# --- arithmetic ---


def comparison(runs: dict[str, list[Measured]], reference: str = "theirs") -> Comparison:
    return Comparison(
        title="race",
        counted="All of it.",
        reference=reference,
        runs=runs,
        goals=dict.fromkeys(runs) | {"ours": 2.0},
    )


def seconds(*values: float, photos: int = 12) -> list[Measured]:
    return [Measured(photos=photos, seconds=value) for value in values]


def test_a_ratio_is_taken_within_a_round() -> None:
    # Rounds: 2, 3 and 4 times as fast; the machine was slow in the second.
    found = comparison({"ours": seconds(1, 12, 1), "theirs": seconds(2, 36, 4)})
    ratio = found.times_as_fast("ours")
    assert (ratio.median, ratio.least, ratio.most) == pytest.approx((3, 2, 4))
    assert found.seconds("theirs") == Range(median=4, least=2, most=36)
    assert found.rate("ours") == Range(median=12, least=1, most=12)
    assert found.times_as_fast("theirs") == Range(median=1, least=1, most=1)


@given(st.lists(st.tuples(*[st.floats(1e-3, 1e6)] * 2), min_size=1, max_size=9), st.integers(1, 99))
def test_a_ratio_is_of_photos_a_second_whatever_the_photos(
    rounds: list[tuple[float, float]], times: int
) -> None:
    ours, theirs = (seconds(*values) for values in zip(*rounds, strict=True))
    more = seconds(*(run.seconds * times for run in ours), photos=12 * times)
    ratios = [other / own for own, other in rounds]
    found = comparison({"ours": more, "theirs": theirs}).times_as_fast("ours")
    expected = (np.median(ratios), min(ratios), max(ratios))
    assert (found.median, found.least, found.most) == pytest.approx(expected)


def test_sides_take_turns_and_every_second_round_runs_backwards(
    in_this_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    order: list[str] = []

    def run(name: str) -> Measured:
        order.append(name)
        return Measured(photos=1, seconds=len(order))

    sides = [Side(name=name, run=partial(run, name), goal=None) for name in "abc"]
    found = compare("turns", sides, 3, counted="", reference="c")
    assert "".join(order) == "abccbaabc"
    assert [measured.seconds for measured in found.runs["a"]] == [1, 6, 7]
    out, err = capsys.readouterr()
    assert out == ""
    assert "turns, round 2 of 3: b" in err


def test_a_part_inside_another_counts_for_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    clock = Clock()

    @clock.part("export")
    def export() -> None:
        nonlocal now
        now += 5

    with clock.part("features"):
        now += 1
        export()
        export()
        now += 2
    now += 100  # off the clock
    with clock.part("head"):
        now += 4
    assert clock.parts == {"export": 10, "features": 3, "head": 4}
    assert clock.seconds == 17


# --- a process of its own ---


def tell_process() -> Measured:
    print("not for the table")
    usual = multiprocessing.get_start_method() == multiprocessing.get_all_start_methods()[0]
    return Measured(photos=os.getpid(), seconds=1, facts={"starts workers as usual": usual})


def test_a_run_has_a_process_of_its_own_that_leaves_stdout_alone(
    capfd: pytest.CaptureFixture[str],
) -> None:
    found = run_alone(tell_process)
    assert found.photos != os.getpid()
    assert found.facts["starts workers as usual"]
    out, err = capfd.readouterr()
    assert out == ""
    assert "not for the table" in err


def test_a_process_that_is_killed_is_one_line() -> None:
    with pytest.raises(BenchmarkError, match="out of memory"):
        run_alone(partial(os._exit, 9))


# --- the report ---


def test_the_table_has_ranges_ratios_goals_parts_and_facts() -> None:
    ours = [
        Measured(photos=100, seconds=s, parts={"pack": 1.0, "head": s - 1}, facts={"exact, %": 33})
        for s in (10.0, 12.5)
    ]
    theirs = [Measured(photos=100, seconds=s, parts={"training": s}) for s in (20.0, 50.0)]
    text = describe(comparison({"ours": ours, "theirs": theirs}))
    assert text.split("\n\n") == [
        "### Race",
        "All of it. Median (least–most) of 2; ratios within a round.",
        "|  | seconds | photos/s | times as fast | goal |\n"
        "| --- | --: | --: | --: | --: |\n"
        "| ours | 11.2 (10–12.5) | 9 (8–10) | 3 (2–4) | 2 |\n"
        "| theirs | 35 (20–50) | 3.5 (2–5) | 1 |  |",
        "| seconds of | pack | head | training |\n"
        "| --- | --: | --: | --: |\n"
        "| ours | 1 | 10.2 |  |\n"
        "| theirs |  |  | 35 |",
        "| also | exact, % |\n| --- | --: |\n| ours | 33 |",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0123456, "0.0123"), (9.876, "9.88"), (99.96, "100"), (123.4, "123"), (12345.6, "12,346")],
)
def test_numbers_have_three_digits_that_count(value: float, text: str) -> None:
    assert number(value) == text


def test_only_what_grows_with_the_photos_is_extrapolated() -> None:
    ours = Measured(photos=100, seconds=15, parts={"export": 5, "features": 10})
    theirs = Measured(photos=100, seconds=100, parts={"training": 100})
    text = extrapolate(comparison({"ours": [ours], "theirs": [theirs]}), ["export"], 1000)
    assert "ours 105 s (9.52 times as fast)" in text
    assert "theirs 1,000 s (1 times as fast)" in text
    assert "not measured" in text


def test_json_has_every_run() -> None:
    found = to_json(comparison({"ours": seconds(1, 2), "theirs": seconds(3, 4)}))
    ours = json.loads(json.dumps(found))["sides"]["ours"]
    assert [run["seconds"] for run in ours["runs"]] == [1, 2]
    assert ours["times_as_fast"] == {"median": 2.5, "least": 2, "most": 3}


# --- photos ---


def test_every_layout_holds_the_same_photos_on_the_same_side(photos: Path) -> None:
    split = {photo.id: photo for photo in read_split(photos).photos}
    entries = native_entries(photos)
    assert {entry.id for entry in entries} == split.keys()
    for entry in entries:
        photo = split[entry.id]
        linked = image_folder(photos, photo.side) / str(photo.count) / f"{photo.id}.jpg"
        content = linked.read_bytes()
        assert len(content) == entry.size
        assert entry.file.read_bytes()[entry.offset :] == content
    assert len(list((photos / "image-folder").rglob("*.jpg"))) == len(split)


def test_photos_out_of_a_tar_are_split_as_if_they_lay_in_a_folder(
    photos: Path, tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        for name in ("bin-images", "metadata"):
            tar.add(photos / name, name)
    unpack_photos(tmp_path / "photos.tar", tmp_path / "unpacked")
    assert read_split(tmp_path / "unpacked").photos == read_split(photos).photos


def test_a_tar_without_photos_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "photos.tar"
    file.write_bytes(b"<html>not found</html>" * 99)
    with pytest.raises(BenchmarkError, match="is not a tar of photos"):
        unpack_photos(file, tmp_path / "a")
    with tarfile.open(file, "w") as tar:
        tar.addfile(tarfile.TarInfo("README"), io.BytesIO())
    with pytest.raises(DataError, match="download more photos"):
        unpack_photos(file, tmp_path / "b")


# --- each comparison, small ---


def test_the_loader_is_compared_on_all_photos(photos: Path, in_this_process: None) -> None:
    entries = native_entries(photos)
    found = compare_loader("loader", NATIVE, entries, TINY, 1)
    total = len(entries)
    # A batch of training is full; what is left over waits for the next epoch.
    assert [runs[0].photos for runs in found.runs.values()] == [total, total // 4 * 4, total]
    assert found.times_as_fast("our loader").median > 0


def maps(network: nn.Module, inputs: Tensor) -> list[Tensor]:
    """What the convolutions answer."""
    answers: list[Tensor] = []
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, answer: answers.append(answer))
        for module in network.modules()
        if isinstance(module, nn.Conv2d) and module.groups == 1
    ]
    network(inputs)
    for hook in hooks:
        hook.remove()
    return [answer for answer in answers if answer.shape[2] > 1]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_weights("efficientnet_lite0", tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def packed(photos: Path) -> Path:
    pack(photos, "squashed", size=TINY.size, workers=1)
    return dataset_path(photos, "squashed")


@pytest.mark.parametrize("name", ["plain PyTorch, float32, NCHW", "our trainer", "+ channels_last"])
def test_feature_maps_lie_in_memory_as_the_row_says(packed: Path, weights: Path, name: str) -> None:
    network, source, _ = training_finetune.prepare(
        packed,
        weights,
        "efficientnet_lite0",
        ROWS[name],
        TINY,
        threads=1,
        device=torch.device("cpu"),
    )
    wanted = torch.channels_last if ROWS[name].channels_last else torch.contiguous_format
    batch = next(iter(source.batches(0, 0)))
    found = maps(network, batch.inputs)
    assert len(found) > 10
    assert all(answer.is_contiguous(memory_format=wanted) for answer in found)


def test_fine_tuning_is_compared_row_by_row(
    packed: Path, weights: Path, in_this_process: None
) -> None:
    found = compare_finetune(
        packed, weights, "efficientnet_lite0", TINY, 1, threads=1, compiled=False
    )
    assert list(found.runs) == [name for name in ROWS if name != training_finetune.COMPILED]
    assert [name for name, goal in found.goals.items() if goal] == [OURS]
    assert all(run.photos == TINY.steps * TINY.batch_size for (run,) in found.runs.values())


def test_steps_with_snapshots_are_compared_with_steps_without(
    packed: Path, weights: Path, in_this_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[Path] = []

    def save(folder: Path, snapshot: Snapshot) -> Path:
        saved.append(save_snapshot(folder, snapshot))
        return saved[-1]

    monkeypatch.setattr(checkpoint, "save_snapshot", save)
    monkeypatch.setattr(training_snapshots, "SECONDS", 1e-9)
    found = compare_snapshots(packed, weights, "efficientnet_lite0", TINY, 1, threads=1)
    assert saved
    without, with_snapshots = found.runs.values()
    assert without[0].photos == with_snapshots[0].photos
    assert list(found.goals.values()) == [None, training_snapshots.GOAL]


def test_fewer_photos_than_a_batch_are_one_line(packed: Path, weights: Path) -> None:
    with pytest.raises(DatasetError, match="less than one batch of 100: prepare more photos"):
        training_finetune.prepare(
            packed,
            weights,
            "efficientnet_lite0",
            ROWS[OURS],
            replace(TINY, batch_size=100),
            threads=1,
            device=torch.device("cpu"),
        )


class Grid(nn.Module):
    """Pixels → features [N, 192]: every eighth of them."""

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels[:, 2::4, 2::4].float().flatten(1) / 255


@pytest.fixture
def work(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Work:
    """Backbones that take no time."""
    monkeypatch.setattr(task, "load_backbone", lambda *_, **__: Grid())
    as_it_is = lambda grid, *_: lambda pixels: grid(torch.from_numpy(pixels)).numpy()  # noqa: E731
    monkeypatch.setattr(features, "_in_torch", as_it_is)
    monkeypatch.setattr(training_recipe, "load_network", lambda *_: nn.Flatten())
    file = tmp_path / "weights.pth"
    file.write_bytes(b"none")
    return Work(
        photos=photos,
        weights=file,
        arch="resnet50",
        size=TINY.size,
        threads=1,
        judged=True,
        probed=8,
    )


def test_head_mode_is_compared_on_the_same_photos(
    work: Work, in_this_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_head, "has_vnni", lambda: False)
    monkeypatch.setattr(training_head, "fastest_workers", lambda _: 0)
    found = compare_head("head", work, 1)
    assert len(found.runs) == 4  # int8 needs VNNI
    split = read_split(work.photos).photos
    for (run,) in found.runs.values():
        assert run.photos == sum(photo.side == "train" for photo in split)
        assert run.facts["test photos"] == sum(photo.side == "test" for photo in split)
        assert run.facts["from"] <= run.facts["exact, %"] <= run.facts["to"]
        assert run.seconds == pytest.approx(sum(run.parts.values()))
    (ours,) = found.runs["head mode, float32 backbone"]
    assert ours.parts.keys() == {"pack", "export", "features", "head"}


@pytest.mark.parametrize("fastest", [0, 2])
def test_the_recipe_gets_the_workers_it_is_faster_with(
    work: Work, monkeypatch: pytest.MonkeyPatch, fastest: int
) -> None:
    def run(side: "partial[Measured]") -> Measured:
        assert side.keywords["most"] == 8
        needed = 1 if side.keywords["workers"] == fastest else 2
        return Measured(photos=8, seconds=needed, parts={"training": needed})

    monkeypatch.setattr(training_recipe, "run_alone", run)
    assert fastest_workers(work) == fastest


def test_the_recipe_trains_its_head_alone_and_batch_norm_as_told(
    work: Work, in_this_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: tuple[Literal["eval", "train"], ...] = ("eval", "train")
    for mode in modes:
        norm = nn.BatchNorm2d(3)
        backbone = nn.Sequential(norm, nn.Flatten()).requires_grad_(False)
        monkeypatch.setattr(training_recipe, "load_network", lambda *_, b=backbone: b)
        training_recipe.run_recipe(work, batch_norm=mode, workers=0, epochs=1)
        assert norm.running_mean is not None
        moved = bool(norm.running_mean.abs().sum() > 0)
        assert moved == (mode == "train")
        assert norm.weight.eq(1).all()


# --- the command ---


def test_a_mistake_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments, words in (
        (["loader", "--native", "nowhere.tar"], "nowhere.tar"),
        (["head", "--resnet50-weights", "nowhere.pth"], "no weights at nowhere.pth"),
    ):
        with pytest.raises(SystemExit) as end:
            training.main(arguments)
        message = str(end.value.code)
        assert message.startswith("error: ")
        assert words in message
        assert "\n" not in message


@pytest.mark.slow
def test_the_command_prints_tables_and_writes_every_run(tmp_path: Path) -> None:
    file = tmp_path / "results" / "all.json"
    command = [sys.executable, "-m", "benchmarks.training", "all", "--quick", "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    written = json.loads(file.read_text())
    titles = [found["title"] for found in written["comparisons"]]
    assert titles == [
        "loader",
        "finetune resnet50",
        "finetune efficientnet_lite0",
        "snapshots efficientnet_lite0",
        "head",
    ]
    for found in written["comparisons"]:
        assert f"\n| {found['reference']} | " in done.stdout
    assert "%|" not in done.stdout  # progress goes to stderr
