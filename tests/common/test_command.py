"""How a command ends that is broken off: no traceback."""

import os
import signal
import subprocess
import sys

import pytest
from botocore.exceptions import NoCredentialsError, NoRegionError

from common.command import in_one_line, interruptible
from common.files import ROOT

SCRIPT = """
import os, signal
from common.command import in_one_line, interruptible

@interruptible()
def main():
    print("a line")
    os.kill(os.getpid(), signal.SIGINT)
    signal.pause()

main()
"""


def test_ctrl_c_is_one_line_after_what_was_printed() -> None:
    command = [sys.executable, "-c", SCRIPT]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert (run.returncode, run.stdout) == (130, "a line\n")
    assert run.stderr == "\nstopped\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_left_is_no_error(unbuffered: str) -> None:
    read, write = os.pipe()
    os.close(read)
    estimate = [sys.executable, "-m", "costs", "estimate", "--photos", "8000"]
    with subprocess.Popen(
        estimate,
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        stdout=write,
        stderr=subprocess.PIPE,
    ) as command:
        os.close(write)
        _, error = command.communicate(timeout=600)
    assert error == b""
    assert command.returncode == 128 + signal.SIGPIPE


def test_an_exit_code_is_kept() -> None:
    @interruptible()
    def main() -> None:
        sys.exit(3)

    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 3


@pytest.mark.parametrize(
    ("error", "what_to_do"),
    [
        (NoCredentialsError(), "sign in with `aws sso login` or `aws configure`"),
        (NoRegionError(), "export AWS_DEFAULT_REGION=us-east-1"),
    ],
)
def test_an_error_of_aws_s_libraries_says_what_to_do(error: Exception, what_to_do: str) -> None:
    assert what_to_do in in_one_line(error)


def test_a_message_of_several_lines_becomes_one() -> None:
    assert in_one_line(ValueError("no photo\n  is left")) == "no photo is left"
