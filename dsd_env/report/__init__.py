"""Reports: results of evaluations, searches and training runs as one HTML file that needs no network.

:mod:`~dsd_env.report.reading` reads the files that the scripts write and checks them,
:mod:`~dsd_env.report.content` makes of them what the page shows, :mod:`~dsd_env.report.page` writes the page.
The figures are drawn by the page itself (``assets/``), in a thousand lines without a library: a plotting
library would weigh many times as much inside every report, and would give neither the tables behind the
figures nor marks that keyboard and screen reader reach.
"""

from dsd_env.report.page import report_html, write_report
from dsd_env.report.reading import ReportError, read_results

__all__ = ["ReportError", "read_results", "report_html", "write_report"]
