"""The Dockerfile's steps, followed as far as they go without Docker."""

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from common.files import ROOT
from tests.support.closure import closure
from tests.support.tiny_model import grey_photo, write_tiny_model

SERVING = ROOT / "serving" / "container"


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile as (instruction, arguments), comments and line breaks removed."""
    text = (SERVING / "Dockerfile").read_text()
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    pairs = (line.split(maxsplit=1) for line in text.splitlines() if line.strip())
    return [(instruction, arguments) for instruction, arguments in pairs]


def arguments_of(instruction: str) -> list[str]:
    return [arguments for name, arguments in instructions() if name == instruction]


def requirements() -> list[Requirement]:
    lines = (line.partition("#")[0].strip() for line in (SERVING / "requirements.txt").open())
    return [Requirement(line) for line in lines if line]


def test_the_base_image_is_slim_and_pinned_to_a_patch_release() -> None:
    (base,) = arguments_of("FROM")
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", base)


def test_the_server_runs_as_root_as_sagemaker_requires() -> None:
    """So is the user of the base image, which needs no instruction."""
    assert not arguments_of("USER")
    assert not [run for run in arguments_of("RUN") if re.search(r"useradd|adduser", run)]


def test_the_image_holds_nothing_but_the_serving_package() -> None:
    assert not arguments_of("ADD")
    for copy in arguments_of("COPY"):
        source, target = copy.split()
        assert (SERVING / source).resolve().is_relative_to(SERVING.resolve())
        assert target.startswith("/app/serving")


def test_no_secret_no_compiler_and_no_address_is_baked_in() -> None:
    text = (SERVING / "Dockerfile").read_text().lower()
    assert not re.search(r"secret|password|token|aws_|apt-get|gcc|build-essential|https?://", text)


def test_sagemaker_may_choose_the_port_and_the_container_answers_outside() -> None:
    label = "com.amazonaws.sagemaker.capabilities.accept-bind-to-port=true"
    assert arguments_of("LABEL") == [label]
    assert "SERVING_HOST=0.0.0.0" in arguments_of("ENV")[0].split()
    assert arguments_of("CMD") == ['["serve"]']


def test_the_pins_are_the_versions_that_the_tests_run_with() -> None:
    for requirement in requirements():
        assert str(requirement.specifier) == f"=={version(requirement.name)}"


def test_each_pin_has_its_reason() -> None:
    for line in (SERVING / "requirements.txt").read_text().splitlines():
        assert "# " in line or not line


def test_what_the_pins_need_is_pinned_as_well() -> None:
    names = [canonicalize_name(requirement.name) for requirement in requirements()]
    assert closure(list(names)) == set(names)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder /app as the Dockerfile leaves it."""
    root = tmp_path_factory.mktemp("app")
    ignored = (SERVING / ".dockerignore").read_text().split()
    shutil.copytree(
        SERVING,
        root / "serving" / "container",
        ignore=shutil.ignore_patterns(*(name.removeprefix("**/") for name in ignored)),
    )
    return root


def test_the_server_imports_only_what_requirements_name(image: Path) -> None:
    script = "import json, sys, serving.container.server; print(json.dumps(list(sys.modules)))"
    modules = subprocess.run(
        [sys.executable, "-c", script], cwd=image, capture_output=True, text=True, check=True
    ).stdout
    owners = packages_distributions()
    packages = {name.partition(".")[0] for name in json.loads(modules)}
    loaded = {
        owner.lower().replace("_", "-") for name in packages for owner in owners.get(name, [])
    }
    allowed = closure([requirement.name for requirement in requirements()])
    # *.pth files of this environment load these before any program starts
    allowed |= {"setuptools"}
    assert loaded <= allowed
    assert {"onnxruntime", "starlette", "uvicorn", "pillow"} <= loaded


class Serving:
    """A running `serve`, its address taken from its first line of output."""

    def __init__(self, image: Path, model: Path, python: Path = Path(sys.executable)) -> None:
        environment = {
            "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
            "SERVING_MODEL_DIR": str(model),
            "SAGEMAKER_BIND_TO_PORT": "0",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self.process = subprocess.Popen(
            [image / "serving" / "container" / "serve"],
            cwd=model,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout
        self.url: str = json.loads(self.process.stdout.readline())["listening"]

    def post(self, body: bytes, content_type: str) -> tuple[int, Any]:
        headers = {"Content-Type": content_type}
        request = urllib.request.Request(f"{self.url}/invocations", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=600) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def stop(self) -> tuple[int, str, str]:
        self.process.send_signal(signal.SIGTERM)
        output, errors = self.process.communicate(timeout=600)
        return self.process.returncode, output, errors


@pytest.fixture
def serving(image: Path, tmp_path: Path) -> Iterator[Serving]:
    running = Serving(image, write_tiny_model(tmp_path))
    yield running
    with contextlib.suppress(ProcessLookupError):  # all have ended
        os.killpg(running.process.pid, signal.SIGKILL)
    running.process.communicate()


def test_serve_answers_over_http_logs_and_ends_cleanly_on_sigterm(serving: Serving) -> None:
    with urllib.request.urlopen(f"{serving.url}/ping", timeout=600) as response:
        assert response.status == 200
    status, answer = serving.post(grey_photo(4), "image/jpeg")
    assert (status, answer["count"]) == (200, 4)
    assert serving.post(b"junk", "image/jpeg")[0] == 400
    assert serving.post(bytes(7_000_000), "image/jpeg")[0] == 413

    code, output, errors = serving.stop()
    assert code == 0
    assert [json.loads(line)["status"] for line in output.splitlines()] == [200, 200, 400, 413]
    assert errors == ""


def test_a_request_that_has_begun_is_answered_after_sigterm(serving: Serving) -> None:
    photo = grey_photo(5)
    host = serving.url.removeprefix("http://")
    idle, busy = (http.client.HTTPConnection(host, timeout=600) for _ in range(2))
    with contextlib.closing(idle), contextlib.closing(busy):
        idle.request("GET", "/ping")
        assert idle.getresponse().read()
        busy.putrequest("POST", "/invocations")
        busy.putheader("Content-Type", "image/jpeg")
        busy.putheader("Content-Length", str(len(photo)))
        busy.putheader("Expect", "100-continue")
        busy.endheaders()
        # The server asks for the body: from here on the request is its own.
        assert busy.sock.recv(1000).startswith(b"HTTP/1.1 100")
        serving.process.send_signal(signal.SIGTERM)
        assert idle.sock.recv(1) == b""  # it hangs up where nothing is under way: it is stopping
        busy.send(photo)
        response = busy.getresponse()
        assert response.status == 200
        assert json.load(response)["count"] == 5
    assert serving.process.wait(timeout=600) == 0


def test_serve_without_a_model_says_so_in_one_line(image: Path, tmp_path: Path) -> None:
    ended = subprocess.run(
        [image / "serving" / "container" / "serve", "--model", tmp_path / "none", "--port", "0"],
        env={"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1


@pytest.mark.slow
def test_serve_runs_from_what_the_dockerfile_installs(image: Path, tmp_path: Path) -> None:
    """With pip from the package index, in a fresh virtual environment."""
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    (install,) = (run for run in arguments_of("RUN") if run.startswith("pip install"))
    subprocess.run(
        f"{python} -m {install}".replace("/app/", f"{image}/"), shell=True, check=True, cwd=tmp_path
    )
    running = Serving(image, write_tiny_model(tmp_path / "model"), python)
    assert running.post(grey_photo(4), "image/jpeg")[1]["count"] == 4
    code, _, errors = running.stop()
    assert (code, errors) == (0, "")
