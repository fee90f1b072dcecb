from __future__ import annotations

import sys

import pytest
from torch import nn

from adaptify.errors import UsageError
from adaptify.models import resolve

SOURCE = """
from torch import nn

class Net(nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.layer = nn.Linear(width, width)

def build(width=4):
    return Net(width)

def broken():
    raise RuntimeError("no weights today")

def number():
    return 3

ready = Net()
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("usernet", "userbad", "userneeds"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "usernet.py").write_text(SOURCE)
    (tmp_path / "userbad.py").write_text("def f(:\n")
    (tmp_path / "userneeds.py").write_text("import a_package_that_is_not_here\n")
    yield tmp_path
    for name in ("usernet", "userbad", "userneeds"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(("name", "width"), [("usernet:Net", 3), ("usernet:build", 4)])
def test_a_module_of_the_current_folder_is_imported(folder, name, width):
    model = resolve(name).build()
    assert isinstance(model, nn.Module)
    assert model.layer.in_features == width
    assert resolve(name, {"width": 7}).build().layer.in_features == 7


def test_nothing_is_imported_before_the_network_is_built(folder):
    resolve("usernet:Net")
    assert "usernet" not in sys.modules


@pytest.mark.parametrize(
    ("name", "said", "hint"),
    [
        ("usernett:Net", "cannot import 'usernett'", "usernett.py"),
        ("userbad:f", "SyntaxError", "fails when it is imported"),
        ("userneeds:f", "a_package_that_is_not_here", "Install"),
        ("usernet:Nett", "has no 'Nett'; did you mean 'Net'?", "package.module:callable"),
        ("usernet:ready", "is Net, not a function", "package.module:callable"),
        ("usernet:broken", "RuntimeError: no weights today", "--arch-kwargs"),
        ("usernet:number", "returned int, not a torch.nn.Module", "returns the network"),
    ],
)
def test_what_goes_wrong_is_explained(folder, name, said, hint):
    with pytest.raises(UsageError) as caught:
        resolve(name).build()
    assert said in caught.value.message
    assert hint in caught.value.hint


def test_arguments_that_the_builder_does_not_take_are_named(folder):
    with pytest.raises(UsageError, match=r"usernet:Net\(depth=3\) cannot be built"):
        resolve("usernet:Net", {"depth": 3}).build()
