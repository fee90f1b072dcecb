from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
import torchvision
from command_line import RUN, Cli, read_report, snapshot

# conv1; layer1 to layer3 of two 3x3 convolutions each; linear.
CONV1 = 16 * 9 * 64
LAYERS = [2 * 16 * 16 * 9 * 64, (16 + 32) * 32 * 9 * 16, (32 + 64) * 64 * 9 * 4]
LINEAR = 640
SVG = "{http://www.w3.org/2000/svg}"


def test_json_holds_the_hand_computed_figures(home: Path, cli: Cli) -> None:
    before = snapshot(home)
    said = cli("inspect", "digits.pt", "--json")
    assert said.code == 0
    facts = said.json
    assert facts["architecture"] == "adaptify:digits_resnet"
    assert facts["input_shape"] == [1, 8, 8]
    assert facts["macs"] == CONV1 + sum(LAYERS) + LINEAR
    modules = {item["name"]: item for item in facts["modules"]}
    assert modules[""]["macs"] == facts["macs"]
    assert modules[""]["parameters"] == facts["parameters"]
    assert modules["layer2"] == {
        "name": "layer2",
        "type": "Sequential",
        "shape": [32, 4, 4],
        "parameters": (16 + 32) * 32 * 9 + 4 * 32,
        "macs": LAYERS[1],
    }
    assert modules["layer1.0.conv1"]["macs"] == LAYERS[0] // 2
    exits = {item["name"]: item for item in facts["exits"]}
    assert facts["default_exits"] == ["layer1", "layer2"]
    assert exits["layer1"]["macs_before"] == CONV1 + LAYERS[0]
    assert (exits["layer2"]["channels"], exits["layer2"]["positions"]) == (32, 16)
    assert [block["name"] for block in facts["blocks"]] == ["layer1.0", "layer2.0", "layer3.0"]
    assert [block["macs"] for block in facts["blocks"]] == LAYERS
    assert facts["placed"] == {}
    assert snapshot(home) == before


def test_the_tree_the_sites_and_what_to_do_next(home: Path, cli: Cli) -> None:
    said = cli("inspect", "digits.pt")
    lines = said.out.splitlines()
    assert lines[0] == "adaptify:digits_resnet: 75.0 k parameters, 747.1 k MACs, input 1x8x8"
    assert "  layer2        Sequential   32x4x4  14.0 k  221.2 k" in lines
    assert "      conv1     Conv2d       16x8x8  2.30 k  147.5 k" in lines
    starred = [line.split()[1] for line in lines if line.startswith("* ")]
    assert starred == ["layer1", "layer2"]
    assert "Residual blocks (3)" in lines
    assert max(map(len, lines)) <= 80
    assert "adaptify retrofit digits.pt --data FOLDER --max-drop 0.5" in said.err
    assert "--all" in said.out


def test_all_lists_every_cut_and_every_block(home: Path, cli: Cli) -> None:
    facts = cli("inspect", "digits.pt", "--json").json
    said = cli("inspect", "digits.pt", "--all")
    for item in (*facts["exits"], *facts["blocks"]):
        assert any(item["name"] in line.split() for line in said.out.splitlines())
    assert "more with --all" not in said.out
    assert len(facts["exits"]) > 5


@pytest.mark.parametrize(("depth", "shown"), [("0", 1), ("1", 7), ("2", 10)])
def test_depth_collapses_the_tree(depth: str, shown: int, home: Path, cli: Cli) -> None:
    lines = cli("inspect", "digits.pt", "--depth", depth).out.split("\n\n")[0].splitlines()[2:]
    assert len(lines) == shown
    assert lines[0].startswith("(the network)")
    assert [line.split()[1] == "..." for line in lines if "layer3" in line] == (
        [depth == "1"] if shown > 1 else []
    )


def test_a_run_shows_the_exits_it_has(home: Path, cli: Cli) -> None:
    assert cli("calibrate", "--thresholds", "0.5,never").code == 0
    said = cli("inspect", RUN)
    assert said.code == 0
    rows = {line.split()[1]: line for line in said.out.splitlines() if line.startswith("*")}
    assert rows["layer1"].endswith("leaves at 0.5")
    assert rows["layer2"].rstrip().endswith("never leaves")
    assert f"adaptify calibrate {RUN} --max-drop" in said.err
    facts = cli("inspect", RUN / "model.safetensors", "--json").json
    assert facts["placed"] == {"layer1": 0.5, "layer2": None}
    assert facts["macs"] == read_report(RUN)["before"]["macs"]


def test_another_input_size_costs_more(home: Path, cli: Cli) -> None:
    facts = cli("inspect", "digits.pt", "--input-size", "16", "--json").json
    assert facts["input_shape"] == [1, 16, 16]
    assert facts["macs"] == 4 * (CONV1 + sum(LAYERS)) + LINEAR


def test_the_next_command_can_be_pasted(home: Path, cli: Cli) -> None:
    Path("digits.pt").rename("my digits.pt")
    said = cli("inspect", "my digits.pt", "--arch", "adaptify:digits_resnet")
    assert "adaptify retrofit 'my digits.pt' --arch adaptify:digits_resnet --data FOLDER" in said.err


def test_wrapped_weights_are_found_and_told(home: Path, cli: Cli) -> None:
    state = torch.load("digits.pt", weights_only=True)
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, "wrapped.pth")
    said = cli("inspect", "wrapped.pth")
    assert said.code == 0
    assert "removed prefix 'module.'" in said.err
    assert "747.1 k MACs" in said.out


def test_resnet50_fits_a_screen(home: Path, cli: Cli) -> None:
    torch.save(torchvision.models.resnet50().half().state_dict(), "resnet50.pth")
    said = cli("inspect", "resnet50.pth")
    assert said.code == 0
    lines = said.out.splitlines()
    assert lines[0] == "torchvision:resnet50: 25.6 M parameters, 4.09 G MACs, input 3x224x224"
    assert lines.index("") <= 60
    assert max(map(len, lines)) <= 80
    assert [line.split()[1] for line in lines if line.startswith("* ")] == ["layer1", "layer2", "layer3"]
    # Sixteen blocks are too many to list: they are shown by stage.
    start = lines.index("Residual blocks (16)") + 2
    blocks = [line.split()[:2] for line in lines[start : start + 4]]
    assert blocks == [["layer1", "3"], ["layer2", "4"], ["layer3", "6"], ["layer4", "3"]]
    # Blocks that are the same are shown once.
    assert any(line.split()[:3] == ["1..5", "(5", "times)"] for line in lines)
    assert "1..5 (5 times)" not in cli("inspect", "resnet50.pth", "--all").out


def test_long_names_are_cut_and_numbers_are_not(home: Path, cli: Cli) -> None:
    Path("deep.py").write_text(
        "from torch import nn\n"
        "def deep():\n"
        "    inner = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))\n"
        "    names = ('a_rather_long_name', 'for_a_module_in_a_module', 'with_convolutions_in_it')\n"
        "    for name in names:\n"
        "        inner = nn.Sequential(__import__('collections').OrderedDict([(name, inner)]))\n"
        "    return nn.Sequential(inner, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))\n"
    )
    from adaptify.models.user_code import import_callable

    torch.save(import_callable("deep:deep")().state_dict(), "deep.pth")
    said = cli("inspect", "deep.pth", "--arch", "deep:deep", "--input-size", "32", "--all", "--depth", "9")
    assert said.code == 0, said.err
    assert max(map(len, said.out.splitlines())) <= 80
    macs = 32 * 32 * 9 * (3 * 8 + 8 * 8)
    assert macs == 811_008
    row = next(line for line in said.out.splitlines() if "with_convolutions_in_it" in line)
    assert row.endswith("811.0 k")
    assert "…" in said.out


def test_each_site_says_what_it_could_save(home: Path, cli: Cli) -> None:
    facts = cli("inspect", "digits.pt", "--json").json
    total = facts["macs"]
    groups = {group["name"]: group for group in facts["groups"]}
    # One of 16 channels between the convolutions of the first block.
    assert groups["layer1.0.conv1"] == {
        "name": "layer1.0.conv1",
        "channels": 16,
        "saves": LAYERS[0] * 15 // 16,
    }
    lines = [line.split() for line in cli("inspect", "digits.pt").out.splitlines()]
    (leaves,) = [line for line in lines if line[:2] == ["*", "layer1"]]
    assert leaves[-1] == f"{100 * (1 - (CONV1 + LAYERS[0]) / total):.1f}%"
    (block,) = [line for line in lines if line[:2] == ["layer1.0", "1"]]
    assert block[-2] == f"{100 * LAYERS[0] / total:.1f}%"


def test_methods_say_whether_they_suit(home: Path, cli: Cli) -> None:
    facts = cli("inspect", "digits.pt", "--json").json
    methods = {item["method"]: item for item in facts["methods"]}
    assert set(methods) >= {"boostnet", "dgate", "gumbel", "gumbel_exits", "importance", "lcnet", "sgad"}
    assert (methods["dgate"]["places"], methods["dgate"]["command"]) == ("2 exits", "retrofit")
    assert methods["dgate"]["least"] > (CONV1 + LAYERS[0]) / facts["macs"]
    assert methods["importance"]["command"] == "prune"
    assert methods["gumbel_exits"]["least"] < 0.5  # its default target
    plain = cli("inspect", "torchvision:squeezenet1_0", "--json").json["methods"]
    (refused,) = [item for item in plain if item["method"] == "sgad"]
    assert refused["least"] is None
    assert "has fewer than two residual blocks" in refused["reason"]
    said = cli("inspect", "torchvision:squeezenet1_0").out
    assert f"sgad: {refused['reason'][:30]}" in said
    assert said.index("Methods that suit it") < said.index("Methods that do not")


def test_a_network_with_exits_of_its_own_is_sent_to_the_method_that_uses_them(home: Path, cli: Cli) -> None:
    said = cli("inspect", "adaptify:digits_msdnet")
    assert "adaptify retrofit adaptify:digits_msdnet --method boostnet --data FOLDER" in said.err
    refusals = said.out[said.out.index("Methods that do not") :]
    assert "sgad: MSDNet has exits of its own" in refusals
    assert max(map(len, said.out.splitlines())) <= 80


def test_the_picture_has_the_parts_and_the_exits(home: Path, cli: Cli) -> None:
    assert cli("inspect", RUN, "--svg", "run.svg").code == 0
    root = ElementTree.parse("run.svg").getroot()
    texts = ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]
    for part in ("conv1", "layer1.0", "layer2.0", "layer3.0", "linear"):
        assert part in texts
    assert len([text for text in texts if "leaves at" in text or "never leaves" in text]) == 2
    assert {path.get("class") for path in root.iter(f"{SVG}path")} == {"skip"}
    placed = [circle for circle in root.iter(f"{SVG}circle") if circle.get("class") == "out placed"]
    assert len(placed) == 3  # and one that the legend explains
    assert "prefers-color-scheme: dark" in Path("run.svg").read_text()
    assert cli("inspect", "digits.pt", "--svg", "plain.svg").code == 0
    plain = Path("plain.svg").read_text()
    assert "leaves at" not in plain
    assert "can be skipped: saves 39.5%" in plain
