"""How much of ours stands between a text and GPT-2's next token: a count that is to shrink, and must not grow unseen."""

from plait.bench.lines import ROOT, Watched, passed

ANSWERING, ALL = 3900, 6600  # lines of whole files: from text to token, and with opening the folder


def test_the_way_through_gpt2_is_no_longer_than_it_was():
    found = {f.name.replace("\\", "/"): f for f in passed()}
    assert {"models/gpt2.py", "core/attention.py", "hub/languages.py", "weights/rules.py"} <= found.keys()
    steps = [found[name].answering for name in ("core/attention.py", "core/program.py") if name in found]  # modules, or their program
    assert max(steps) > 10 and not found["weights/rules.py"].answering and found["weights/rules.py"].opening > 50
    assert not any(name.startswith(("train/", "data/", "bench/")) or name == "models/bert.py" for name in found)
    assert sum(f.lines for f in found.values() if f.answering) <= ANSWERING
    assert sum(f.lines for f in found.values()) <= ALL


def test_lines_are_counted_where_they_run(tmp_path):
    code = "def f(n):\n    if n:\n        return 1\n    return 2\n"
    names = {}
    for name in (f"{ROOT}made.py", str(tmp_path / "other.py")):
        exec(compile(code, name, "exec"), names)
        with Watched() as watched:
            names["f"](1)
        assert dict(watched.ran) == ({"made.py": {2, 3}} if name.startswith(ROOT) else {})
