"""Pages in a browser: nothing in the console, nothing asked for, nothing wider than the window."""

from __future__ import annotations

from pathlib import Path

import pytest
from chromium import BROWSER, chromium
from gating_sample import gated_report
from report_sample import sample_report
from test_report_pruning import pruned_report
from test_report_views import full_report

from adaptify.reports.compare import compare
from adaptify.reports.compare_html import render_comparison
from adaptify.reports.html import render_html
from adaptify.reports.plots.network import Mark, Part, network_picture
from adaptify.reports.schema import parse_report

pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")]


def test_browsers_have_nothing_to_say(tmp_path: Path) -> None:
    exits, gates = full_report(), parse_report(gated_report())
    part = Part("conv1", "16x8x8", 10, 0.5, True, (Mark("exit", True),), (Mark("gate", False),))
    pages = {
        "exits.html": render_html(exits),
        "older.html": render_html(parse_report(sample_report())),
        "gates.html": render_html(gates),
        "pruned.html": render_html(parse_report(pruned_report())),
        "compare.html": render_comparison(compare([("one", exits), ("two", gates)])),
        "network.svg": network_picture("a <net>", "10 MACs", [part]),
    }
    with chromium() as browser:
        for name, page in pages.items():
            file = tmp_path / name
            file.write_text(page, encoding="utf-8")
            for width in (390, 800, 1280):
                for dark in (False, True):
                    browser.open(file, width, dark=dark)
                    assert browser.said == [], name
                    if name.endswith(".html"):
                        assert browser.value("document.documentElement.scrollWidth") <= width, (name, width)
            browser.screenshot(tmp_path / "page.png")
            assert (tmp_path / "page.png").read_bytes()[:4] == b"\x89PNG"
