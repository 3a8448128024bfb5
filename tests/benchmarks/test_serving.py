import re
import shutil
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks.serving import __main__ as serving
from benchmarks.serving.__main__ import Bare, bare, main, measure
from benchmarks.serving.load import Connection, Target, load
from benchmarks.serving.models import Models
from benchmarks.serving.report import Result, describe
from benchmarks.serving.servers import Server, installed_megabytes, ours, running
from benchmarks.training.measure import BenchmarkError, Measured
from tests.support.tiny_model import SIZE, grey_photo, write_tiny_model

PHOTOS = [grey_photo(count) for count in range(1, 6)]


@pytest.fixture
def models(tmp_path: Path) -> Models:
    return Models(write_tiny_model(tmp_path / "model", size=SIZE), tmp_path / "none.pth")


@pytest.fixture
def silent_server() -> Iterator[Target]:
    """Takes one request and closes the connection in the middle of its answer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab")

        thread = threading.Thread(target=answer)
        thread.start()
        yield Target(listener.getsockname()[1], "/")
        thread.join()


def test_answers_of_a_real_server_are_counted(models: Models, tmp_path: Path) -> None:
    server = ours(models, "ours")
    with running(server, PHOTOS[0], tmp_path / "log") as started:
        found = load(server.target, PHOTOS, clients=3, warm_up=0.1, seconds=0.3)
        megabytes = started.megabytes()
    assert not started.process.is_running()
    assert 0 < started.first_answer < 30
    assert found.photos > 3
    assert found.rate == pytest.approx(found.photos / 0.3)
    assert 0 < found.facts["p50 ms"] <= found.facts["p99 ms"] < 300
    assert 20 < megabytes < 1000


def test_a_refusal_under_load_is_no_answer(models: Models, tmp_path: Path) -> None:
    server = ours(models, "ours")
    elsewhere = Target(server.target.port, "/predict")
    with (
        running(server, PHOTOS[0], tmp_path / "log"),
        pytest.raises(BenchmarkError, match=r"/predict answered .* 404 "),
    ):
        load(elsewhere, PHOTOS, clients=2, warm_up=0, seconds=0.2)


def test_half_an_answer_is_no_answer(silent_server: Target) -> None:
    with (
        closing(Connection(silent_server)) as connection,
        pytest.raises(BenchmarkError, match="closed the connection"),
    ):
        connection.send(PHOTOS[0])


def test_a_server_that_ends_is_told_with_its_last_words(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no model here')"]
    server = Server(name="broken", command=command, target=Target(1, "/"), packages=())
    with (
        pytest.raises(BenchmarkError, match="broken does not answer: no model here"),
        running(server, PHOTOS[0], tmp_path / "log"),
    ):
        pass


def test_the_work_without_a_server_is_that_of_the_server(models: Models) -> None:
    found = bare(models, "float32", 2, PHOTOS, clients=8, seconds=0.1)
    assert found.photos > 10
    assert found.photos % 2 == 0
    assert found.seconds >= 0.1


def test_software_is_counted_with_all_that_it_needs_but_cuda() -> None:
    def size(*packages: str, besides: tuple[Path, ...] = ()) -> float:
        return installed_megabytes(
            Server(name="", command=(), target=Target(1, ""), packages=packages, besides=besides)
        )

    assert 20 < size("onnxruntime") < 200
    assert size("onnxruntime", "numpy") == size("onnxruntime")  # which needs it
    assert size("onnxruntime") < size("torch") < 2000
    assert size() == 0
    assert 0 < size(besides=(Path(serving.__file__).parent,)) < 1


def test_sides_take_turns_and_every_second_round_goes_backwards(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "run_alone", lambda run: run())
    sides = [Bare(name=name, precision="float32") for name in ("one", "two")]
    found = measure(sides, models, PHOTOS, repeats=2, seconds=0.01, folder=tmp_path)
    names = [(name, clients) for name, clients, _ in found]
    assert names == [
        (name, clients) for name in ("one", "two", "two", "one") for clients in (1, 8, 32)
    ]


def test_the_report_compares_within_a_round() -> None:
    def run(photos: int, milliseconds: float) -> Measured:
        facts = {"p50 ms": milliseconds, "p99 ms": 2 * milliseconds}
        return Measured(photos=photos, seconds=1.0, facts=facts)

    def served(photos: int, megabytes: float) -> Measured:
        facts = {"p50 ms": 5.0, "p99 ms": 9.0, "MB": megabytes, "first answer s": 0.4}
        return Measured(photos=photos, seconds=1.0, facts=facts)

    text = describe(
        Result(
            runs={
                8: {
                    "ours, int8": [served(90, 120), served(99, 130), served(45, 110)],
                    "slow": [served(10, 900), served(11, 900), served(5, 900)],
                    "int8 without a server": [run(100, 8), run(110, 8), run(50, 8)],
                }
            },
            reference="slow",
            disk={"ours, int8": 150.0, "slow": 1100.0},
            models={"model.onnx": 94.2},
        )
    )
    assert "### 8 clients" in text
    assert "| ours, int8 | 90 (45–99) | 9 | 5 | 9 | 120 (110–130) | 10 % (10–10) |" in text
    assert "| slow | 10 (5–11) | 1 | 5 | 9 | 900 |  |" in text
    assert "| slow | 0.4 | 1,100 |" in text


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("java"), reason="TorchServe needs Java, not found here")
def test_every_server_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["rivals", "--quick", "--json", str(tmp_path / "found.json")])
    printed = capsys.readouterr().out
    for name in ("ours, int8", "TorchServe", "FastAPI", "Ray Serve", "int8 without a server"):
        assert len(re.findall(f"^.{{2}}{name}", printed, re.MULTILINE)) >= 3
    assert (tmp_path / "found.json").exists()
