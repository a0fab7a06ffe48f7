"""PEFT's files both ways: its logits from ours, ours from its, on random models that the reference library builds."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from plait.core.stream import Stream
from plait.errors import InputError
from plait.hub.checkpoints import open_net
from plait.hub.peft_files import read_peft
from plait.hub.peft_writing import write_peft
from plait.tune import IA3, BitFit, LoRA, Prefix, Prompt, attach, detach, names, small

transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install 'plait[bench]')")
peft = pytest.importorskip("peft", reason="peft is not installed (pip install 'plait[bench]')")

# Both libraries' own affair.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
VOCAB = 31
LLAMA = dict(hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=VOCAB)
NEOX = dict(hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3, vocab_size=VOCAB, rotary_pct=0.5)
GPT2 = dict(n_embd=24, n_layer=2, n_head=3, vocab_size=VOCAB, n_positions=40, bos_token_id=None, eos_token_id=None)
BERT = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, vocab_size=VOCAB, num_labels=3)
T5 = dict(d_model=24, d_kv=8, num_heads=3, num_layers=3, d_ff=40, vocab_size=VOCAB, decoder_start_token_id=0)
PEERS = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", LLAMA, "CAUSAL_LM"),
    "neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", NEOX, "CAUSAL_LM"),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT2, "CAUSAL_LM"),
    "bert": ("BertForSequenceClassification", "BertConfig", BERT, "SEQ_CLS"),
    "t5": ("T5ForConditionalGeneration", "T5Config", T5, "SEQ_2_SEQ_LM"),
}
FUSED = {"neox": ["query_key_value", "dense"], "gpt2": ["c_attn", "c_proj"]}
PLAIN = {"llama": ["q_proj", "v_proj", "down_proj"], "bert": ["query", "value"], "t5": ["q", "v", "wo"], **FUSED}
FORWARD = {"llama": ["down_proj"], "bert": ["output.dense"], "t5": ["wo"], "neox": ["dense_4h_to_h"], "gpt2": ["mlp.c_proj"]}
KEYS = {"llama": ["k_proj", "v_proj"], "bert": ["key", "value"], "t5": ["k", "v"], "neox": ["query_key_value"], "gpt2": ["c_attn"]}


BOUND = dict.fromkeys(PEERS, 1e-11) | {"llama": 2e-7, "neox": 2e-7}  # the reference keeps the rates of rotary positions in float32


def lora(arch, **more):
    return peft.LoraConfig(r=2, lora_alpha=5, target_modules=PLAIN[arch], fan_in_fan_out=arch == "gpt2", task_type=PEERS[arch][3], **more)


def ia3(arch):
    modules = dict(target_modules=KEYS[arch] + FORWARD[arch], feedforward_modules=FORWARD[arch])
    return peft.IA3Config(**modules, fan_in_fan_out=arch == "gpt2", task_type=PEERS[arch][3])


def prefix(arch):
    return peft.PrefixTuningConfig(num_virtual_tokens=3, task_type=PEERS[arch][3])


def prompt(arch):
    return peft.PromptTuningConfig(num_virtual_tokens=3, task_type=PEERS[arch][3])


CASES = {
    **{f"lora {arch}": (arch, lora) for arch in PEERS},
    **{f"ia3 {arch}": (arch, ia3) for arch in PEERS},
    "rslora llama": ("llama", lambda arch: lora(arch, use_rslora=True, rank_pattern={"v_proj": 3}, alpha_pattern={"q_proj": 7})),
    "dora llama": ("llama", lambda arch: lora(arch, use_dora=True)),
    "dora neox": ("neox", lambda arch: lora(arch, use_dora=True)),
    "prefix llama": ("llama", prefix),
    "prefix neox": ("neox", prefix),
    "prefix t5": ("t5", prefix),
    "prompt llama": ("llama", prompt),
    "prompt t5": ("t5", prompt),
}


@pytest.fixture(autouse=True)
def quiet():
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@pytest.fixture
def peer(tmp_path):
    """(their model in float64, ours, our settings) of the same random weights."""

    def made(arch):
        cls, config, sizes, _ = PEERS[arch]
        torch.manual_seed(0)
        theirs = getattr(transformers, cls)(getattr(transformers, config)(**sizes, attn_implementation="eager")).eval()
        for p in theirs.parameters():
            torch.nn.init.normal_(p, mean=float(p.dim() == 1), std=0.2)
        theirs.save_pretrained(tmp_path / "base")
        net, _, settings, _ = open_net(tmp_path / "base")
        return theirs.double(), net.double(), settings

    return made


def moved(module):
    torch.manual_seed(1)
    with torch.no_grad():
        for p in module.parameters():
            if p.requires_grad:
                p.copy_((p + 0.3 * torch.randn_like(p)).float())  # their parts are read in float32
    return module


IDS = torch.randint(3, VOCAB, (2, 6), generator=torch.Generator().manual_seed(2))


def asked(theirs, net):
    """(their logits, ours) of real entries, the second row padded. Where the reference narrows to float32 it stays in float64."""
    with pytest.MonkeyPatch.context() as wide, torch.no_grad():
        for name in ("float", "float32"):
            wide.setattr(torch, name, torch.float64)
        wide.setattr(torch.Tensor, "float", torch.Tensor.double)
        return answers(theirs, net)


def answers(theirs, net):
    real = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    if net.towers == ("encoder", "decoder"):
        wanted = theirs(input_ids=IDS, attention_mask=real.long(), decoder_input_ids=IDS.flip(1)).logits
        return wanted[:, -6:], net.heads["lm"](net(Stream(IDS, real=real), IDS.flip(1))["decoder"].x)
    wanted = theirs(input_ids=IDS, attention_mask=real.long()).logits
    if net.towers == ("encoder",):
        return wanted, net.heads["classify"](net(Stream(IDS, real=real))["encoder"].x[:, 0])
    return wanted[:, -6:][real], net.heads["lm"](net(Stream(IDS, real=real))["decoder"].x)[real]


@pytest.mark.parametrize("case", CASES)
def test_their_folder_gives_their_logits(case, peer, tmp_path):
    arch, config = CASES[case]
    theirs, net, settings = peer(arch)
    plain = asked(theirs, net)
    tuned = moved(peft.get_peft_model(theirs, config(arch)).double()).eval()
    tuned.save_pretrained(tmp_path / "theirs")
    read_peft(tmp_path / "theirs", net, settings)
    wanted, found = asked(tuned, net)
    assert not torch.allclose(wanted, plain[0], atol=1e-3)
    assert_close(found, wanted, rtol=0, atol=BOUND[arch])


OURS = {
    "lora llama": ("llama", LoRA(rank=2, targets=("*_proj",))),
    "rslora neox": ("neox", LoRA(rank=2, scaling="sqrt")),
    "lora gpt2": ("gpt2", LoRA(rank=2, targets=("*.q_proj", "*.v_proj", "*.up_proj"))),
    "dora gpt2": ("gpt2", LoRA(rank=2, magnitude=True)),
    "lora bert": ("bert", LoRA(rank=2)),
    "dora t5": ("t5", LoRA(rank=2, targets=("*_attn.?_proj",), magnitude=True)),
    "ia3 llama": ("llama", IA3()),
    "ia3 gpt2": ("gpt2", IA3(inputs=("*.down_proj", "*.o_proj"))),
    "ia3 t5": ("t5", IA3()),
    "prefix llama": ("llama", Prefix(length=3, hidden=5)),
    "prefix t5": ("t5", Prefix(length=3, attentions=("decoder.*.self_attn",))),
    "prompt neox": ("neox", Prompt(length=3)),
    "prompt t5": ("t5", Prompt(length=3)),
}


@pytest.mark.parametrize("case", OURS)
def test_our_folder_gives_our_logits(case, peer, tmp_path):
    arch, tuning = OURS[case]
    theirs, net, settings = peer(arch)
    attach(net, tuning)
    moved(net)
    write_peft(net, settings, tmp_path / "ours", base="base")
    tuned = peft.PeftModel.from_pretrained(theirs, tmp_path / "ours").double().eval()
    wanted, found = asked(tuned, net)
    assert_close(found, wanted, rtol=0, atol=BOUND[arch])
    detach(net)
    read_peft(tmp_path / "ours", net, settings, "again")
    assert_close(asked(tuned, net)[1], found, rtol=0, atol=1e-12)


def test_a_new_head_goes_along(peer, tmp_path):
    theirs, net, settings = peer("bert")
    tuned = moved(peft.get_peft_model(theirs, lora("bert", modules_to_save=["classifier"])).double()).eval()
    tuned.save_pretrained(tmp_path / "theirs")
    read_peft(tmp_path / "theirs", net, settings)
    wanted, found = asked(tuned, net)
    assert_close(found, wanted, rtol=0, atol=1e-11)
    assert "heads.classify.scores.weight" in small(net)
    write_peft(net, settings, tmp_path / "ours")
    again = peft.PeftModel.from_pretrained(peer("bert")[0], tmp_path / "ours").double().eval()
    assert_close(asked(again, net)[0], wanted, rtol=0, atol=1e-11)


def test_what_does_not_fit_is_told_at_once(peer, tmp_path):
    theirs, net, settings = peer("llama")
    folder = tmp_path / "theirs"
    peft.get_peft_model(theirs, lora("llama")).save_pretrained(folder)
    tensors, config = load_file(folder / "adapter_model.safetensors"), json.loads((folder / "adapter_config.json").read_text())

    def refused(tensors=tensors, **more) -> str:
        save_file(tensors, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps(config | more))
        with pytest.raises(InputError) as error:
            read_peft(folder, net, settings)
        assert not names(net)
        assert all(p.requires_grad for p in net.parameters())
        return str(error.value)

    key = next(key for key in tensors if "layers.0.self_attn.q_proj.lora_A" in key)
    other = {k.replace("layers.0", "layers.9"): t for k, t in tensors.items()}
    assert "layers.9.self_attn.q_proj.lora_A.weight has no place" in refused(other)
    assert "[2, 20]" in refused(tensors | {key: tensors[key][:, :20].contiguous()})
    told = refused(bias="all", lora_bias=True, init_lora_weights="pissa")
    assert "bias='all'" in told and "lora_bias" in told and "pissa" in told
    assert "peft_type='LOHA'" in refused(peft_type="LOHA")
    assert "are not what PEFT writes" in refused(r=None, use_rslora=True)
    (folder / "adapter_model.safetensors").write_bytes(b"short")
    with pytest.raises(InputError, match="not a whole safetensors"):
        read_peft(folder, net, settings)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(InputError, match="pickle"):
        read_peft(folder, net, settings)


@pytest.mark.parametrize("config", [prefix, prompt])
def test_positions_that_count_what_was_learned_are_refused(config, peer, tmp_path):
    theirs, net, settings = peer("gpt2")
    peft.get_peft_model(theirs, config("gpt2")).save_pretrained(tmp_path / "theirs")
    with pytest.raises(InputError, match="positions"):
        read_peft(tmp_path / "theirs", net, settings)


def test_what_peft_cannot_say_is_refused(peer, tmp_path):
    _, net, settings = peer("bert")
    attach(net, BitFit())
    with pytest.raises(InputError, match="no file for it"):
        write_peft(net, settings, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()
