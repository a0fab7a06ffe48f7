"""Turns, ratios and what is written down."""

import json

import pytest

from plait.bench import measure


def test_contestants_take_turns_and_warm_ups_do_not_count():
    order = []
    turns = measure.Turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3, warmup=2).run()
    assert order == ["a", "b"] * 5
    assert [len(seconds) for seconds in turns.times.values()] == [3, 3]
    assert turns.times["a"] == turns.all["a"][2:]


def test_a_loop_that_hosts_the_turns():
    turns = measure.Turns({"a": lambda: None}, rounds=2, warmup=1)
    for seconds in (9.0, 1.0, 2.0):
        turns.note("host", seconds)
        turns.round()
    assert turns.times["host"] == [1.0, 2.0] and len(turns.times["a"]) == 2


def test_ratios_pair_the_turns_of_a_round():
    found = measure.compared({"ours": [1.0, 2.0, 4.0], "theirs": [2.0, 6.0, 4.0]}, "ours")
    assert found == {"theirs": {"median": 2.0, "lowest": 1.0, "highest": 3.0, "rounds": [2.0, 3.0, 1.0]}}
    assert measure.compared({"theirs": [1.0]}, "ours") == {}


def test_the_summary_and_its_table():
    found = measure.summary({"plait": [0.5, 0.5, 0.7], "peer": [1.0, 2.0, 1.0]}, tokens=100, operations=4000, rate=10_000.0, ours="plait")
    assert found["limit"]["tokens_per_second"] == 250 and found["limit"]["operations_per_token"] == 40
    assert found["contestants"]["plait"]["tokens_per_second"] == 200
    assert found["contestants"]["plait"]["of_limit"] == pytest.approx(0.8)
    assert found["ratios"]["peer"]["median"] == 2.0
    lines = measure.table("title", found, "plait").splitlines()
    assert lines[0] == "title" and len(lines) == 5
    assert lines[3].split()[:5] == ["peer", "100", "1,000", "40", "%"] and "2.00  (1.43 to 4.00)" in lines[3]
    assert lines[4].split()[:3] == ["limit", "250", "100"]


def test_the_product_rate():
    product = measure.Product(size=32, repeats=2)
    product()
    product()
    assert len(product.rates) == 2 and min(product.rates) <= product.rate(2) <= max(product.rates)


def test_a_record_says_where_and_when(tmp_path):
    found = measure.record("train-speed", 2, {"rounds": 3})
    assert {"job", "date", "commit", "changed", "dtype", "threads", "load_before", "machine", "settings"} <= set(found)
    assert found["threads"] == 2 and found["dtype"] == "float32"
    assert {"cpu", "flags", "cores", "torch", "torch_uses"} <= set(found["machine"])
    measure.write({**found, "path": tmp_path}, tmp_path / "new" / "one.json")
    assert json.loads((tmp_path / "new" / "one.json").read_text())["settings"] == {"rounds": 3}
