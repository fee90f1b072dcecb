"""The version of adaptify, in a place that can be read without importing torch."""

VERSION = "0.1.0"
