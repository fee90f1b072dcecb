"""Runs commands of adaptify in copies of one warm process, in which a call to the file system can fail.

Started with `failing.c` preloaded. Reads one JSON object a line: `words`, `root`, `of`, `at`, `error` (an
errno; 0 kills the process), `stays`; answers with one: `code`, `err`, `calls` (their number) and `failed`.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import tempfile
from typing import Any

# Whatever a command imports when it runs is here before the copies are made.
import torch
import yaml  # noqa: F401
from torch.distributed import tensor  # noqa: F401

from adaptify.cli.main import main
from adaptify.pipeline import calibrate, evaluate, export, prune, retrofit  # noqa: F401
from adaptify.reports import tables  # noqa: F401


def answer(shim: ctypes.CDLL, ask: dict[str, Any]) -> dict[str, Any]:
    """Run one command in a copy of this process."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.close(reading)
            code = 99
            try:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                os.chdir(ask["root"])
                where = os.fsencode(ask["root"]), os.fsencode(ask["of"])
                shim.fault_arm(*where, ask["at"], ask["error"], ask["stays"])
                code = main(ask["words"])
                facts = [shim.fault_count(), os.fsdecode(shim.fault_failed())]
                os.write(writing, json.dumps(facts).encode())
                sys.stdout.flush()
            finally:
                os._exit(code)
        os.close(writing)
        with os.fdopen(reading) as told:
            text = told.read()
        _, status = os.waitpid(child, 0)
        calls, failed = json.loads(text) if text else (None, None)
        err.seek(0)
        code = os.waitstatus_to_exitcode(status)
        return {"code": code, "err": err.read(), "calls": calls, "failed": failed}


if __name__ == "__main__":
    torch.set_num_threads(1)
    library = ctypes.CDLL(sys.argv[1])
    library.fault_count.restype = ctypes.c_long
    library.fault_failed.restype = ctypes.c_char_p
    library.fault_arm.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_long, ctypes.c_int, ctypes.c_int]
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(library, json.loads(line))), flush=True)
