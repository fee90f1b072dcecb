"""Running what was exported in a process that cannot import adaptify."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_BLOCK = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "adaptify":
            raise ImportError("adaptify is not here")
sys.meta_path.insert(0, Blocker())
try:
    import adaptify
except ImportError:
    pass
else:
    raise SystemExit("adaptify can be imported")
import torch
torch.set_num_threads(1)
"""


def run_isolated(script: str, folder: Path) -> str:
    """Run `script` in `folder`, in a process without adaptify; what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", _BLOCK + script], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
