"""The programs of the testbed: their arguments and what they refuse."""

import io

import pytest

pytest.importorskip("grpc", reason="needs the extra `testbed`")
pytest.importorskip("transformers", reason="needs the extra `testbed`")
pytest.importorskip("rich", reason="needs the extra `testbed`")

from rich.console import Console

from dsd_env.testbed.bench import summarise
from dsd_env.testbed.client import Output
from dsd_env.testbed.live import LiveView


@pytest.fixture(autouse=True)
def scripts(checkout, monkeypatch):
    monkeypatch.syspath_prepend(str(checkout / "scripts"))


def test_tokens_of_clients(tmp_path):
    import testbed

    path = tmp_path / "tokens.txt"
    path.write_text("# names and tokens\nanna 0123456789abcdef\n\nben fedcba9876543210\n")
    assert testbed.read_tokens(path) == {"anna": "0123456789abcdef", "ben": "fedcba9876543210"}
    for text, wrong in (
        ("", "no token"),
        ("anna\n", "line 1"),
        ("anna short\n", "line 1"),
        ("anna 0123456789abcdef\nanna fedcba9876543210\n", "line 2"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=wrong):
            testbed.read_tokens(path)


def test_what_cannot_be_is_told_before_anything_is_loaded(capsys):
    import testbed
    import testbed_demo

    assert testbed_demo.main(["--rule", "best"]) == 2
    assert "unknown rule 'best'" in capsys.readouterr().err
    assert testbed.main(["ask", "--rule", "best", "hello"]) == 1
    assert testbed.main(["serve", "--tls-key", "k.pem"]) == 1
    assert "--tls-certificate" in capsys.readouterr().err
    assert testbed.main(["serve", "--token-file", "/nowhere"]) == 1
    for arguments in (["ask", "x", "--tokens", "0"], ["serve", "--threads", "0"]):
        with pytest.raises(SystemExit):
            testbed.parse_arguments(arguments)
    with pytest.raises(SystemExit):
        testbed_demo.parse_arguments(["--clients", "0"])


def outputs():
    first = Output([1, 2, 3], "length", 1.0, 3.0, [1.0, 2.0, 3.0], 4, 4, 1, 2, 2, 1, 0, 0, [0.1, 0.3])
    return [first, Output([1, 2], "stop", 2.0, 3.0, [2.0, 3.0], 1, 0, 0, 2, 2, 0, 3, 0, [])]


def test_means_of_a_setting_by_hand():
    one = summarise("x", outputs())
    assert (one.requests, one.tokens, one.drafted, one.verified, one.accepted) == (2, 5, 5, 4, 1)
    assert (one.ttft_s, one.e2e_s, one.rtt_s) == pytest.approx((1.5, 3.0, 0.2))
    assert one.tpot_s == pytest.approx((2.0 + 1.0) / 3)
    assert (one.iterations, one.tokens_per_iteration, one.retries) == (4, 1.25, 3)


def test_the_table_and_the_live_view_show_the_figures():
    import testbed_demo

    console = Console(width=200, record=True, file=io.StringIO())
    console.print(testbed_demo.table([summarise("plain", outputs())], testbed_demo.parse_arguments([])))
    view = LiveView("title", lambda tokens: " ".join(map(str, tokens)))
    event = {"time_s": 1.0, "request": 0, "entity": 0}
    view.watch(event | {"kind": "ARRIVAL", "value": 3})
    view.watch(event | {"kind": "DECISION", "value": 4, "placement": "edge", "rtt_s": 0.0205})
    view.watch(event | {"kind": "COMMIT", "value": 3, "time_s": 2.0})
    view.tokens(0, [7, 8])
    view.tokens(1, [9])
    view.tokens(0, [5])
    console.print(view.show())
    shown = console.export_text()
    for text in ("1000", "1.25", "1/4", "title", "20 ms", "3.0"):
        assert text in shown
    assert "9" in shown.splitlines()[-2]
    assert "5" not in shown.splitlines()[-2]
