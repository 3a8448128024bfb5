"""ONNX Runtime sends nothing from the account or the machine where it runs."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.files import ROOT
from tests.support.tiny_model import write_tiny_model

SWITCH = "ORT_DISABLE_TELEMETRY"
WITHOUT_NETWORK = ["unshare", "--user", "--map-root-user", "--net"]
# Loads a model and prints how often the kernel had no route for what was to be sent. For as many
# seconds as its second argument says it waits for such an attempt.
LOAD = """
import sys, time
from serving.container.artifact import load_model

def attempts():
    with open("/proc/net/snmp") as counters:
        names, values = (line.split() for line in counters if line.startswith("Ip:"))
    return int(dict(zip(names, values))["OutNoRoutes"])

model = load_model(sys.argv[1])
end = time.monotonic() + float(sys.argv[2])
while not attempts() and time.monotonic() < end:
    time.sleep(0.2)
print(attempts())
"""


@pytest.fixture(scope="module")
def network_namespaces() -> None:
    tried = subprocess.run([*WITHOUT_NETWORK, "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"this machine permits no network namespace: {tried.stderr.strip()}")


def load_without_network(tmp_path: Path, seconds: float, **variables: str) -> tuple[int, list[str]]:
    """Attempts to send something, and the files left in the home folder."""
    home = tmp_path / "home"
    home.mkdir()
    environment = {"PATH": os.environ["PATH"]}  # where CI is set, ONNX Runtime is silent anyway
    model = write_tiny_model(tmp_path / "model")
    loaded = subprocess.run(
        [*WITHOUT_NETWORK, sys.executable, "-c", LOAD, model, str(seconds)],
        cwd=ROOT,
        env=environment | {"HOME": str(home), **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(loaded.stdout), [file.name for file in home.rglob("*") if file.is_file()]


@pytest.mark.usefixtures("network_namespaces")
def test_a_session_sends_nothing_and_keeps_no_device_id(tmp_path: Path) -> None:
    assert load_without_network(tmp_path, 0) == (0, [])


@pytest.mark.usefixtures("network_namespaces")
def test_without_the_switch_the_device_id_would_be_seen(tmp_path: Path) -> None:
    assert "deviceid" in load_without_network(tmp_path, 0, **{SWITCH: "0"})[1]


@pytest.mark.slow
@pytest.mark.usefixtures("network_namespaces")
def test_a_session_sends_nothing_for_longer_than_telemetry_waits(tmp_path: Path) -> None:
    """Without the switch, the first attempt was seen after 9 seconds."""
    assert load_without_network(tmp_path, 20) == (0, [])


def imports_onnxruntime(file: Path) -> bool:
    imported = set()
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            imported |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
    return any(name.partition(".")[0] == "onnxruntime" for name in imported)


def test_no_package_imports_onnxruntime_without_the_switch() -> None:
    """Python runs a package's __init__ before any module of it; conftest.py is the tests' own."""
    tops = [folder for folder in ROOT.glob("[a-z]*/") if (folder / "__init__.py").exists()]
    files = [file for top in tops for file in top.rglob("*.py")]
    places = {file.parent.relative_to(ROOT) for file in files if imports_onnxruntime(file)}
    packages = {".".join(place.parts) for place in places if place.parts[0] != "tests"}
    assert {"serving.container", "training.export", "rehearsal"} <= packages
    script = (
        "import importlib, os, sys; importlib.import_module(sys.argv[1]); "
        f"assert 'onnxruntime' not in sys.modules; print(os.environ['{SWITCH}'])"
    )
    environment = {name: value for name, value in os.environ.items() if name != SWITCH}
    for package in sorted(packages):
        imported = subprocess.run(
            [sys.executable, "-c", script, package],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert imported.stdout == "1\n", package
    assert os.environ[SWITCH] == "1"
