from __future__ import annotations

import argparse
import hashlib
import importlib
import pathlib
import pickle
import sys
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from adaptify.checkpoint import read_checkpoint
from adaptify.errors import ModelError, UsageError


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4), head=nn.Linear(4, 2)))


WEIGHTS = network().state_dict()


def same(tensors):
    return list(tensors) == list(WEIGHTS) and all(
        torch.equal(tensors[name], WEIGHTS[name]) for name in WEIGHTS
    )


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        import os

        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th", ".bin", ".ckpt", ".safetensors", ".pth.tar", ""])
@pytest.mark.parametrize("kind", ["zip", "older", "safetensors"])
def test_the_content_decides_whatever_the_name(tmp_path, suffix, kind):
    path = tmp_path / f"weights{suffix}"
    if kind == "safetensors":
        save_file(WEIGHTS, path)
    else:
        torch.save(WEIGHTS, path, _use_new_zipfile_serialization=kind == "zip")
    checkpoint = read_checkpoint(path)
    assert sorted(checkpoint.tensors) == sorted(WEIGHTS)
    assert all(torch.equal(checkpoint.tensors[name], WEIGHTS[name]) for name in WEIGHTS)
    assert checkpoint.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert checkpoint.path == path
    assert checkpoint.notes == ()
    assert checkpoint.module is None


@pytest.mark.parametrize(
    "beside",
    [
        argparse.Namespace(lr=0.1, out=pathlib.Path("runs/1"), model="resnet18"),
        np.float64(0.93),
        np.float32(0.93),
        np.int64(3),
        np.arange(4),
        pathlib.PurePosixPath("a/b"),
        pathlib.PureWindowsPath("a/b"),
        {"nested": [1, "two", None, (3.0, {4})]},
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("zipped", [True, False])
def test_harmless_values_beside_the_weights_are_no_obstacle(tmp_path, beside, zipped):
    path = tmp_path / "x.pt"
    torch.save({"model": WEIGHTS, "beside": beside}, path, _use_new_zipfile_serialization=zipped)
    assert same(read_checkpoint(path).tensors)


def test_paths_of_another_system_are_read(tmp_path):
    """A pickle written on Windows names WindowsPath, which cannot be made here."""
    path = tmp_path / "x.pt"
    torch.save({"model": WEIGHTS, "out": pathlib.PureWindowsPath("a/b")}, path)
    other = tmp_path / "y.pt"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w") as new:
        for member in old.namelist():
            data = old.read(member).replace(b"PureWindowsPath", b"WindowsPath")
            assert member.rpartition("/")[2] != "data.pkl" or b"WindowsPath" in data
            new.writestr(member, data)
    assert same(read_checkpoint(other).tensors)


@pytest.mark.parametrize("how", ["torch zip", "torch older", "pickle 2", "pickle 4", "beside weights"])
def test_code_in_a_pickle_is_refused_by_name_and_not_run(tmp_path, how):
    path, target = tmp_path / "bomb.pth", tmp_path / "executed"
    if how.startswith("pickle"):
        path.write_bytes(pickle.dumps({"state_dict": Bomb(target)}, protocol=int(how[-1])))
    else:
        value = {"model": WEIGHTS, "extra": Bomb(target)} if how == "beside weights" else Bomb(target)
        torch.save(value, path, _use_new_zipfile_serialization=how != "torch older")
    with pytest.raises(ModelError) as caught:
        read_checkpoint(path)
    assert "posix.system" in caught.value.message
    assert "nothing of it was executed" in caught.value.message
    assert "--trust-pickle" in caught.value.hint
    assert not target.exists()


def test_a_whole_module_is_refused_unless_trusted(tmp_path):
    path = tmp_path / "module.pt"
    torch.save(network(), path)
    with pytest.raises(ModelError, match=r"torch\.nn\.modules\.container\.Sequential"):
        read_checkpoint(path)
    checkpoint = read_checkpoint(path, trust_pickle=True)
    assert isinstance(checkpoint.module, nn.Sequential)
    assert same(checkpoint.tensors)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_module_in_a_dictionary_is_taken_out_of_its_wrapper(tmp_path, zipped):
    path = tmp_path / "module.pt"
    value = {"epoch": 3, "model": nn.DataParallel(network())}
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    checkpoint = read_checkpoint(path, trust_pickle=True)
    assert isinstance(checkpoint.module, nn.Sequential)
    assert same(checkpoint.tensors)


def test_a_trusted_module_whose_code_is_gone_is_explained(tmp_path, monkeypatch):
    (tmp_path / "gonenet.py").write_text("from torch import nn\nclass Net(nn.Linear): pass\n")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        gonenet = importlib.import_module("gonenet")
        torch.save(gonenet.Net(2, 2), tmp_path / "x.pt")
    (tmp_path / "gonenet.py").unlink()
    del sys.modules["gonenet"]
    with pytest.raises(ModelError, match="needs code that cannot be imported: No module named 'gonenet'"):
        read_checkpoint(tmp_path / "x.pt", trust_pickle=True)


def write_text(path):
    path.write_text("epoch,loss\n1,0.3\n" * 3)


def write_lfs(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n")


def write_html(path):
    path.write_text("<!DOCTYPE html><html>not found</html>")


def write_noise(path):
    path.write_bytes(bytes(range(1, 255)) * 4)


def write_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/readme.txt", "hello")


def write_torchscript(path):
    torch.jit.script(nn.Linear(2, 2)).save(str(path))


def write_export(path):
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),)), str(path))


def write_half_zip(path):
    torch.save(WEIGHTS, path)
    path.write_bytes(path.read_bytes()[:1500])


def write_half_older(path):
    torch.save(WEIGHTS, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-100])


def write_half_safetensors(path):
    save_file(WEIGHTS, path)
    path.write_bytes(path.read_bytes()[:-100])


def write_half_header(path):
    save_file(WEIGHTS, path)
    path.write_bytes(path.read_bytes()[:50])


def write_quantised(path):
    torch.save({"w": torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.qint8)}, path)


def write_nested(path):
    torch.save({"w": torch.nested.nested_tensor([torch.ones(2)])}, path)


def saved(value):
    return lambda path: torch.save(value, path)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda path: path.touch(), "is empty (0 bytes)"),
        (lambda path: path.mkdir(), "is a folder"),
        (write_text, "is a text file"),
        (write_lfs, "Git LFS pointer"),
        (write_html, "is a web page"),
        (write_noise, "not a checkpoint of any known format"),
        (write_zip, "zip archive without PyTorch weights"),
        (lambda path: path.write_bytes(b"\x1f\x8b\x08rest"), "compressed with gzip"),
        (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n"), "HDF5"),
        (write_half_zip, "damaged or cut short"),
        (write_half_older, "damaged or cut short"),
        (write_half_safetensors, "damaged or cut short"),
        (write_half_header, "damaged or cut short"),
        (lambda path: path.write_bytes(b"\x80\x02}q\x00."), "damaged or cut short"),
        (saved({}), "an empty dictionary"),
        (saved([torch.ones(2)]), "an object of type list"),
        (saved(torch.ones(2)), "an object of type Tensor"),
        (saved({"epoch": 3, "loss": 0.1}), "a dictionary without tensors (keys 'epoch', 'loss')"),
        (saved({1: torch.ones(2)}), "a dictionary without tensors"),
        (saved({"steps": torch.arange(3)}), "no floating-point tensors"),
        (saved({"a.weight": torch.ones(2), "b.weight": torch.tensor([1.0, float("nan")])}), "'b.weight'"),
        (saved({"a.weight": torch.tensor([[float("-inf"), 1.0]])}), "infinity (1 of 2 values)"),
        (saved({"a.weight": torch.ones(3).half() / 0}), "infinity (3 of 3 values)"),
        (write_quantised, "quantised"),
        (saved({"a.weight": torch.ones(4, 4).to(torch.int8), "a.scale": torch.ones(4)}), "quantised"),
        (saved({"a.weight": torch.ones(4, 4).to(torch.float8_e4m3fn)}), "quantised"),
        (saved({"a.weight": torch.eye(3).to_sparse()}), "of layout torch.sparse_coo"),
        (saved({"a.weight": torch.ones(3, device="meta")}), "without values"),
        (write_nested, "nested"),
        (saved({"student": {"w": torch.ones(2)}, "teacher": {"w": torch.ones(2)}}), "'student', 'teacher'"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_is_no_usable_checkpoint_is_refused_in_one_line(tmp_path, write, said):
    path = tmp_path / "x.pth"
    write(path)
    with pytest.raises(ModelError) as caught:
        read_checkpoint(path)
    assert said in caught.value.message
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("write", "hint"), [(write_torchscript, "torch.jit.load"), (write_export, "torch.export.load")]
)
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_the_hint_for_compiled_programs_works(tmp_path, monkeypatch, write, hint):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "program.pt2"
    write(path)
    with pytest.raises(ModelError) as caught:
        read_checkpoint(path)
    assert hint in caught.value.hint
    exec(caught.value.hint.partition(": ")[2], {"torch": torch})
    assert set(read_checkpoint(tmp_path / "weights.pt").tensors) == {"weight", "bias"}


def test_a_missing_file_is_a_mistake_of_usage(tmp_path):
    torch.save(WEIGHTS, tmp_path / "resnet50.pth")
    with pytest.raises(UsageError, match=r"did you mean 'resnet50\.pth'"):
        read_checkpoint(tmp_path / "resnet5.pth")
    with pytest.raises(UsageError, match="there is no file"):
        read_checkpoint(tmp_path / "no" / "folder.pth")


@pytest.mark.parametrize("kind", ["zip", "older", "safetensors"])
@pytest.mark.parametrize("cut", [0.1, 0.3, 0.6, 0.9, 0.99])
def test_every_cut_file_is_refused(tmp_path, kind, cut):
    path = tmp_path / "x.pth"
    if kind == "safetensors":
        save_file(WEIGHTS, path)
    else:
        torch.save(WEIGHTS, path, _use_new_zipfile_serialization=kind == "zip")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * cut)])
    with pytest.raises(ModelError, match="damaged or cut short"):
        read_checkpoint(path)


@pytest.mark.parametrize("low_byte", [0x80, 0x50])
def test_a_safetensors_header_whose_length_looks_like_a_pickle_or_a_zip(tmp_path, low_byte):
    path = tmp_path / "x.bin"
    target = 0x4B50 if low_byte == 0x50 else 0x4B80
    save_file(WEIGHTS, path, metadata={"note": ""})
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].rstrip().ljust(target)
    path.write_bytes(target.to_bytes(8, "little") + header + data[8 + length :])
    assert path.read_bytes()[0] == low_byte
    assert set(read_checkpoint(path).tensors) == set(WEIGHTS)


def test_a_newer_pickle_protocol_is_named(tmp_path):
    path = tmp_path / "x.pt"
    torch.save(WEIGHTS, path, pickle_protocol=4)
    with pytest.raises(ModelError, match="protocol that cannot be read without running it"):
        read_checkpoint(path)
    assert same(read_checkpoint(path, trust_pickle=True).tensors)


def test_a_dictionary_that_refers_to_itself_is_no_obstacle(tmp_path):
    value = {"state_dict": WEIGHTS}
    value["self"] = value
    torch.save(value, tmp_path / "x.pt")
    assert same(read_checkpoint(tmp_path / "x.pt").tensors)


def test_a_path_that_cannot_be_is_refused():
    with pytest.raises(ModelError, match="too long"):
        read_checkpoint("x" * 5000)


def test_half_precision_and_counters_are_fine(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"w": torch.ones(2).bfloat16(), "n": torch.tensor(3), "mask": torch.tensor([True])}, path)
    assert set(read_checkpoint(path).tensors) == {"w", "n", "mask"}


def test_changing_tensors_read_from_safetensors_leaves_the_file_alone(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(WEIGHTS, path)
    checkpoint = read_checkpoint(path)
    with torch.no_grad():
        checkpoint.tensors["conv.weight"].zero_()
    assert read_checkpoint(path).sha256 == checkpoint.sha256
    assert same({name: read_checkpoint(path).tensors[name] for name in WEIGHTS})


def test_the_real_checkpoints_are_read(shared_folder):
    for path in sorted((shared_folder / "checkpoints").glob("*.th")):
        checkpoint = read_checkpoint(path)
        assert checkpoint.tensors["linear.weight"].shape == (10, 64)
        assert checkpoint.prefix == "module."
        assert checkpoint.notes == ("took 'state_dict' of the file", "removed prefix 'module.'")
