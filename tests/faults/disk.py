"""Commands run where one call to the file system fails; see `failing.c` and `server.py`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from command_line import snapshot
from processes import environment

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Fault:
    """A command in which one call failed.

    Attributes:
        code: Exit code; negative: the signal that ended it.
        err: What it said on stderr.
        failed: The call that failed and its file, as "rename runs/net-001"; empty if there were fewer calls.
        before: Content of every file before.
        after: Content of every file after.
        root: The working directory.
    """

    code: int
    err: str
    failed: str
    before: dict[str, bytes]
    after: dict[str, bytes]
    root: Path

    @property
    def lost(self) -> list[str]:
        """Files that were there before, and are not as they were."""
        return [name for name, content in self.before.items() if self.after.get(name) != content]

    @property
    def new(self) -> list[str]:
        """Files that were not there before."""
        return [name for name in self.after if name not in self.before]


class Disk:
    """A process that runs commands in copies of itself.

    Args:
        shim: `failing.c`, compiled.
    """

    def __init__(self, shim: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "server.py"), str(shim)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**environment(), "LD_PRELOAD": str(shim)},
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()

    def run(
        self,
        root: Path,
        *words: str | Path,
        at: int = 0,
        of: str = "",
        error: int = 0,
        stays: bool = False,
    ) -> Fault:
        """Run a command in `root`, of whose calls one fails.

        Args:
            root: The working directory; calls elsewhere are left alone.
            words: The command.
            at: Which call fails, from 1; 0: none.
            of: What the path must hold for a call to count.
            error: With which errno; 0: the process is killed instead.
            stays: Whether all calls after it fail too.
        """
        before = snapshot(root)
        asked = {"root": str(root), "words": [str(word) for word in words], "of": of}
        said = self._ask({**asked, "at": at, "error": error, "stays": stays})
        failed = (said["failed"] or "").replace(f"{root}/", "")
        return Fault(said["code"], said["err"], failed, before, snapshot(root), root)

    def failures(
        self, home: Path, *words: str | Path, error: int, of: str = "", stays: bool = False
    ) -> Iterator[Fault]:
        """Run a command again and again in copies of `home`, failing later and later, until it succeeds."""
        at = 0
        while True:
            at += 1
            root = home.with_name(f"{home.name}-{at}")
            shutil.copytree(home, root, symlinks=True)
            fault = self.run(root, *words, at=at, of=of, error=error, stays=stays)
            if fault.failed or fault.code < 0:
                yield fault
            shutil.rmtree(root)
            if not fault.failed and fault.code >= 0:
                if fault.code:
                    raise RuntimeError(f"a command fails where nothing else does: {fault.err}")
                return

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps(question), file=self._process.stdin, flush=True)
            answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        except BaseException:
            self._process.kill()  # else the next question would get this one's answer
            raise
        return answer
