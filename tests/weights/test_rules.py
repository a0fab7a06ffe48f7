"""The two-way table: what it claims, what it refuses, and that the way back gives the file's bits."""

from pathlib import Path

import pytest
import torch
from torch import nn

from plait.errors import InputError
from plait.weights.rules import computed, drop, export, load, prefix, rule, split, tie, transpose


class Made:
    """A source of tensors in memory that counts what is read."""

    metadata, path = {}, Path("made.safetensors")

    def __init__(self, **tensors):
        self.tensors = {name.replace("__", "."): t for name, t in tensors.items()}
        self.reads: list[str] = []

    def shapes(self):
        return {name: tuple(t.shape) for name, t in self.tensors.items()}

    def read(self, name):
        self.reads.append(name)
        return self.tensors[name].clone()


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def linear(d_in, d_out, bias=True):
    return nn.Linear(d_in, d_out, bias)


class Net(nn.Module):
    """Three projections and a head: `tied` has no weight of its own."""

    def __init__(self, tied=True, device="meta"):
        super().__init__()
        with torch.device(device):
            self.tokens = nn.Embedding(7, 4)
            self.blocks = nn.ModuleList(nn.ModuleDict({"q": linear(4, 4), "k": linear(4, 2), "v": linear(4, 2)}) for _ in range(2))
            self.head = None if tied else linear(4, 7, False)


TABLE = (
    prefix("model."),
    rule("model.embed.weight", "tokens.weight"),
    rule("model.h.{i}.qkv.{w}", ["blocks.{i}.q.{w}", "blocks.{i}.k.{w}", "blocks.{i}.v.{w}"], transpose, split()),
    rule("head.weight", "head.weight"),
    tie("head.weight", "model.embed.weight"),
    drop("model.h.{i}.mask", "a mask"),
)


def file(leading="model.", **more):
    made = {f"{leading}embed.weight": numbers(7, 4)}
    for i in range(2):
        made |= {f"{leading}h.{i}.qkv.weight": numbers(4, 8, seed=i + 1), f"{leading}h.{i}.qkv.bias": numbers(8, seed=i + 5)}
    return Made(**made, **more)


# ---- loading ----


@pytest.mark.parametrize("leading", ["model.", ""])
@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_it_fills_a_model_and_writes_the_file_again(leading, device):
    net, source = Net(device=device), file(leading)
    certificate = load(net, source, TABLE)
    assert source.reads == list(source.tensors)  # each once, in the file's order
    assert torch.equal(net.tokens.weight, source.tensors[leading + "embed.weight"])
    assert torch.equal(net.blocks[1]["k"].weight, source.tensors[leading + "h.1.qkv.weight"][:, 4:6].T)
    assert torch.equal(net.blocks[0]["v"].bias, source.tensors[leading + "h.0.qkv.bias"][6:])
    assert all(isinstance(p, nn.Parameter) and p.requires_grad and p.device.type == "cpu" for p in net.parameters())
    again = export(net, TABLE, certificate)
    assert list(again) == list(source.tensors) and all(torch.equal(again[name], t) for name, t in source.tensors.items())
    assert set(export(net, TABLE)) == set(file("model.").tensors)
    assert certificate.numbers == sum(p.numel() for p in net.parameters())
    assert certificate.bare == ("" if leading else "model.")


def test_each_parameter_has_memory_of_its_own():
    net = Net()
    load(net, file(), TABLE)
    for p in net.parameters():
        assert p.is_contiguous() and p.untyped_storage().nbytes() == p.numel() * p.element_size()


def test_one_tensor_at_a_time():
    """What is read is gone before the next one is read, but for what the model keeps."""
    import weakref

    class Counting(Made):
        alive: list[weakref.ref] = []

        def read(self, name):
            storages = {p.untyped_storage().data_ptr() for p in net.parameters() if p.device.type != "meta"}
            left = [t for t in (ref() for ref in self.alive) if t is not None and t.untyped_storage().data_ptr() not in storages]
            assert not left, f"beside {name} there are {[tuple(t.shape) for t in left]}"
            made = super().read(name)
            self.alive.append(weakref.ref(made))
            return made

    net = Net()
    load(net, Counting(**file().tensors), TABLE)
    assert len(Counting.alive) == 5


def test_a_parameter_stays_the_object_that_others_hold():
    net = Net(device="cpu")
    held = net.blocks[0]["q"].weight
    load(net, file(), TABLE)
    assert net.blocks[0]["q"].weight is held and torch.equal(held, file().tensors["model.h.0.qkv.weight"][:, :4].T)


def test_parameters_without_gradient_stay_so():
    net = Net()
    net.tokens.weight.requires_grad_(False)
    load(net, file(), TABLE)
    assert not net.tokens.weight.requires_grad and net.blocks[0]["q"].weight.requires_grad


def test_shared_modules_and_stored_buffers_are_filled_once():
    net = Net()
    net.again = net.tokens
    net.register_buffer("table", torch.empty(3, device="meta"))
    net.register_buffer("made", torch.ones(3), persistent=False)
    load(net, file(table=torch.arange(3.0)), (*TABLE, rule("table", "table")))
    assert net.again.weight is net.tokens.weight and net.table.tolist() == [0, 1, 2] and net.made.tolist() == [1, 1, 1]


def test_dtypes_are_kept_or_converted():
    source = file()
    source.tensors["model.embed.weight"] = source.tensors["model.embed.weight"].bfloat16()
    net = Net()
    certificate = load(net, source, TABLE)
    assert net.tokens.weight.dtype == torch.bfloat16 and certificate.dtypes == {"bfloat16": 1, "float32": 4} and certificate.cast is None
    net = Net()
    certificate = load(net, source, TABLE, dtype=torch.float64)
    assert {p.dtype for p in net.parameters()} == {torch.float64} and certificate.cast == "float64"
    assert "converted to float64" in str(certificate)
    assert load(Net(), file(), TABLE, dtype=torch.float32).cast is None
    net = Net(device="cpu")
    load(net, source, TABLE, dtype=torch.float64)
    assert {p.dtype for p in net.parameters()} == {torch.float64}


# ---- ties and drops ----


def test_a_tied_copy_is_verified_and_written_back():
    plain = file(head__weight=file().tensors["model.embed.weight"])
    net = Net()
    certificate = load(net, plain, TABLE)
    assert certificate.ties["head.weight"].found == "copy"
    again = export(net, TABLE, certificate)
    assert set(again) == set(plain.tensors) and torch.equal(again["head.weight"], again["model.embed.weight"])
    assert again["head.weight"].data_ptr() != again["model.embed.weight"].data_ptr()  # files refuse shared memory


def test_a_file_with_only_the_copy():
    source = file()
    source.tensors["head.weight"] = source.tensors.pop("model.embed.weight")
    net = Net()
    certificate = load(net, source, TABLE)
    assert certificate.ties["head.weight"].found == "instead"
    again = export(net, TABLE, certificate)
    assert set(again) == set(source.tensors) and torch.equal(again["head.weight"], source.tensors["head.weight"])


def test_a_copy_that_differs_in_one_bit_is_an_error():
    weight = file().tensors["model.embed.weight"].clone()
    weight[6, 3] = torch.nextafter(weight[6, 3], torch.tensor(9.0))
    with pytest.raises(InputError, match=r"head.weight \[7, 4\] and model.embed.weight \[7, 4\] differ in the file"):
        load(Net(), file(head__weight=weight), TABLE)
    with pytest.raises(InputError, match=r"head.weight \[8, 4\] and model.embed.weight \[7, 4\] differ"):
        load(Net(), file(head__weight=numbers(8, 4)), TABLE)


def test_a_copy_of_another_dtype_is_an_error():
    source = file()
    source.tensors["model.embed.weight"] = source.tensors["model.embed.weight"].to(torch.float16)
    source.tensors["head.weight"] = source.tensors["model.embed.weight"].view(torch.bfloat16)  # the same bits, other numbers
    with pytest.raises(InputError, match="differ in the file"):
        load(Net(), source, TABLE)


def test_not_a_number_equals_itself_in_a_tie():
    source = file()
    source.tensors["model.embed.weight"][0, 0] = float("nan")
    source.tensors["head.weight"] = source.tensors["model.embed.weight"].clone()
    assert load(Net(), source, TABLE).ties["head.weight"].found == "copy"


def test_an_untied_model_needs_its_own_head():
    net = Net(tied=False)
    certificate = load(net, file(head__weight=numbers(7, 4, seed=9)), TABLE)
    assert torch.equal(net.head.weight, numbers(7, 4, seed=9)) and not certificate.ties
    with pytest.raises(InputError, match=r"head.weight \[7, 4\] is not in the file, and is needed for head.weight \[7, 4\]"):
        load(Net(tied=False), file(), TABLE)


def test_the_certificate_says_it_all():
    source = file(**{"model.h.0.mask": torch.ones(2), "model.h.1.mask": torch.ones(2)})
    certificate = load(Net(), source, TABLE)
    assert str(certificate).splitlines() == [
        "made.safetensors: 5 tensors fill 13 parameters, 108 numbers (float32)",
        "  tied     head.weight = model.embed.weight (not in the file)",
        "  dropped  model.h.0.mask and 1 like it: a mask",
    ]
    assert certificate.claimed["model.h.0.qkv.bias"] == ("blocks.0.q.bias", "blocks.0.k.bias", "blocks.0.v.bias")
    assert set(certificate.claimed) | set(certificate.dropped) == set(source.tensors)
    assert "without their usual prefix 'model.'" in str(load(Net(), file(""), TABLE))


# ---- what the model computes ----


def test_a_computed_tensor_is_verified_and_written_back():
    def table():
        return (*TABLE, computed("model.sines", lambda: torch.linspace(-1, 1, 6, dtype=torch.float64).sin().reshape(2, 3), "sines"))

    def of(values):
        source = file()
        source.tensors = {"model.sines": values, **source.tensors}
        return source

    exact = torch.linspace(-1, 1, 6, dtype=torch.float64).sin().reshape(2, 3).float()
    near, far = exact.clone(), exact.clone()
    near[1, 2] = torch.nextafter(near[1, 2], torch.tensor(9.0))
    far[1, 2] += 1e-5  # many roundings away, and in one place only
    for values, is_exact in ((exact, True), (near, False)):
        certificate = load(net := Net(), of(values), table())
        assert certificate.computed["model.sines"].exact == is_exact
        again = export(net, table(), certificate)
        assert list(again) == list(of(values).tensors)  # in the file's order
        assert torch.equal(again["model.sines"], exact)
    assert "model.sines" not in export(net, table())
    with pytest.raises(InputError, match=r"model.sines \[2, 3\] differs from sines by up to 1e-05"):
        load(Net(), of(far), table())
    with pytest.raises(InputError, match=r"model.sines is \[6\] in the file, but sines are \[2, 3\]"):
        load(Net(), of(exact.flatten()), table())


# ---- what is refused ----


def test_all_faults_at_once_and_nothing_filled():
    source = file(stray=numbers(3))
    source.tensors["model.embed.weight"] = numbers(8, 4)
    del source.tensors["model.h.1.qkv.bias"]
    source.tensors["model.h.0.qkv.weight"] = numbers(8, 4)
    net = Net()
    with pytest.raises(InputError) as refused:
        load(net, source, TABLE)
    assert sorted(refused.value.faults) == [
        "model.embed.weight is [8, 4] in the file, but [7, 4] would fill tokens.weight [7, 4]",
        "model.h.0.qkv.weight is [8, 4] in the file, but [4, 8] would fill "
        "blocks.0.q.weight [4, 4], blocks.0.k.weight [2, 4], blocks.0.v.weight [2, 4]",
        "model.h.1.qkv.bias [8] is not in the file, and is needed for blocks.1.q.bias [4], blocks.1.k.bias [2], blocks.1.v.bias [2]",
        "stray [3] of the file has no place in the model",
    ]
    assert "made.safetensors" in str(refused.value)
    assert source.reads == [] and all(p.device.type == "meta" for p in net.parameters())


def test_every_parameter_is_filled_by_exactly_one_rule():
    with pytest.raises(InputError, match=r"tokens.weight \[7, 4\] of the model is filled by no rules"):
        load(Net(), file(), [entry for entry in TABLE if getattr(entry, "theirs", None) is None or "embed" not in entry.theirs.text])
    with pytest.raises(InputError, match=r"tokens.weight \[7, 4\] of the model is filled by 2 rules"):
        load(Net(), file(), (*TABLE, rule("model.other.weight", "tokens.weight")))


def test_every_tensor_is_claimed_once():
    with pytest.raises(InputError, match=r"model.embed.weight \[7, 4\] of the file is claimed by 2 entries"):
        load(Net(), file(), (*TABLE, drop("model.embed.{w}", "")))
    with pytest.raises(InputError, match=r"model.embed.weight would fill tokens.weight and head.weight"):
        load(Net(tied=False), file(), (*TABLE[:3], rule("model.embed.weight", "head.weight")))


def test_parts_that_the_model_lacks_are_named():
    net = Net()
    net.blocks[1]["k"] = linear(4, 2, False)
    with pytest.raises(InputError, match=r"model.h.1.qkv.bias holds blocks.1.k.bias, which the model does not have, beside"):
        load(net, file(), TABLE)


def test_parts_that_do_not_fit_together_are_named():
    net = Net()
    net.blocks[0]["v"] = linear(5, 2)
    with pytest.raises(InputError, match=r"model.h.0.qkv.weight cannot hold .* blocks.0.v.weight \[2, 5\]"):
        load(net, file(), TABLE)


def test_several_of_ours_need_a_split():
    with pytest.raises(InputError, match="a rule with several of ours needs a split"):
        load(Net(), file(), (TABLE[0], TABLE[1], rule(TABLE[2].theirs.text, [t.text for t in TABLE[2].ours], transpose)))


def test_a_source_that_reads_other_than_it_announced():
    class Lying(Made):
        def read(self, name):
            return super().read(name)[:1]

    with pytest.raises(InputError, match=r"model.embed.weight was announced as \[7, 4\], but \[1, 4\] was read"):
        load(Net(), Lying(**file().tensors), TABLE)


def test_writing_never_converts():
    net = Net()
    load(net, file(), TABLE)
    net.blocks[0]["k"].half()
    with pytest.raises(InputError, match=r"dtypes torch.float16, torch.float32: convert them to one"):
        export(net, TABLE)


def test_a_table_that_does_not_cover_the_model_writes_nothing():
    with pytest.raises(InputError, match=r"this table cannot write this model\n  - tokens.weight"):
        export(Net(), TABLE[2:])
