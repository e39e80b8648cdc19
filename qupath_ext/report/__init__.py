"""The page that a Ki-67 analysis leaves behind: one HTML file that needs nothing else and prints on A4."""

from qupath_ext.report.content import Ki67Report, SlideReport, TruthReport
from qupath_ext.report.page import write_report

__all__ = ["Ki67Report", "SlideReport", "TruthReport", "write_report"]
