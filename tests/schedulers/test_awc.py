"""Adaptive window control: the network's files, its numbers, and what is made of its predictions."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dsd_env.control import ActionSpace, DecisionView, Site
from dsd_env.schedulers import SchedulerError, make_scheduler
from dsd_env.schedulers.awc import APART, AwcScheduler, shipped_network
from dsd_env.schedulers.awc_network import (
    FEATURES,
    JSON_FILE,
    LARGEST,
    NPZ_FILE,
    Control,
    Description,
    Floats,
    WindowNetwork,
    described_features,
    features_of,
    load_network,
    save_network,
    to_scale,
    to_tokens,
)
from tests.engines import assert_engines_agree
from tests.scenarios import tiny
from tests.views import make_candidate, make_request, make_target, make_view


def blank(width: int = 4, blocks: int = 1) -> tuple[Description, dict[str, Floats]]:
    description = Description(features=described_features(), width=width, blocks=blocks, npz_sha256="0" * 64)
    return description, {
        name: np.zeros(shape, dtype=np.float32) for name, shape in description.shapes().items()
    }


def constant(window: float, node: float, **control: float) -> WindowNetwork:
    """Return a network that always gives the same lengths, in tokens."""
    description, arrays = blank()
    arrays["out_bias"][:] = to_scale(window), to_scale(node)
    return WindowNetwork(description.model_copy(update={"control": Control(**control)}), arrays)


def by_round_trip(control: Control | None = None) -> WindowNetwork:
    """Return one whose window is log2(1 + window) = its scaled round trip."""
    description, arrays = blank()
    arrays["in_weight"][0, list(FEATURES).index("rtt")] = 1.0
    arrays["out_weight"][0, 0] = 1.0
    return WindowNetwork(description.model_copy(update={"control": control or Control()}), arrays)


def three_sites(rtt_s: float = 0.02) -> DecisionView:
    target = make_target()
    return make_view(tuple(make_candidate(site, target, rtt_s=rtt_s) for site in Site))


# --- numbers ---------------------------------------------------------------------------------------


def test_a_forward_pass_by_hand() -> None:
    description, arrays = blank(width=2)
    arrays["in_weight"][0, 0], arrays["in_weight"][1, 1] = 2.0, -1.0
    arrays["block_0_a_weight"][0, 0], arrays["block_0_b_weight"][1, 0] = 1.0, 0.5
    arrays["out_weight"][0], arrays["out_bias"][1] = (1.0, 1.0), 0.25
    inputs = np.zeros(len(FEATURES), dtype=np.float32)
    inputs[0], inputs[1] = 1.0, 3.0
    # hidden = relu(2, -3) = (2, 0); the block adds (0, 0.5 * relu(2)) = (0, 1); out = (2 + 1, 0.25).
    assert WindowNetwork(description, arrays).outputs(inputs).tolist() == [3.0, 0.25]
    assert WindowNetwork(description, arrays).predict(inputs)[0] == pytest.approx(7.0)


def test_lengths_and_their_scale() -> None:
    for tokens in (0, 1, 4, 16):
        assert to_tokens(to_scale(tokens)) == pytest.approx(tokens)
    assert to_tokens(-3.0) == 0.0 and to_tokens(1e9) == 1023.0


def test_features_are_scaled_and_cut() -> None:
    target = make_target(resident=40, waiting=8, iteration_s=0.06)
    remote = make_candidate(Site.OWN_DEVICE, target, rtt_s=60.0, draft_step_s=0.03)
    view = make_view((remote,), request=make_request(acceptance_rate=0.5))
    values = dict(zip(FEATURES, features_of(view, remote, None, 4).tolist(), strict=True))
    assert values["queue"] == 1.5 and values["iteration"] == pytest.approx(2.0)
    assert values["rtt"] == LARGEST and values["draft_step"] == pytest.approx(2.0)
    assert values["acceptance"] == 0.5 and values["last_length"] == 0.5 and values["node_step"] == 0.0


# --- decisions -------------------------------------------------------------------------------------


def test_windows_are_smoothed_and_cut() -> None:
    scheduler = AwcScheduler("awc", by_round_trip(Control(smoothing=0.5, largest=12)), APART["own"])
    far, near = three_sites(8 * 0.03), three_sites(2 * 0.03)
    assert scheduler.decide(far).gamma == 12  # 2^8 - 1, cut
    # (12 + 3) / 2 = 7.5, of two as near the shorter; then 5.25, 4.125, 3.5625
    assert [scheduler.decide(near).gamma for _ in range(4)] == [7, 5, 4, 4]


def test_modes_change_after_some_decisions_in_a_row() -> None:
    scheduler = AwcScheduler(
        "awc", by_round_trip(Control(smoothing=1.0, hold=3, fused_below=2.0, apart_above=4.0)), APART["own"]
    )
    apart, fused, between = three_sites(3 * 0.03), three_sites(1 * 0.03), three_sites(2 * 0.03)

    def mode(view: DecisionView) -> Site | None:
        decision = scheduler.decide(view)
        return view.candidates[decision.placement].site if decision.gamma else None

    assert mode(apart) == Site.OWN_DEVICE
    assert [mode(view) for view in (fused, fused, between, fused, fused)] == [Site.OWN_DEVICE] * 5
    assert mode(fused) is None  # the length beside the target is 0 in this network
    assert [mode(view) for view in (apart, apart)] == [None, None]
    assert mode(apart) == Site.OWN_DEVICE
    scheduler.reset(tiny(), 0)
    assert mode(fused) is None


def test_fused_requests_draft_beside_the_target_or_decode_plainly() -> None:
    view = three_sites()
    decision = AwcScheduler("awc", constant(1, 4), APART["own"]).decide(view)
    assert decision.gamma == 4 and view.candidates[decision.placement].site == Site.COLOCATED
    without = make_view(tuple(replace(each, valid=each.site != Site.COLOCATED) for each in view.candidates))
    assert AwcScheduler("awc", constant(1, 4), APART["own"]).decide(without).gamma == 0
    alone = make_view(tuple(replace(each, valid=each.site == Site.COLOCATED) for each in view.candidates))
    decision = AwcScheduler("awc", constant(8, 4), APART["own"]).decide(alone)
    assert alone.candidates[decision.placement].site == Site.COLOCATED


@pytest.mark.parametrize("spec", ["awc", "awc:edge"])
@pytest.mark.parametrize("kind", ["synchronous", "streaming"])
def test_the_shipped_network_decides_alike_on_both_engines(spec: str, kind: str) -> None:
    scenario = tiny(protocol={"kind": kind})
    assert assert_engines_agree(scenario, spec, 4) > 100


def test_decisions_are_on_the_lists() -> None:
    view = three_sites()
    scheduler = make_scheduler("awc")
    ActionSpace(view.gammas, view.batch_sizes, len(view.candidates)).encode(scheduler.decide(view))
    assert make_scheduler(scheduler.name).name == scheduler.name == "awc:own"
    assert make_scheduler("awc:edge").name == "awc:edge"


# --- files -----------------------------------------------------------------------------------------


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    description, arrays = blank()
    arrays = {name: rng.normal(size=array.shape).astype(np.float32) for name, array in arrays.items()}
    made = save_network(tmp_path / "a", arrays, width=4, blocks=1, training={"seed": 3})
    again = save_network(tmp_path / "b", arrays, width=4, blocks=1, training={"seed": 3})
    assert (
        made == again and (tmp_path / "a" / NPZ_FILE).read_bytes() == (tmp_path / "b" / NPZ_FILE).read_bytes()
    )
    loaded = load_network(tmp_path / "a")
    assert loaded.description == made
    inputs = rng.uniform(size=(5, len(FEATURES))).astype(np.float32)
    assert np.array_equal(loaded.outputs(inputs), WindowNetwork(description, arrays).outputs(inputs))
    assert make_scheduler(f"awc:edge:{tmp_path / 'a'}").name == f"awc:edge:{tmp_path / 'a'}"


def damaged(folder: Path, **changes: object) -> Path:
    data = json.loads((folder / JSON_FILE).read_text())
    (folder / JSON_FILE).write_text(json.dumps({**data, **changes}))
    return folder


def test_what_is_damaged_or_foreign_is_refused(tmp_path: Path) -> None:
    def copy(name: str) -> Path:
        return Path(shutil.copytree(shipped_network(), tmp_path / name))

    with pytest.raises(SchedulerError, match="no such file"):
        make_scheduler(f"awc:{tmp_path / 'nowhere'}")
    bad = copy("bytes")
    (bad / NPZ_FILE).write_bytes((bad / NPZ_FILE).read_bytes()[:-1])
    with pytest.raises(SchedulerError, match="SHA-256"):
        load_network(bad)
    with pytest.raises(SchedulerError, match="no description"):
        load_network(damaged(copy("format"), format="another"))
    with pytest.raises(SchedulerError, match="train it again"):
        load_network(damaged(copy("features"), features=[]))
    with pytest.raises(SchedulerError, match=r"arrays are not those|shape"):
        load_network(damaged(copy("width"), width=5))
    large = copy("large")
    (large / NPZ_FILE).write_bytes(b"0" * (1 << 21))
    with pytest.raises(SchedulerError, match="larger than"):
        load_network(large)
    with pytest.raises(SchedulerError, match="not finite"):
        save_network(
            tmp_path / "nan", {k: v + np.float32("nan") for k, v in blank()[1].items()}, width=4, blocks=1
        )


def test_objects_in_arrays_are_not_unpickled(tmp_path: Path) -> None:
    import hashlib
    import io
    import zipfile

    folder = Path(shutil.copytree(shipped_network(), tmp_path / "objects"))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in load_network(folder).description.shapes():
            member = io.BytesIO()
            np.save(member, np.array([{"a": 1}], dtype=object), allow_pickle=True)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), member.getvalue())
    (folder / NPZ_FILE).write_bytes(buffer.getvalue())
    damaged(folder, npz_sha256=hashlib.sha256(buffer.getvalue()).hexdigest())
    with pytest.raises(SchedulerError, match="something else than plain arrays"):
        load_network(folder)
