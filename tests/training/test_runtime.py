"""The wheels of a training machine: complete, pinned, and uploaded once."""

import ast
import hashlib
import io
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions, version
from itertools import pairwise
from pathlib import Path
from typing import Any

import boto3
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from common.files import ROOT
from common.storage import list_keys
from training import runtime
from training.launcher.code import ON_EC2, ON_SAGEMAKER, pack_code
from training.runtime import REQUIREMENTS, RuntimeBuildError, lock, upload_runtime

NOT_IMPORTED = {
    "onnx": "by torch, and its version is noted in the model",
    "onnxscript": "by torch's exporter",
    "torchvision": "by timm",
}
WHEELS = [
    "ec2_metadata-3.0.0-py3-none-any.whl",
    "numpy-2.4.6-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl",
    "python_dateutil-2.9.0.post0-py2.py3-none-any.whl",
    "torch-2.15.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl",
    "with_build-1.0-2-py3-none-any.whl",
]


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name in WHEELS:
        (folder / name).write_text(name)
    return folder


@pytest.fixture
def s3(aws: None) -> Any:
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="bins")
    return s3


@pytest.fixture
def puts(s3: Any) -> list[str]:
    """The name of each object as it is uploaded."""
    names: list[str] = []

    def note(params: Any, **_: Any) -> None:
        names.append(params["Key"].rpartition("/")[2])

    s3.meta.events.register("provide-client-params.s3.PutObject", note)
    return names


def requirements() -> list[Requirement]:
    lines = (line.partition("#")[0].strip() for line in REQUIREMENTS.read_text().splitlines())
    return [Requirement(line) for line in lines if line]


def third_party_imports(*modules: str) -> tuple[set[str], set[str]]:
    """Top-level packages that `modules` and what they import of ours load: theirs, ours."""
    theirs: set[str] = set()
    ours: set[str] = set()
    waiting = list(modules)
    while waiting:
        file = ROOT / (waiting.pop().replace(".", "/") + ".py")
        if not file.exists() or str(file) in ours:
            continue
        ours.add(str(file))
        for name in imports(ast.parse(file.read_text())):
            top = name.partition(".")[0]
            if (ROOT / top).is_dir():
                waiting.append(name)
            elif top not in sys.stdlib_module_names:
                theirs.add(top)
    return theirs, {str(Path(file).relative_to(ROOT)) for file in ours}


def imports(node: ast.AST) -> Iterator[str]:
    """Every module that may be meant by an import under `node`, type hints left out."""
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                continue
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(module), names=names):
                yield module
                yield from (f"{module}.{alias.name}" for alias in names)
            case _:
                yield from imports(child)


def test_a_machine_lacks_nothing_that_it_imports() -> None:
    owners = packages_distributions()
    imported, _ = third_party_imports("training.machine.__main__", "training.train")
    assert {"torch", "PIL", "ec2_metadata"} <= imported, "the walk works"
    needed = {canonicalize_name(owners[name][0]) for name in imported}
    listed = {canonicalize_name(requirement.name) for requirement in requirements()}
    assert listed == needed | set(NOT_IMPORTED)


@pytest.mark.parametrize(
    ("places", "programs"),
    [
        (ON_EC2, ("training.machine.__main__", "training.train")),
        (ON_SAGEMAKER, ("training.sagemaker.entry",)),
    ],
)
def test_a_machine_is_sent_what_it_imports_of_ours(
    places: tuple[str, ...], programs: tuple[str, ...]
) -> None:
    _, files = third_party_imports(*programs)
    with tarfile.open(fileobj=io.BytesIO(pack_code(places))) as tar:
        assert files - {"training/sagemaker/entry.py"} <= set(tar.getnames())


def test_the_pins_are_the_versions_that_the_tests_run_with() -> None:
    for requirement in requirements():
        assert str(requirement.specifier) == f"=={version(requirement.name)}"


def test_each_pin_has_its_reason() -> None:
    for line in REQUIREMENTS.read_text().splitlines():
        assert "# " in line


def test_each_wheel_is_locked_by_name_version_and_hash(wheels: Path) -> None:
    lines = lock(wheels).splitlines()
    assert len(lines) == len(WHEELS)
    for file, line in zip(sorted(wheels.iterdir()), lines, strict=True):
        pin, _, digest = line.partition(" --hash=sha256:")
        requirement = Requirement(pin)
        name, wheel_version, _, _ = parse_wheel_filename(file.name)
        assert canonicalize_name(requirement.name) == name
        assert str(requirement.specifier) == f"=={wheel_version}"
        assert digest == hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_folder_without_wheels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeBuildError, match="no wheels in"):
        lock(tmp_path)


@pytest.mark.parametrize("changed", [False, True])
def test_pip_installs_what_is_locked_and_refuses_what_was_changed(
    changed: bool, tmp_path: Path
) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wheel = wheels / "some_package-1.0+cpu-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        info = "some_package-1.0+cpu.dist-info"
        archive.writestr("some_package.py", "")
        archive.writestr(f"{info}/METADATA", "Name: some-package\nVersion: 1.0+cpu\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    (wheels / "requirements.txt").write_text(lock(wheels))
    if changed:
        wheel.write_bytes(wheel.read_bytes() + b"!")
    done = subprocess.run(
        [sys.executable, "-m", "pip", *pip_flags_of_the_boot_script()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (tmp_path / "runtime" / "some_package.py").exists() is not changed
    assert ("DO NOT MATCH THE HASHES" in done.stderr) is changed


def pip_flags_of_the_boot_script() -> list[str]:
    script = (ROOT / "infra" / "user_data.sh").read_text().replace("\\\n", " ")
    (line,) = (line for line in script.splitlines() if "-m pip install" in line)
    return line.partition("-m pip")[2].split()


def test_the_lock_comes_after_all_wheels(s3: Any, wheels: Path, puts: list[str]) -> None:
    prefix = upload_runtime(s3, "bins", wheels)
    assert puts == [*WHEELS, "requirements.txt"]
    uploaded = s3.get_object(Bucket="bins", Key=f"{prefix}requirements.txt")["Body"].read()
    assert uploaded.decode() == lock(wheels)


def test_the_same_wheels_are_not_sent_again(s3: Any, wheels: Path, puts: list[str]) -> None:
    prefix = upload_runtime(s3, "bins", wheels)
    s3.delete_object(Bucket="bins", Key=f"{prefix}{WHEELS[0]}")
    puts.clear()
    assert upload_runtime(s3, "bins", wheels) == prefix
    assert puts == [WHEELS[0], "requirements.txt"]


def test_other_wheels_go_to_another_prefix(s3: Any, wheels: Path) -> None:
    prefix = upload_runtime(s3, "bins", wheels)
    (wheels / WHEELS[0]).write_text("built anew")
    other = upload_runtime(s3, "bins", wheels)
    assert other != prefix
    assert len(list_keys(s3, "bins", prefix)) == len(list_keys(s3, "bins", other))


@pytest.mark.parametrize("gpu", [False, True])
def test_wheels_are_fetched_for_the_machine_not_for_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: bool
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str]) -> Any:
        commands.append(command)
        return subprocess.CompletedProcess(command, returncode=0)

    monkeypatch.setattr(subprocess, "run", run)
    runtime.download_wheels(tmp_path, gpu=gpu)
    [command] = commands
    flags = list(pairwise(command))
    assert ("--python-version", "3.11") in flags
    assert ("--platform", "manylinux_2_28_x86_64") in flags
    assert ("--only-binary", ":all:") in flags
    assert ("--requirement", str(REQUIREMENTS)) in flags
    assert ("--dest", str(tmp_path)) in flags
    assert (runtime.TORCH_CPU_INDEX in command) is not gpu


def test_a_download_that_fails_uploads_nothing(
    s3: Any, puts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failed: Any = subprocess.CompletedProcess([], returncode=1)
    monkeypatch.setattr(subprocess, "run", lambda *_: failed)
    monkeypatch.setattr(boto3, "client", lambda _: s3)
    assert command_line(monkeypatch) == (
        "error: pip could not download the wheels, see its message above"
    )
    assert puts == []


def test_wheels_of_a_folder_are_uploaded_as_they_are(
    s3: Any, wheels: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line(monkeypatch, "--wheels", str(wheels)) == ""
    assert capsys.readouterr().out.startswith("s3://bins/runtime/")


def test_an_upload_that_s3_refuses_is_one_line(
    s3: Any, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.delete_bucket(Bucket="bins")
    monkeypatch.setattr(runtime, "list_keys", lambda *_: [])
    message = command_line(monkeypatch, "--wheels", str(wheels))
    assert message.startswith(f"error: AWS: Failed to upload {wheels / WHEELS[0]}")
    assert "\n" not in message


def command_line(monkeypatch: pytest.MonkeyPatch, *flags: str) -> str:
    """Run the command against the bucket bins; returns its error, if any."""
    monkeypatch.setattr(runtime, "stack_output", lambda *_: "bins")
    monkeypatch.setattr(sys, "argv", ["runtime", *flags])
    try:
        runtime.main()
    except SystemExit as error:
        return str(error.code)
    return ""
