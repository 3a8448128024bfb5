"""Do one machine's share of a processing job; SageMaker's container starts this file.

Its arguments are flags of `python -m data_prep all`. The code, its requirements and the list of
photos are in the same folder. Only the standard library is imported, as the requirements are not
installed yet.
"""

import json
import subprocess
import sys
import tarfile
from pathlib import Path

OPT_ML = Path("/opt/ml")


def share_of_host(config: Path) -> str:
    """Return this machine's share, such as 2/8, from a file that SageMaker writes."""
    content = json.loads(config.read_bytes())
    hosts = sorted(content["hosts"])
    return f"{hosts.index(content['current_host']) + 1}/{len(hosts)}"


def main() -> int:
    job, work = Path(__file__).parent, OPT_ML / "processing" / "work"
    install = ("-m", "pip", "install", "--quiet", "--requirement", job / "requirements.txt")
    subprocess.run([sys.executable, *install], check=True)
    with tarfile.open(job / "code.tar.gz") as code:
        code.extractall(work / "code", filter="data")
    share = share_of_host(OPT_ML / "config" / "resourceconfig.json")
    places = ("--list", job / "ids.txt", "--data", work / "data")
    flags = (*sys.argv[1:], *map(str, places), "--share", share)
    command = [sys.executable, "-m", "data_prep", "all", *flags]
    with subprocess.Popen(command, cwd=work / "code", stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        last = ""
        for line in process.stderr:  # logged at once, as the machine may be stopped at any time
            print(line, end="", file=sys.stderr, flush=True)
            last = line.strip() or last
    if process.returncode:  # SageMaker shows this as the job's ExitMessage
        (OPT_ML / "output").mkdir(exist_ok=True)
        (OPT_ML / "output" / "message").write_text(last[:1000])
    return process.returncode


if __name__ == "__main__":
    sys.exit(main())
