"""plait models: totals that were published, tasks and references that the pages themselves say, in a terminal's width."""

import json

import pytest

from plait import cli
from plait.models import PAGES
from plait.verbs.models import Models


@pytest.fixture(scope="module")
def rows():
    return Models().run()


def test_every_preset_has_a_row_and_a_released_one_its_published_total(rows):
    assert [row["preset"] for row in rows] == [f"{arch}-{size}" for arch, page in PAGES.items() for size in page.PRESETS]
    totals = {row["preset"]: row["parameters"] for row in rows}
    # As the released files of openai-community/gpt2 and meta-llama/Llama-2-7b-hf have them; BERT: 110M (Devlin et al. 2019, section 3).
    assert totals["gpt2-124m"] == 124_439_808 and totals["llama-llama-2-7b"] == 6_738_415_616
    assert totals["bert-base"] == pytest.approx(110e6, rel=0.01)


def test_totals_of_untrained_translators_follow_the_vocabulary(rows):
    small = {row["preset"]: row["parameters"] for row in Models(vocab_size=1000).run()}
    for row in rows:
        ours = row["page"] == "vaswani" or (
            row["page"].startswith("modern") and row["page"] not in ("modern-vision", "modern-video", "modern-detector")
        )
        assert (small[row["preset"]] < row["parameters"]) == ours


def test_tasks_and_references_are_those_of_the_page(rows):
    facts = {row["page"]: row for row in rows}
    assert facts["bert"]["tasks"]["fill-mask"] == ["BertForMaskedLM"] and facts["bert"]["tasks"]["embed"] == ["BertModel"]
    assert facts["llama"]["tasks"] == {"generate": ["LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM"]}
    assert "MarianMTModel" in facts["bart"]["tasks"]["translate"] and facts["vaswani"]["tasks"] == {"translation": []}
    assert {"config.json qwen2", "GGUF llama"} <= set(facts["llama"]["opens"])


def test_every_named_reference_is_there(rows):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install 'plait[bench]')")
    for row in rows:
        names = [name for found in row["tasks"].values() for name in found]
        assert (len(names) > 0) == hasattr(PAGES[row["page"]], "KEYS"), row["page"]
        assert all(hasattr(transformers, name) for name in names), names


def test_it_is_shown_in_a_terminals_width(capsys, rows, monkeypatch):
    monkeypatch.setattr(Models, "run", lambda verb: rows)  # building every preset takes seconds
    assert cli.main(["models"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 120 and "gpt2-124m 124 M" in shown and "\xa0" not in shown
    assert all(row["preset"] in shown for row in rows)
    assert cli.main(["models", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["shape"] == PAGES["vaswani"].PRESETS["tiny"]
