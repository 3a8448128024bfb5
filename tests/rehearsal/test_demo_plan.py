"""How many photos the demo takes on which machine, where it puts them, and what it shows."""

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.folder import metadata_path, photo_path
from rehearsal import bins, speed
from rehearsal.aws.wheels import pack_installed
from rehearsal.bins import lay_out
from rehearsal.screen import Screen
from rehearsal.speed import FEWEST, make_plan, measure_speed


@given(speed=st.floats(0.02, 20), goal=st.floats(60, 600), others=st.floats(10, 200))
def test_a_plan_keeps_to_its_goal_or_takes_the_fewest_photos(
    speed: float, goal: float, others: float
) -> None:
    speeds = {"speed": speed, "speed_of_one": speed}
    plan = make_plan(goal=goal, others=others, most=6749, asked=None, **speeds)
    assert FEWEST <= plan.photos <= 6749
    assert plan.seconds <= goal or plan.photos == FEWEST


@given(slow=st.floats(0.02, 20), factor=st.floats(1, 10))
def test_a_faster_machine_takes_no_fewer_photos(slow: float, factor: float) -> None:
    plans = [
        make_plan(goal=240, others=90, most=6749, asked=None, speed=each, speed_of_one=each)
        for each in (slow, slow * factor)
    ]
    assert plans[0].photos <= plans[1].photos


def test_so_many_photos_as_are_asked_for() -> None:
    plan = make_plan(goal=90, others=90, most=800, asked=5000, speed=1.0, speed_of_one=1.0)
    assert plan.photos == 5000
    assert plan.seconds == pytest.approx(90 + 5000 / speed.REFERENCE_PHOTOS)


def test_more_cores_make_only_the_features_faster() -> None:
    plan = make_plan(goal=240, others=90, most=6749, asked=None, speed=16.0, speed_of_one=1.0)
    assert plan.photos == 6749
    assert plan.seconds == pytest.approx(90 + 6749 / (16 * speed.REFERENCE_PHOTOS))


def test_the_slowest_slice_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    slices = iter([115.0, 57.5, 230.0, 115.0])
    monkeypatch.setattr(speed, "_passes_a_second", lambda session, pixels: next(slices))
    assert measure_speed() == 0.5


def test_the_speed_of_this_machine_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "SLICE_SECONDS", 0.01)
    assert measure_speed() > 0


@pytest.mark.parametrize("packed", [True, False])
def test_the_first_photos_are_to_be_downloaded_and_the_others_are_there(
    packed: bool, bins_tar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bins, "DOWNLOADED", 5)
    source = bins_tar if packed else bins_tar.parent
    public, data = tmp_path / "public", tmp_path / "data"
    ids = lay_out(source, 20, public=public, data=data)
    assert len(ids) == 20
    assert (public / "ids.txt").read_text().split() == ids
    for number, photo in enumerate(ids):
        for here in (public, data):
            expected = (here == public) == (number < 5)
            assert photo_path(here, photo).exists() is expected
            assert metadata_path(here, photo).exists() is expected
    with tarfile.open(bins_tar) as tar:
        content = tar.extractfile(f"bin-images/{ids[7]}.jpg")
        assert content
        assert photo_path(data, ids[7]).read_bytes() == content.read()


def test_a_step_takes_a_line_and_the_rest_is_in_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Screen(tmp_path / "log") as screen:
        with screen.step("stacks", 10) as task:
            screen.note("cdk deploy")
            screen.describe(task, "stacks deployed")
        screen.say("done")
    shown = capsys.readouterr().out.splitlines()
    assert [line.split() for line in shown] == [["stacks", "deployed", "0", "s"], ["done"]]
    assert "cdk deploy" in (tmp_path / "log").read_text()


def test_a_packed_package_installs_and_has_the_same_hash_each_time(tmp_path: Path) -> None:
    wheel, again = (pack_installed("tqdm", tmp_path / name) for name in ("a", "b"))
    assert wheel.read_bytes() == again.read_bytes()
    target = tmp_path / "target"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-index"]
    subprocess.run([*pip, "--no-deps", "--target", target, wheel], check=True, capture_output=True)
    script = "import tqdm; print(tqdm.__file__, tqdm.__version__)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(str(target))
