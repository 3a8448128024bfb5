"""Our server under load, and the same work without it."""

import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks.measure import BenchmarkError, Measured
from benchmarks.serving import __main__ as serving
from benchmarks.serving.__main__ import describe, main, measure, read_photos
from benchmarks.serving.load import Connection, load
from benchmarks.serving.sides import running, without_server
from rehearsal.aws.waiting import NotReadyError
from tests.support.tiny_model import SIZE, grey_photo, write_tiny_model

PHOTOS = [grey_photo(count) for count in range(1, 6)]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "model", size=SIZE)


@pytest.fixture
def silent_server() -> Iterator[int]:
    """Takes one request and closes the connection in the middle of its answer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab")

        thread = threading.Thread(target=answer)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


def test_answers_of_a_real_server_are_counted(model: Path, tmp_path: Path) -> None:
    with running(model, "float32", PHOTOS[0], tmp_path) as started:
        found = load(started.port, PHOTOS, clients=3, warm_up=0.1, seconds=0.3)
        megabytes = started.megabytes()
    assert not started.process.is_running()
    assert 0 < started.first_answer < 30
    assert found.photos > 3
    assert found.rate == pytest.approx(found.photos / 0.3)
    assert 0 < found.facts["p50 ms"] <= found.facts["p99 ms"] < 300
    assert 20 < megabytes < 1000


def test_a_refusal_is_no_answer(model: Path, tmp_path: Path) -> None:
    with running(model, "float32", PHOTOS[0], tmp_path) as started:
        with (
            closing(Connection(started.port)) as connection,
            pytest.raises(BenchmarkError, match=r"/predict answered .* 404 "),
        ):
            connection.send(PHOTOS[0], path="/predict")
        with pytest.raises(BenchmarkError, match=r"under load: .*/invocations answered .* 400 "):
            load(started.port, [b"no photo"], clients=2, warm_up=0, seconds=0.2)


def test_half_an_answer_is_no_answer(silent_server: int) -> None:
    with (
        closing(Connection(silent_server)) as connection,
        pytest.raises(BenchmarkError, match="closed the connection"),
    ):
        connection.send(PHOTOS[0])


def test_a_server_that_ends_is_told_with_its_last_words(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with (
        pytest.raises(NotReadyError, match=r"the server ended with exit code 1 .*model\.json"),
        running(tmp_path / "model", "float32", PHOTOS[0], tmp_path),
    ):
        pass


def test_the_work_without_a_server_is_that_of_the_server(model: Path) -> None:
    found = without_server(model, "float32", PHOTOS, clients=8, seconds=0.1)
    assert found.photos > 10
    assert found.seconds >= 0.1


@pytest.mark.parametrize("backwards", [False, True])
def test_every_second_round_goes_backwards(
    backwards: bool, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "run_alone", lambda run: run())
    monkeypatch.setattr(serving, "WARM_UP", 0.01)
    monkeypatch.setattr(serving, "PRECISIONS", ("float32",))
    found = measure(model, PHOTOS, 0.1, tmp_path, backwards=backwards)
    expected = ["float32", "float32 without a server"]
    assert [(name, clients) for name, clients, _ in found] == [
        (name, clients)
        for name in (reversed(expected) if backwards else expected)
        for clients in (1, 8, 32)
    ]


def test_the_table_shows_the_overhead_within_a_round() -> None:
    def run(photos: int, milliseconds: float, **more: float) -> Measured:
        facts = {"p50 ms": milliseconds, "p99 ms": 2 * milliseconds}
        return Measured(photos=photos, seconds=1.0, facts=facts | more)

    def served(photos: int, megabytes: float) -> Measured:
        return run(photos, 5.0, **{"MB": megabytes, "first answer s": 0.4})

    text = describe(
        {
            "int8": [served(90, 120), served(99, 130), served(45, 110)],
            "int8 without a server": [run(100, 8), run(110, 8), run(50, 8)],
        }
    )
    assert "| int8 | 90 (45–99) | 5 | 10 | 120 (110–130) | 0.4 | 10 % (10–10) |" in text
    assert "| int8 without a server | 100 (50–110) | 8 | 16 |  |  |  |" in text


def test_a_file_without_photos_is_one_line(tmp_path: Path, bins_tar: Path) -> None:
    assert len(read_photos(bins_tar)) > 20
    file = tmp_path / "photos.tar"
    file.write_bytes(b"<html>not found</html>" * 99)
    with pytest.raises(SystemExit, match=r"^error: .*is not a tar of photos") as end:
        main(["--native", str(file)])
    assert "\n" not in str(end.value.code)
    with pytest.raises(SystemExit, match=r"^error: .*nowhere\.tar"):
        main(["--native", "nowhere.tar"])


@pytest.mark.slow
def test_the_command_prints_a_table_for_each_number_of_clients(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["--quick"])
    printed = capsys.readouterr().out
    for name in ("float32", "int8", "float32 without a server", "int8 without a server"):
        assert printed.count(f"\n| {name} | ") == 3
