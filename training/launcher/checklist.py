"""Checks before something starts, a line on the screen for each."""

from collections.abc import Callable
from typing import TypeVar

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from common.command import in_one_line
from common.outputs import NotDeployedError

# A check that may be left out is not worth a long wait.
BRIEF = Config(connect_timeout=5, read_timeout=10, retries={"total_max_attempts": 2})


Found = TypeVar("Found")


class CheckFailedError(Exception):
    """The answer is no; the message says what is wrong and what to do."""


class WarningError(Exception):
    """Nothing is in the run's way; the message says what the user should know, and do."""


class NotCheckedError(Exception):
    """There is no answer; the message says why."""


class Checklist:
    """Prints each check's line at once, and remembers which ones failed."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    def require(self, name: str, check: Callable[[], tuple[str, Found]]) -> Found | None:
        """What the check found, or None if it failed; an error of AWS is not caught."""
        try:
            note, found = check()
        except CheckFailedError as error:
            self.failed.append(name)
            self._print("no", name, str(error))
            return None
        self._print("ok", name, note)
        return found

    def look(self, name: str, check: Callable[[], tuple[str, Found]]) -> Found | None:
        """The same, but when AWS does not answer the line says so, and nothing is blocked."""
        try:
            return self.require(name, check)
        except WarningError as error:
            self._print("warning", name, str(error))
        except NotCheckedError as error:
            self._print("not checked", name, str(error))
        except ClientError as error:
            code = error.response["Error"]["Code"]
            self._print("not checked", name, f"{error.operation_name} is answered by {code}")
        except (BotoCoreError, NotDeployedError) as error:
            self._print("not checked", name, in_one_line(error))
        return None

    @staticmethod
    def _print(result: str, name: str, note: str) -> None:
        print(f"  {result:<11}  {name:<8}  {note}", flush=True)
