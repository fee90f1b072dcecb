"""`report.json`, typed: the one source that the page and the tables are made from.

MACs are per sample; accuracies, shares and kept parts are fractions in [0, 1]. A threshold of
`None` is never reached: nothing leaves at that exit (JSON has no infinity).
"""

from adaptify.reports.schema.examples import ClassExamples, Example, Examples
from adaptify.reports.schema.exits import Calibration, Exit, Measured, Point
from adaptify.reports.schema.file import parse_report, read_report, write_report
from adaptify.reports.schema.gating import GateEpoch, GateMode, GateSite, Gating
from adaptify.reports.schema.network import (
    After,
    Before,
    ClassEffect,
    DataInfo,
    Layer,
    MacsPerSample,
    Method,
    Model,
    Size,
    WrittenFile,
)
from adaptify.reports.schema.pruning import PrunedLayer, Pruning
from adaptify.reports.schema.report import FORMAT, VERSION, Report
from adaptify.reports.schema.samples import BlockUse, ChannelUse, ClassUse, MacsHistogram, Samples
from adaptify.reports.schema.speed import BatchTime, Speed
from adaptify.reports.schema.stages import Stage
from adaptify.reports.schema.training import Training, TrainingEpoch

__all__ = [
    "FORMAT",
    "VERSION",
    "After",
    "BatchTime",
    "Before",
    "BlockUse",
    "Calibration",
    "ChannelUse",
    "ClassEffect",
    "ClassExamples",
    "ClassUse",
    "DataInfo",
    "Example",
    "Examples",
    "Exit",
    "GateEpoch",
    "GateMode",
    "GateSite",
    "Gating",
    "Layer",
    "MacsHistogram",
    "MacsPerSample",
    "Measured",
    "Method",
    "Model",
    "Point",
    "PrunedLayer",
    "Pruning",
    "Report",
    "Samples",
    "Size",
    "Speed",
    "Stage",
    "Training",
    "TrainingEpoch",
    "WrittenFile",
    "parse_report",
    "read_report",
    "write_report",
]
