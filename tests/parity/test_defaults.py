"""What a config.json leaves out is what the reference takes for it: its files hold only what differs from its defaults."""

import pytest

from plait import models
from plait.weights import config as keys

transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install 'plait[bench]')")

FAMILIES = [(table.model_type, page) for page in models.PAGES.values() for table in getattr(page, "KEYS", ())]


@pytest.mark.parametrize(("model_type", "page"), FAMILIES, ids=[model_type for model_type, _ in FAMILIES])
def test_a_config_that_says_nothing_is_the_references_default(model_type, page):
    whole = keys.read(page.KEYS, transformers.AutoConfig.for_model(model_type).to_dict())
    bare = keys.read(page.KEYS, {"model_type": model_type})
    sizes = {name for name, value in bare.items() if value is None and whole[name] is not None}
    assert sizes <= {"d_head", "n_kv_heads", "n_decoder_layers", "d_pooled"}  # follow from others, which the reference writes down
    assert bare == whole | dict.fromkeys(sizes)
