import subprocess
import sys

import pytest

SCRIPT = """
import resource
from training.memory import keep_freed_memory
if {kept}:
    keep_freed_memory()
import numpy as np
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    np.ones(10_000_000)
before = faults()
for _ in range(10):
    np.ones(10_000_000)
print(faults() - before)
"""


def page_faults(*, kept: bool) -> int:
    """Pages that the kernel handed out while 80 MB were taken and freed ten times."""
    command = [sys.executable, "-c", SCRIPT.format(kept=kept)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="malloc is set up on Linux alone")
def test_freed_memory_is_used_again_without_the_kernel() -> None:
    assert page_faults(kept=True) < page_faults(kept=False) / 10
