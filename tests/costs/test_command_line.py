"""The command line: what a user types, and errors of one line."""

import re
import subprocess
import sys

import pytest

from costs.__main__ import main
from costs.prices import load_prices


def test_estimate_prints_the_bill_its_total_its_basis_and_its_sources(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["estimate", "--photos", "8000", "--arch", "resnet50"])
    printed = capsys.readouterr().out
    assert re.search(r"^about 9 minutes, \$0\.\d{4}$", printed, re.MULTILINE)
    assert re.search(r"^c7i.large, spot .* hour +0\.\d{5} ", printed, re.MULTILINE)
    assert re.search(r"^total +0\.\d{4}$", printed, re.MULTILINE)
    assert "basis: boot 180 s" in printed
    assert f"source: {load_prices().machine_hour('c7i.large', 'spot').basis}" in printed


def test_compare_prints_aligned_rows(capsys: pytest.CaptureFixture[str]) -> None:
    main(["compare", "--seconds", "3600", "--instance-type", "m7i.large"])
    header, *rows = capsys.readouterr().out.split("\n\n")[1].splitlines()[:7]
    column = header.index("$") + 1
    assert [row[:column].split()[-1] for row in rows][-2:] == ["0.3500", "9.8300"]
    assert rows[0].startswith("EC2 spot")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "--run-id", "r1", "--seconds", "60"], "give either --seconds, or runs"),
        (["compare"], "bin-counter-DataStack is not deployed here"),
        (["compare", "--bucket", "ours"], "bin-counter-TrainStack is not deployed here"),
        (["compare", "--seconds", "60", "--instance-type", "x9.huge"], "no spot price"),
        (
            ["compare", "--seconds", "60", "--endpoint-instance-type", "ml.x9"],
            "no hosting price for 'ml.x9'",
        ),
        (["compare", "--run-id", "r1", "--bucket", "ours"], "runs/r1/request.json does not exist"),
        (["compare", "--run-id", "r1", "--bucket", "not-ours"], "NoSuchBucket"),
        (["actual", "r1", "--bucket", "ours"], "runs/r1/status.json does not exist"),
        (["accuracy", "--bucket", "ours"], "no run has succeeded yet"),
        (["accuracy", "--bucket", "not-ours"], "NoSuchBucket"),
        (["idle", "-c", "endpoint"], "should look like -c name=value"),
        (["idle", "-c", "endpoint=both"], "setting endpoint='both'"),
    ],
)
@pytest.mark.usefixtures("client")
def test_a_user_error_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    error = [line for line in capsys.readouterr().err.splitlines() if "synthesizing" not in line]
    assert caught.value.code == 1
    assert len(error) == 1
    assert message in error[0]


@pytest.mark.parametrize(
    "arguments",
    [
        ["estimate", "--photos", "0"],
        ["idle", "--runs", "-1"],
        ["compare", "--seconds", "60", "--call-seconds", "nan"],
        ["compare", "--seconds", "60", "--call-seconds", "inf"],
    ],
)
def test_a_number_out_of_range_is_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    flag, value = arguments[-2:]
    error = capsys.readouterr().err
    limit = "< inf" if value in ("nan", "inf") else ">= 1"
    assert error == f'error: Invalid value "{value}" for {flag}. Must be {limit}.\n'


def test_a_word_instead_of_a_number_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["compare", "--seconds", "60", "--call-seconds", "soon"])
    assert caught.value.code == 2
    assert '--call-seconds: unable to convert "soon" into float' in capsys.readouterr().err


def test_ctrl_c_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def press_ctrl_c(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("costs.__main__.print_estimate", press_ctrl_c)
    with pytest.raises(SystemExit) as caught:
        main(["estimate", "--photos", "8000"])
    assert caught.value.code == 130
    assert capsys.readouterr().err == "\nstopped\n"


def test_a_training_machine_can_import_its_part_with_the_packages_that_it_has() -> None:
    script = (
        "import sys; before = set(sys.modules); import costs.estimate, costs.prices; "
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before}"
        " - set(sys.stdlib_module_names))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert set(run.stdout.split()) == {"common", "costs"}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], "20 epochs at"),
        (["--mode", "finetune"], "(5 epochs, 1,000 photos"),
        (["--mode", "finetune", "--epochs", "7", "--ensemble-size", "4"], "7 epochs of 4 networks"),
    ],
)
def test_an_estimate_has_the_epochs_of_a_training_in_its_mode(
    flags: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["estimate", "--photos", "1000", *flags])
    assert expected in capsys.readouterr().out
