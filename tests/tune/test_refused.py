"""What bad input to tuning gets: every fault at once, and the model as it was."""

import pytest
import torch

from plait.core.memory import Prompt as Entries
from plait.core.quantised import place, quantised
from plait.errors import InputError
from plait.tune import (
    IA3,
    Adapter,
    BitFit,
    Full,
    HeadOnly,
    LoRA,
    Prefix,
    Prompt,
    attach,
    load_small,
    merge,
    names,
    select,
    small,
    tuning_of,
)


def refused(net, tuning, **more) -> str:
    state, learns = {name: p.clone() for name, p in net.named_parameters()}, [p.requires_grad for p in net.parameters()]
    with pytest.raises(InputError) as error:
        attach(net, tuning, **more)
    assert all(torch.equal(p, state[name]) for name, p in net.named_parameters())
    assert [p.requires_grad for p in net.parameters()] == learns
    assert not hasattr(net, "tunings")
    return str(error.value)


def test_everything_wrong_with_targets_is_told_at_once(model):
    told = refused(model(), LoRA(rank=20, targets=("*.k_proj", "*.q_prj", "*.nothing")), also=["heads.none"])
    assert "'*.q_prj' matches no matrix" in told and "q_proj" in told.split("q_prj")[1]
    assert "'*.nothing'" in told and "'heads.none'" in told
    assert told.count("rank=20 is beyond its width; take at most 16") == 2


def test_a_method_with_nothing_to_train_is_refused(model):
    assert "matches no module with a bias; there is none" in refused(model(), BitFit())
    assert "matches no parameter of a head; there is none" in refused(model(tie=True), HeadOnly())


def test_full_tuning_of_quantised_weights_is_refused(model):
    net = model().float()
    place(net, {"decoder.blocks.0.ffn.up_proj": quantised(net.get_submodule("decoder.blocks.0.ffn.up_proj").weight, 8)})
    assert "quantised" in refused(net, Full())


@pytest.mark.parametrize(
    ("tuning", "told"),
    [
        (LoRA(rank=0), "rank=0"),
        (LoRA(alpha=-1), "alpha=-1"),
        (LoRA(dropout=1.0), "dropout=1.0"),
        (Prefix(length=0), "length=0"),
        (Prefix(hidden=0), "hidden=0"),
        (Prompt(towers=("encoder",)), "'encoder' matches no tower"),
        (Adapter(activation="rel"), "activation='rel'"),
        (Adapter(width=1.5), "width=1.5"),  # type: ignore[arg-type]
        (LoRA(targets="*.q_proj"), "expected a list"),  # type: ignore[arg-type]
        (IA3(outputs=("*.k_proj",), inputs=("*.k_proj",)), "among outputs and inputs"),
    ],
)
def test_settings_that_cannot_be_are_refused(model, tuning, told):
    assert told in refused(model(), tuning)


def test_an_unknown_method_or_setting_is_refused():
    with pytest.raises(InputError, match="did you mean lora"):
        tuning_of({"method": "lorra"})
    with pytest.raises(InputError, match="not rang"):
        tuning_of({"method": "lora", "rang": 3})


def test_names_of_what_is_attached_are_checked(model):
    net = model()
    assert "expected a word" in refused(net, LoRA(), name="a.b")
    attach(net, LoRA(rank=2))
    with pytest.raises(InputError, match="is taken"):
        attach(net, LoRA(rank=2))
    assert names(net) == ["default"] and net.tunings.chosen == "default"
    with pytest.raises(InputError, match="there is default"):
        select(net, "other")


def test_tensors_of_another_model_are_refused_all_at_once(model):
    wide = model(d_model=48, n_layers=3)
    attach(wide, LoRA(rank=2))
    net = model()
    with pytest.raises(InputError) as error:
        load_small(net, LoRA(rank=2), small(wide))
    told = "\n".join(error.value.faults)
    assert "decoder.blocks.0.self_attn.q_proj.a is [2, 48], this model takes [2, 32]" in told
    assert "decoder.blocks.2.self_attn.v_proj.b has no place in this model" in told
    assert len(error.value.faults) == 12
    assert not names(net)


def test_what_cannot_be_merged_says_so(model, moved, said):
    for tuning in (Prefix(length=2), Prompt(length=2), Adapter(width=3)):
        net = model()
        attach(net, tuning)
        answer = said(moved(net))
        with pytest.raises(InputError, match="stays beside them"):
            merge(net)
        assert torch.equal(said(net), answer)


def test_a_part_of_a_prompt_is_learned_in_its_tower_alone(model):
    net = model("t5")
    attach(net, Prompt(length=2, towers=("decoder",)))
    assert [type(part) for part in net.tunings.modules() if isinstance(part, Entries)] == [Entries]
    assert net.encoder.prompt is None
