import os
import signal
import socket
from pathlib import Path

import pytest

from serving.container import cores as cores_module
from serving.container.cores import available_cores
from serving.container.server import listen, main, parse_arguments
from tests.support.tiny_model import write_tiny_model


@pytest.mark.parametrize(
    ("environment", "flags", "port"),
    [
        ({}, [], 8080),
        ({"SERVING_PORT": "9000"}, [], 9000),
        ({"SERVING_PORT": "9000", "SAGEMAKER_BIND_TO_PORT": "9001"}, [], 9001),
        ({"SERVING_PORT": "9000", "SAGEMAKER_BIND_TO_PORT": "9001"}, ["--port", "0"], 0),
    ],
)
def test_a_flag_wins_over_sagemaker_over_our_variable(
    environment: dict[str, str], flags: list[str], port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SERVING_PORT", "SAGEMAKER_BIND_TO_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert parse_arguments(flags).port == port


def test_it_listens_on_this_machine_alone_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SERVING_HOST", raising=False)
    assert parse_arguments([]).host == "127.0.0.1"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--port", "70000"], 'value "70000" for --port. Must be <= 65535.'),
        (["--port", "80.5"], '--port: "80.5" is not a whole number'),
        (["--port", "http"], '--port: "http" is not a whole number'),
        (["--threads", "0"], 'value "0" for --threads. Must be > 0.'),
        (["--queue", "0"], 'value "0" for --queue. Must be > 0.'),
        (["--review-below", "2"], "for --review-below. Must be <= 1."),
        (["--review-below", "nan"], "for --review-below. Must be <= 1."),
        (["--review-below", "10%"], '--review-below: unable to convert "10%" into float.'),
        (["--threads", "1000000"], 'value "1000000" for --threads. This machine has'),
        (["--precision", "int4"], 'value "int4" for --precision. Choose from: "auto",'),
        (["--model"], "--model requires an argument"),
    ],
)
def test_a_wrong_setting_is_named(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_arguments(flags)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("SERVING_PORT", "70000", 'value "70000" for SERVING_PORT provided by env'),
        ("SERVING_QUEUE", "many", 'SERVING_QUEUE: "many" is not a whole number'),
        ("SERVING_REVIEW_BELOW", "2", "for SERVING_REVIEW_BELOW provided by env. Must be <= 1."),
        ("SERVING_PRECISION", "int4", 'value "int4" for SERVING_PRECISION from env'),
        ("SERVING_THREADS", "1000000", "for SERVING_THREADS provided by env. This machine has"),
    ],
)
def test_a_wrong_variable_is_named(
    name: str,
    value: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        parse_arguments([])
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_slip_in_the_name_of_a_variable_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SERVING_QEUE", "3")
    monkeypatch.setenv("SERVING_QUEUE", "3")
    parse_arguments([])
    assert capsys.readouterr().err == "warning: SERVING_QEUE is no setting of this server\n"


def test_every_setting_has_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {
        "SERVING_MODEL_DIR": "/models",
        "SERVING_HOST": "0.0.0.0",
        "SERVING_PORT": "9000",
        "SERVING_PRECISION": "float32",
        "SERVING_THREADS": "2",
        "SERVING_QUEUE": "3",
        "SERVING_REVIEW_BELOW": "0.5",
    }
    monkeypatch.delenv("SAGEMAKER_BIND_TO_PORT", raising=False)
    for name, value in wanted.items():
        monkeypatch.setenv(name, value)
    found = parse_arguments([])
    assert (found.model, found.host, found.port) == ("/models", "0.0.0.0", 9000)
    assert (found.precision, found.threads, found.queue) == ("float32", 2, 3)
    assert found.review_below == 0.5
    assert not found.page


@pytest.fixture
def _signals_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)


@pytest.mark.usefixtures("_signals_kept")
def test_a_missing_model_ends_the_start_with_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^error: .*none: no such model folder.*$"):
        main(["--model", str(tmp_path / "none")])


@pytest.mark.usefixtures("_signals_kept")
def test_an_address_that_is_not_ours_ends_the_start_with_one_line(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path)
    with pytest.raises(SystemExit, match=r"^error: cannot listen on 192\.0\.2\.1:0: .+$"):
        main(["--model", str(folder), "--host", "192.0.2.1", "--port", "0"])


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 4), ("150000 100000", 2), ("50000 100000", 1), ("odd", 4)]
)
def test_no_more_cores_are_used_than_a_container_may(
    quota: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(cores_module, "CPU_QUOTA", tmp_path / "cpu.max")
    (tmp_path / "cpu.max").write_text(quota)
    assert available_cores() == cores


def test_each_piece_of_an_answer_is_sent_at_once() -> None:
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
