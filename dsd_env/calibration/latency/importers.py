"""Importers of a user's own measurements: llama-bench, vLLM's benchmarks, and a plain CSV.

Each importer is a function from files to :class:`Imported`: measured points, facts that the files state
about model and device, and notes on what was left out. Nothing here fits or writes; what cannot be derived
from a file is an error or a note, never a guess. The readers have modules of their own, gathered here.
"""

from __future__ import annotations

from dsd_env.calibration.latency.cells_csv import CSV_COLUMNS, import_csv, write_csv
from dsd_env.calibration.latency.llama_bench import LLAMA_BENCH_COMMAND, import_llama_bench
from dsd_env.calibration.latency.measurements import Imported, MeasuredPoint, MeasurementError, phase_of
from dsd_env.calibration.latency.plausible import check_plausible
from dsd_env.calibration.latency.vllm_bench import import_vllm

__all__ = [
    "CSV_COLUMNS",
    "LLAMA_BENCH_COMMAND",
    "Imported",
    "MeasuredPoint",
    "MeasurementError",
    "check_plausible",
    "import_csv",
    "import_llama_bench",
    "import_vllm",
    "phase_of",
    "write_csv",
]
