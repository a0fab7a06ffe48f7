"""What fewer bits lose: the whole job on toy models, with figures that must be there and must differ."""

import json

from plait.bench import small_weights
from plait.models import llama


def test_the_job_measures_every_way(tmp_path, monkeypatch):
    for i in range(60):
        text = f"Part {i} of the page says how a thing is done, and why it is done so."
        (tmp_path / f"m{i}.py").write_text(f'"""{text * 4}"""\n')
    (tmp_path / "broken.py").write_text('"""not Python"""\n(')
    kept = [held for held, _ in small_weights.documentation([tmp_path])]
    assert len(kept) == 60 and 0 < sum(kept) < 20
    ways = {way: {"bytes": 8, "value": 2.0} for way in small_weights.WAYS}
    monkeypatch.setattr(small_weights, "translation_errors", lambda run, data, limit: ways)
    toy = llama.Config(vocab_size=300, d_model=32, n_heads=2, n_layers=1, d_ff=64, max_length=16, tie=True)
    job = small_weights.Job(minutes=0.01, threads=1, run=tmp_path, rows=2, tokens=100, settings=toy)
    found = small_weights.run(job, tmp_path, [tmp_path])
    rows = found["language"]["ways"]
    assert list(rows) == list(small_weights.WAYS)
    assert len({row["value"] for row in rows.values()}) == len(rows)
    assert rows["int4"]["bytes"] < rows["int4, embeddings and output int8"]["bytes"] < rows["int8"]["bytes"] < rows["float32"]["bytes"]
    assert rows["float32"]["more"] == 0 and abs(rows["int8"]["more"]) < abs(rows["int4"]["more"])
    assert found["translation"]["ways"]["int8"]["more"] == 0
    assert "of the bytes" in small_weights.shown(json.loads(json.dumps(found)))
