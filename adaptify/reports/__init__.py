"""What a run saved: `report.json` is the one source, the page and the terminal tables are views of it."""
