"""Fitting workloads to recorded requests, and the fits that are shipped."""

from __future__ import annotations

import gzip
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

pytest.importorskip("scipy")

from dsd_env import load_scenario
from dsd_env.calibration.workload import catalogue
from dsd_env.calibration.workload.fit import (
    ClientWindows,
    FitError,
    cluster,
    fit_client_spread,
    fit_kinds,
    fit_modulation,
    fit_system_arrivals,
    pooled_lengths,
    quantile_law,
    read_servegen,
    regenerate,
    typical_hours,
)
from dsd_env.calibration.workload.statistics import (
    arrival_statistics,
    deviations,
    gap_cv,
    index_of_dispersion,
    length_statistics,
    lengths,
    rank_correlation,
    renewal_arrivals,
)
from dsd_env.scenario.schema import RateModulation, Renewal
from dsd_env.workload import WorkloadGenerator
from tests.conftest import ROOT

WORKLOAD = ROOT / "configs" / "workload"
SHIPPED = sorted(path.stem for path in WORKLOAD.glob("*.yaml"))


# ---------------------------------------------------------------- fits recover what was generated


def test_arrivals_of_a_known_process_are_found_again() -> None:
    truth = Renewal(
        kind="renewal",
        rate_per_s=8.0,
        cv=1.6,
        modulation=RateModulation(sigma=0.3, correlation_s=60.0, period_s=5.0),
    )
    times = renewal_arrivals(truth, 8.0, 3, 0, 3000.0)
    found = fit_system_arrivals(times, 3000.0, seeds=12)
    given = arrival_statistics(times, 3000.0)
    episodes = [
        arrival_statistics(renewal_arrivals(found, found.rate_per_s, seed, 0, 3000.0), 3000.0)
        for seed in range(100, 112)
    ]
    for name, value in given.items():
        assert np.mean([one[name] for one in episodes]) == pytest.approx(value, rel=0.2), name
    assert found.cv == pytest.approx(1.6, rel=0.1)


def test_a_mix_of_kinds_has_a_dependence_that_is_not_monotone() -> None:
    generator = np.random.default_rng(1)
    prompts = np.concatenate([generator.lognormal(m, 0.2, 3000) for m in (4.0, 6.0, 8.0)]).astype(np.int64)
    outputs = np.concatenate([generator.lognormal(m, 0.3, 3000) for m in (4.0, 6.0, 4.0)]).astype(np.int64)
    numbers = cluster(prompts, outputs, 3)
    assert [len(set(part)) for part in np.split(numbers, 3)].count(1) >= 1
    assert np.mean(numbers == np.repeat([0, 1, 2], 3000)) > 0.98
    for count, good in ((1, False), (3, True)):
        kinds = fit_kinds(prompts, outputs, count)
        p, o, _ = lengths(kinds, 1, 30_000)
        middle = o[(p > 250) & (p < 700)].mean()
        assert (abs(middle / outputs[3000:6000].mean() - 1) < 0.05) == good
        off = deviations(
            length_statistics("p", prompts) | length_statistics("o", outputs),
            length_statistics("p", p) | length_statistics("o", o),
        )
        assert max(abs(value) for value in off.values()) < 0.06, off


def test_one_kind_has_the_rank_correlation() -> None:
    generator = np.random.default_rng(2)
    z = generator.standard_normal((2, 20_000))
    prompts = np.exp(5 + z[0]).astype(np.int64) + 1
    outputs = np.exp(4 + 0.6 * z[0] + 0.8 * z[1]).astype(np.int64) + 1
    kinds = fit_kinds(prompts, outputs, 1)
    assert kinds["cluster-0"].length_correlation == pytest.approx(0.6, abs=0.02)
    p, o, _ = lengths(kinds, 1, 20_000)
    assert rank_correlation(p, o) == pytest.approx(rank_correlation(prompts, outputs), abs=0.02)


def test_weighted_quantiles() -> None:
    law = quantile_law(np.array([1.0, 10.0, 100.0]), np.array([0.5, 0.3, 0.2]))
    values = dict(zip(law.levels, law.values, strict=True))
    assert values[0.4] == 1.0 and values[0.6] == 10.0 and values[0.9] == 100.0


def test_the_spread_of_clients_gives_their_top_share() -> None:
    cv = fit_client_spread(0.5, 20)
    generator = np.random.default_rng(9)
    weights = np.exp(math.sqrt(math.log1p(cv * cv)) * generator.standard_normal((4000, 20)))
    top = np.sort(weights, axis=1)[:, -2:].sum(axis=1) / weights.sum(axis=1)
    assert np.median(top) == pytest.approx(0.5, abs=0.02)
    assert fit_client_spread(0.1, 20) == 0.0 and fit_client_spread(1.0, 20) == 20.0


def _windows(rates: np.ndarray, cv: float = 1.0) -> ClientWindows:
    histogram = (np.array([5.0, 50.0]), np.array([1.0, 3.0]))
    n = len(rates)
    return ClientWindows(
        600.0,
        rates,
        np.full(rates.shape, cv),
        np.ones(rates.shape, dtype=np.int64),
        np.full(rates.shape, 1 / cv**2),
        (histogram,) * n,
        (histogram,) * n,
    )


def test_the_modulation_of_known_rates_is_found_again() -> None:
    generator = np.random.default_rng(4)
    logs = np.zeros((12, 3000))
    rho = math.exp(-600.0 / 3000.0)
    for window in range(1, 3000):
        logs[:, window] = rho * logs[:, window - 1] + 0.5 * math.sqrt(1 - rho**2) * generator.standard_normal(
            12
        )
    found = fit_modulation(_windows(100.0 * np.exp(logs)))
    assert found is not None
    assert found.sigma == pytest.approx(0.5, rel=0.1)
    assert found.correlation_s == pytest.approx(3000.0, rel=0.2)
    assert fit_modulation(_windows(np.full((2, 40), 5.0))) is None


def test_regenerated_arrivals_have_the_published_rates_and_burstiness() -> None:
    data = _windows(np.array([[2.0, 4.0], [0.0, 1.0]]), cv=2.0)
    times_s, owners = regenerate(data, range(2), 1)
    assert (np.diff(times_s) >= 0).all() and times_s[0] > 0.0 and times_s[-1] < 1200.0
    second = times_s[owners == 1]
    assert second.min() > 600.0 and len(second) == pytest.approx(600, rel=0.3)
    long = _windows(np.full((1, 60), 5.0), cv=2.0)
    times_s, _ = regenerate(long, range(60), 2)
    assert gap_cv(times_s) == pytest.approx(2.0, rel=0.1)
    assert index_of_dispersion(times_s, 60.0, 36_000.0) == pytest.approx(4.0, rel=0.25)


def test_typical_hours_are_busy_ones() -> None:
    rates = np.ones((1, 30))
    rates[0, 7] = 0.0
    assert typical_hours(_windows(rates), 2) == [range(12, 18), range(24, 30)]
    with pytest.raises(FitError, match="4 hours in which somebody always asks; needed are 5"):
        typical_hours(_windows(rates), 5)


# ---------------------------------------------------------------- files of ServeGen

TRACE = "0,2.0,1.5,Gamma,0.44,1.1\n600,0,0,,0,0\n1200,1.0,3.0,Weibull,0.45,0.4\n"
LENGTHS = {
    "0": {"input_tokens": "{10: 0.25, 20: 0.75}", "output_tokens": "{5: 1.0}"},
    "1200": {"input_tokens": "{40: 1.0}", "output_tokens": "{}"},
}


def _servegen(folder: Path, trace: str = TRACE, lengths: Any = LENGTHS) -> Path:
    (folder / "chunk-0-trace.csv").write_text(trace, encoding="utf-8")
    (folder / "chunk-1-trace.csv").write_text(TRACE, encoding="utf-8")
    with gzip.open(folder / "chunk-0-dataset.json.gz", "wb") as file:
        file.write(json.dumps(lengths).encode())
    return folder


def test_servegen_is_read(tmp_path: Path) -> None:
    data = read_servegen(_servegen(tmp_path))
    assert data.window_s == 600.0
    assert data.rate_per_s.tolist() == [[2.0, 0.0, 1.0]] * 2
    assert data.shape.tolist() == [[0.44, 0.0, 0.45]] * 2
    values, weights = data.prompts[0]
    # 1,200 requests before 1,200 s and 600 after.
    assert dict(zip(values, weights, strict=True)) == {10.0: 300.0, 20.0: 900.0, 40.0: 600.0}
    assert len(data.prompts[1][0]) == 0
    prompts, outputs = pooled_lengths(data, 4000, 1)
    assert set(outputs) == {5} and np.mean(prompts == 20) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(
    ("trace", "message"),
    [
        ("0,2.0,1.5,Gamma,0.44\n", r"chunk-0-trace.csv: line 1: 5 fields"),
        (TRACE.replace("1200,1.0", "600,1.0"), r"line 3: start = 600.0 does not come after"),
        (TRACE.replace("2.0", "nan"), r"line 1: rate = nan must be finite"),
        (TRACE.replace("2.0", "-2"), r"line 1: rate = -2 must be finite and not negative"),
        (TRACE.replace("1.5", "much"), r"line 1: CV = 'much' is not a number"),
        (TRACE.replace("Gamma", "Pareto"), r"line 1: family = 'Pareto'"),
        (TRACE.replace("0.44", "0"), r"line 1: shape = 0.0 must be > 0"),
        ("0,2.0,1.5,Gamma,0.44,1\n", r"1 windows"),
        (TRACE.replace("1200", "1300"), r"different windows"),
        ('"', r"not a CSV file"),
    ],
)
def test_wrong_windows_are_named(tmp_path: Path, trace: str, message: str) -> None:
    with pytest.raises(FitError, match=message):
        read_servegen(_servegen(tmp_path, trace))


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([], "needed is an object"),
        ({"0": {"input_tokens": "{10: 1.0}"}}, "output_tokens is not a histogram"),
        ({"0": {**LENGTHS["0"], "input_tokens": "__import__('os')"}}, "window 0: input_tokens is not a"),
        ({"0": {**LENGTHS["0"], "input_tokens": "{10: -1.0}"}}, "shares must be finite and not"),
        ({"zero": LENGTHS["0"]}, "'zero' is not a number"),
    ],
)
def test_wrong_lengths_are_named(tmp_path: Path, lengths: Any, message: str) -> None:
    with pytest.raises(FitError, match=message):
        read_servegen(_servegen(tmp_path, lengths=lengths))


def test_truncated_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FitError, match=r"there is no chunk-\*-trace.csv"):
        read_servegen(tmp_path)
    _servegen(tmp_path)
    path = tmp_path / "chunk-0-dataset.json.gz"
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(FitError, match="not gzipped JSON"):
        read_servegen(tmp_path)


# ---------------------------------------------------------------- what is shipped


def test_every_fit_of_the_catalogue_is_shipped() -> None:
    assert sorted(catalogue.CATALOGUE) == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_fit_serves_a_scenario(name: str) -> None:
    fields = yaml.safe_load((WORKLOAD / f"{name}.yaml").read_text(encoding="utf-8"))
    metro = load_scenario("metro")
    slo = next(iter(metro.slo))
    kinds = {kind: {**law, "slo": slo} for kind, law in fields["workload"]["kinds"].items()}
    changes = {
        "workload__arrivals": fields["workload"]["arrivals"],
        "workload__kinds": {**_none(metro), **kinds},
    }
    scenario = load_scenario("metro", **changes)
    generator = WorkloadGenerator(scenario, 1)
    assert generator.request(0, 0).prompt_tokens >= 1
    assert catalogue.Model.from_yaml(fields["workload"]).to_yaml() == fields["workload"]


def _none(scenario: Any) -> dict[str, None]:
    return dict.fromkeys(scenario.workload.kinds)


@pytest.mark.parametrize("name", SHIPPED)
def test_documented_numbers_are_those_of_the_files(name: str) -> None:
    fields = yaml.safe_load((WORKLOAD / f"{name}.yaml").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "workload.md").read_text(encoding="utf-8")
    assert f"workload_{name}.png" in page and (ROOT / "docs" / "figures" / f"workload_{name}.png").is_file()
    for row in fields["compared"]:
        off = f"{row['off_percent']:+.1f} %" if "off_percent" in row else f"{row['off']:+.3f}"
        lines = [line for line in page.splitlines() if line.startswith(f"| {row['statistic']} |")]
        assert any(line.endswith(f"| {off} |") for line in lines), (row, lines)


@pytest.mark.parametrize("name", SHIPPED)
def test_generated_lengths_are_those_in_the_file(name: str) -> None:
    """What the file says of generated lengths comes out of the file's own laws."""
    path = WORKLOAD / f"{name}.yaml"
    fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    prompts, outputs, _ = lengths(catalogue.load_model(path).kinds, 7, 60_000)
    found = length_statistics("prompt", prompts) | length_statistics("answer", outputs)
    for row in fields["compared"]:
        if row["statistic"] in found:
            assert found[row["statistic"]] == pytest.approx(row["generated"], rel=0.05, abs=1.0), row


@pytest.mark.parametrize(
    ("scenario", "name"), [("replay", "azure-conv-2023"), ("replay_servegen", "servegen-deepseek-r1")]
)
def test_a_scenario_has_the_arrivals_and_lengths_of_its_fit(scenario: str, name: str) -> None:
    """Copies do not drift apart; replay alone scales the rate, and answers of ServeGen end earlier."""
    workload, fit = load_scenario(scenario).workload, catalogue.load_model(WORKLOAD / f"{name}.yaml")
    rate = fit.arrivals.rate_per_s if scenario == "replay_servegen" else workload.arrivals.rate_per_s
    assert workload.arrivals == fit.arrivals.model_copy(update={"rate_per_s": rate})
    for kind, own in zip(fit.kinds.values(), workload.kinds.values(), strict=True):
        for key in ("weight", "prompt_tokens", "output_tokens", "length_correlation"):
            assert getattr(own, key) == getattr(kind, key), key


def test_the_azure_fit_compares_with_the_data(data_dir: Path) -> None:
    entry = catalogue.CATALOGUE["azure-conv-2023"]
    measured = catalogue.measure(entry, data_dir)
    fields = yaml.safe_load((WORKLOAD / "azure-conv-2023.yaml").read_text(encoding="utf-8"))
    for row in fields["compared"]:
        assert measured.statistics[row["statistic"]] == pytest.approx(row["data"], rel=1e-3), row


# ---------------------------------------------------------------- the script


def _script(checkout: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "DSD_DATA_DIR"} | env
    return subprocess.run(
        [sys.executable, str(checkout / "scripts" / "fit_workload.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )


def test_script_explains_itself(checkout: Path, tmp_path: Path) -> None:
    listed = _script(checkout, "--list")
    assert listed.returncode == 0 and all(name in listed.stdout for name in catalogue.CATALOGUE)
    missing = _script(checkout, "--all")
    assert missing.returncode == 2 and "DSD_DATA_DIR" in missing.stderr
    unknown = _script(checkout, "--name", "none", "--data-dir", str(tmp_path))
    assert unknown.returncode == 2 and "unknown none" in unknown.stderr
    empty = _script(checkout, "--show", DSD_DATA_DIR=str(tmp_path))
    assert empty.returncode == 1 and "no such file" in empty.stderr and "Traceback" not in empty.stderr


@pytest.mark.slow
def test_script_fits_writes_and_draws(checkout: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    folder = tmp_path / "azure_llm"
    folder.mkdir()
    generator = np.random.default_rng(5)
    n = 1500
    times = np.cumsum(generator.exponential(0.2, n))
    rows = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
    for time_s, prompt, output in zip(
        times, generator.lognormal(6, 1, n), generator.lognormal(5, 0.5, n), strict=True
    ):
        minutes, seconds = divmod(float(time_s), 60.0)
        rows.append(f"2023-11-16 18:{int(minutes):02d}:{seconds:010.7f},{int(prompt) + 1},{int(output) + 1}")
    (folder / "AzureLLMInferenceTrace_conv.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    out = tmp_path / "out"
    arguments = ("--data-dir", str(tmp_path), "--out", str(out), "--figures", str(out), "--plot")
    done = _script(checkout, "--name", "azure-conv-2023", *arguments)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in out.iterdir()) == [
        "azure-conv-2023.yaml",
        "workload_azure-conv-2023.png",
    ]
    fields = yaml.safe_load((out / "azure-conv-2023.yaml").read_text(encoding="utf-8"))
    off = {row["statistic"]: row.get("off_percent", 0.0) for row in fields["compared"]}
    assert abs(off["rate (1/s)"]) < 5 and abs(off["prompt p50"]) < 5 and abs(off["answer p95"]) < 5
