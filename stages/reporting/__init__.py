"""The report: rows, charts and one self-contained page."""
