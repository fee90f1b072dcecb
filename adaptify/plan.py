"""The plan: versioned JSON that says how a network was made, enough to make it again without a pickle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from adaptify.bounds import brief, parse_json, refuse_newer
from adaptify.errors import ModelError
from adaptify.version import VERSION

FORMAT = "adaptify.plan"
PLAN_VERSION = 1


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PlaceExit(_Part):
    """Put an exit head at a site.

    Attributes:
        site: Name of the exit site.
        channels: C of the tensor there; checked when the plan is carried out.
        classes: M, the number of scores of the head.
        pool: Side k of the k x k average that a linear head takes.
        head: `linear`: one layer on averages (`gates.exit_head`); `convolutional`: the classifier of MSDNet
            (`gates.conv_head`).
        width: Filters of the convolutions of a convolutional head, and of a gate.
        gate: Whether a gate of its own learns who leaves (`gates.learned_exit`).
    """

    op: Literal["place_exit"] = "place_exit"
    site: str
    channels: int = Field(gt=0, le=1 << 20)
    classes: int = Field(gt=0, le=1 << 24)
    pool: int = Field(default=1, gt=0, le=64)
    head: Literal["linear", "convolutional"] = "linear"
    width: int = Field(default=128, gt=0, le=1 << 12)
    gate: bool = False


class BoostExits(_Part):
    """Let each exit correct those before it: F_n = t_n F_{n-1} + f_n (BoostNet, eq. 8).

    Attributes:
        temperatures: t_2, t_3, ...: of every exit but the first, and of the output.
    """

    op: Literal["boost_exits"] = "boost_exits"
    temperatures: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...] = Field(
        min_length=1, max_length=1 << 12
    )


class DecoupleBlocks(_Part):
    """Give residual blocks channels of their own.

    Attributes:
        blocks: Names of the blocks.
    """

    op: Literal["decouple_blocks"] = "decouple_blocks"
    blocks: tuple[str, ...] = Field(max_length=1 << 12)


class KeptChannels(_Part):
    """Which channels of a group stay.

    Attributes:
        size: Channels of the group before.
        kept: Positions of those that stay, ascending.
    """

    size: int = Field(gt=0, le=1 << 20)
    kept: tuple[Annotated[int, Field(strict=True, ge=0)], ...] = Field(max_length=1 << 20)

    @model_validator(mode="after")
    def _positions(self) -> KeptChannels:
        if list(self.kept) != sorted(set(self.kept)) or (self.kept and self.kept[-1] >= self.size):
            raise ValueError("positions are ascending, and below the size")
        return self


class RemoveChannels(_Part):
    """Take channels out of the network.

    Attributes:
        keep: Name of a channel group -> what stays of it; other groups stay whole.
    """

    op: Literal["remove_channels"] = "remove_channels"
    keep: dict[str, KeptChannels] = Field(max_length=1 << 16)


class RemoveBlocks(_Part):
    """Take the branches of residual blocks out of the network: x + f(x) becomes x, or its projection.

    Attributes:
        blocks: Names of the blocks.
    """

    op: Literal["remove_blocks"] = "remove_blocks"
    blocks: tuple[str, ...] = Field(max_length=1 << 12)


class GatePlace(_Part):
    """Where gates are; see `graph.gate_sites.GateSite`.

    Attributes:
        name: Name of the channel group, or of the residual block.
        position: What of a block is closed.
        size: Number of channels there; checked when the plan is carried out.
        filters: Channels that one gate closes together.
        always_open: Channels that no gate closes.
        block: Name of the residual block that it is in.
    """

    name: str
    position: Literal["channels", "input", "output", "shortcut", "layer"]
    size: int = Field(gt=0, le=1 << 20)
    filters: int = Field(gt=0, le=1 << 20)
    always_open: int = Field(default=0, ge=0, le=1 << 20)
    block: str | None = None

    @model_validator(mode="after")
    def _fits(self) -> GatePlace:
        if self.always_open >= self.size or (self.position == "layer" and self.size != 1):
            raise ValueError("gates close something, and a branch as a whole")
        return self


class _PlacesGates(_Part):
    """Put gates into the network that close channels or residual branches.

    Attributes:
        sites: Where they are.
    """

    sites: tuple[GatePlace, ...] = Field(min_length=1, max_length=1 << 14)


class PlaceGates(_PlacesGates):
    """Put on-off gates into the network that are drawn in training (`gates.gumbel`).

    Attributes:
        dependent: Whether they look at the sample; otherwise they are the same for all.
        hidden: Width of the network of each gate that looks.
        open_probability: Of every gate before anything is learned.
        per: Gates that look are decided block by block, or once for all blocks in a row whose inputs have
            the same shape.
    """

    op: Literal["place_gates"] = "place_gates"
    dependent: bool
    hidden: int = Field(default=16, gt=0, le=1 << 12)
    open_probability: float = Field(gt=0, lt=1)
    per: Literal["block", "stage"] = "block"


class PlaceMaskNet(_PlacesGates):
    """Put one network in front of all blocks that decides which of them run (`gates.mask_net`).

    Attributes:
        pool: Side of the map that it shrinks what it sees to.
        filters: Filters of its convolution.
        source: Name of the node that it sees; None: what enters the first of the blocks.
    """

    op: Literal["place_mask_net"] = "place_mask_net"
    pool: int = Field(default=4, gt=0, le=64)
    filters: int = Field(default=16, gt=0, le=1 << 12)
    source: str | None = None


class PlaceSaliences(_PlacesGates):
    """Put saliences into blocks, of branch and channels; they scale what they do not close (see `salience`).

    Attributes:
        execution: Whether saliences are there before the first convolution of their block
            (`sequential`), or only after it has run in full (`parallel`).
    """

    op: Literal["place_saliences"] = "place_saliences"
    execution: Literal["sequential", "parallel"] = "sequential"


GatesStep = PlaceGates | PlaceMaskNet | PlaceSaliences
"""A step that puts gates into the network which close parts of it."""

ExitsStep = PlaceExit | BoostExits
"""A step that says where samples leave, or what exits predict."""

Step = Annotated[
    PlaceExit
    | BoostExits
    | DecoupleBlocks
    | RemoveChannels
    | RemoveBlocks
    | PlaceGates
    | PlaceMaskNet
    | PlaceSaliences,
    Field(discriminator="op"),
]
"""One thing that is done to a network. Each works on what those before it left."""


class Source(_Part):
    """The checkpoint that the network came from."""

    checkpoint: str
    sha256: str


class Plan(_Part):
    """How to make the network again, and what is known of it.

    Attributes:
        architecture: As `models.registry.Architecture.to_json` gives it.
        steps: What is done to the traced network, in order.
        policy: The policy at inference, or None for a static network.
        frontier: Accuracy against MACs on the calibration samples.
        calibration: Which samples the policy was chosen on, what was asked for and what came of it.
        method: Name and options of the method.
        source: Where the weights came from.
        base_macs: MACs of the network before, for one sample.
    """

    format: Literal["adaptify.plan"] = "adaptify.plan"
    version: Literal[1] = 1
    adaptify: str = VERSION
    architecture: dict[str, Any]
    steps: tuple[Step, ...] = Field(default=(), max_length=1 << 12)
    policy: dict[str, Any] | None = None
    frontier: dict[str, Any] | None = None
    calibration: dict[str, Any] | None = None
    method: dict[str, Any] | None = None
    source: Source | None = None
    base_macs: int | None = None

    def dumps(self) -> str:
        """The plan as JSON text."""
        return self.model_dump_json()


def parse_plan(text: str, source: str) -> Plan:
    """Read a plan from JSON text.

    Args:
        text: The JSON.
        source: What errors call it: the file it came from.

    Raises:
        ModelError: It is no plan, is damaged, or comes from a newer adaptify.
    """
    try:
        value = parse_json(text)
    except ValueError as error:
        raise ModelError(
            f"the plan in {source} is not JSON: {brief(error)}", "The file is damaged."
        ) from error
    if not isinstance(value, Mapping) or value.get("format") != FORMAT:
        raise ModelError(f"{source} holds no adaptify plan", "Name a model.safetensors that adaptify wrote.")
    refuse_newer(value, PLAN_VERSION, source, what="plan version", error=ModelError)
    try:
        return Plan.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(step) for step in first["loc"])
        raise ModelError(
            f"the plan in {source} is damaged at {brief(where)}: {brief(first['msg'])}", "Make it again."
        ) from error
