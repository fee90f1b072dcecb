"""The figures of a report. Each is a function from figures and a width to an SVG."""
