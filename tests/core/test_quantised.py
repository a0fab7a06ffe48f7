"""Quantised matrices: their numbers, and products by every kernel this machine has against float64."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from plait.core import native
from plait.core import quantised as page
from plait.core.embeddings import Tokens
from plait.core.quantised import Quantised, in_torch, product, quantised
from plait.core.stream import stream
from plait.errors import InputError

LEVELS = [*native.possible(), "off"]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def fresh(monkeypatch, built):
    """A process that has built nothing yet, with a cache that this file's tests share."""

    def at(level: str) -> None:
        monkeypatch.setenv("PLAIT_CACHE", built)
        monkeypatch.setenv(native.SWITCH, level)
        native.library.cache_clear()
        page._native.cache_clear()

    yield at
    native.library.cache_clear()
    page._native.cache_clear()


@pytest.fixture(params=LEVELS)
def level(request, fresh):
    fresh(request.param)
    if request.param != "off":
        try:
            native.build("product", request.param)
        except native.CannotBuild as why:
            pytest.skip(f"no native kernels here: {why}")
        assert native.described("product") == f"native, {request.param}"
    return request.param


def numbers(matrix: Quantised) -> np.ndarray:
    """The matrix in float64, one value after another by the words of the docstrings."""
    codes, bits = matrix.codes.numpy(), matrix.bits
    scale = matrix.scale.numpy().view(np.float16).astype(np.float64)
    least = None if matrix.least is None else matrix.least.numpy().view(np.float16).astype(np.float64)
    out = np.zeros((matrix.d_out, matrix.d_in))
    for row in range(matrix.d_out):
        for column in range(matrix.d_in):
            block, lane, group, k = row // 8, row % 8, column // 32, column % 32
            byte = int(codes[block, group, k % (4 * bits) // 4, lane, k % 4])
            d = scale[block, group, lane]
            if bits == 8:
                out[row, column] = d * (byte - 256 * (byte > 127))
            else:
                low = -8 * d if least is None else least[block, group, lane]
                out[row, column] = low + d * (byte & 15 if k < 16 else byte >> 4)
    return out


def stepped(x: torch.Tensor) -> torch.Tensor:
    """What a kernel that rounds multiplies, in float64: whole steps of a 127th of each group's largest value."""
    out = x.double().clone()
    for row in out:
        for at in range(0, len(row), 32):
            group = row[at : at + 32]
            step = (group.abs().max().float() / 127).double()
            if step > 0:
                row[at : at + 32] = (group / step).round() * step
    return out


def sample(d_out: int, d_in: int, bits: int, rounding: bool = True, symmetric: bool = False) -> Quantised:
    matrix = quantised(torch.randn(d_out, d_in), bits, rounding)
    return Quantised(matrix.codes, matrix.scale, None, matrix.size, rounding) if symmetric else matrix


KINDS = [(8, False), (4, False), (4, True)]


@pytest.mark.parametrize(("bits", "symmetric"), KINDS)
def test_values_and_rows_are_the_numbers_of_the_codes(bits, symmetric):
    torch.manual_seed(0)
    matrix = sample(13, 70, bits, symmetric=symmetric)
    expected = torch.from_numpy(numbers(matrix))
    assert_close(matrix.values(torch.float64), expected, rtol=1e-12, atol=1e-12)
    assert_close(matrix.values().double(), expected, rtol=1e-6, atol=1e-6)
    ids = torch.tensor([[0, 12, 7], [8, 8, 3]])
    assert torch.equal(matrix.rows(ids), matrix.values()[ids])
    for wrong in (-1, 13):  # the 16 rows that are stored are not all rows of the matrix
        with pytest.raises(IndexError, match="0 to 12"):
            matrix.rows(torch.tensor([wrong]))


@pytest.mark.parametrize("bits", [8, 4])
def test_no_code_is_further_from_its_weight_than_a_step_allows(bits):
    torch.manual_seed(0)
    w = torch.randn(24, 96) * 0.02
    w[3, 32:64] = 0.01  # equal values have no range
    w[4] = 0
    error = (quantised(w, bits).values() - w).unflatten(1, (-1, 32))
    groups = w.unflatten(1, (-1, 32))
    step = groups.abs().amax(-1) / 127 if bits == 8 else (groups.amax(-1) - groups.amin(-1)) / 15
    if bits == 8:
        assert (error.abs().amax(-1) <= 0.51 * step + 1e-5 * (step > 0)).all()
    # In 4 bits single values may be cut off for the sake of the others: no group is worse than with the whole range.
    assert (error.square().mean(-1).sqrt() <= 0.5 * step + 1e-5).all()
    assert not error[4].any() and error[3, 1].abs().max() < 1e-5


@pytest.mark.parametrize("rounding", [True, False])
@pytest.mark.parametrize(("bits", "symmetric"), KINDS)
def test_every_kernel_gives_the_product(level, bits, symmetric, rounding):
    """All numbers of rows up to two tiles and over; rows and columns that fill no block; values of very different size."""
    torch.manual_seed(0)
    for d_out, d_in in ((16, 64), (13, 70), (1, 5)):
        matrix = sample(d_out, d_in, bits, rounding, symmetric)
        w = torch.from_numpy(numbers(matrix))
        for rows in (1, 2, 3, 4, 5, 21, 130):
            x = torch.randn(rows, d_in) * torch.logspace(-3, 3, d_in)
            x[0, : min(32, d_in)] = 0
            bias = torch.randn(d_out) if rows != 2 else None
            y = matrix(x, bias)
            used = stepped(x) if rounding else x.double()
            expected = used @ w.t() + (0 if bias is None else bias.double())
            size = used.abs() @ w.abs().t()
            assert y.dtype == torch.float32
            assert ((y.double() - expected).abs() <= 2e-6 * size + 1e-6).all(), (d_out, d_in, rows)


@pytest.mark.parametrize("bits", [8, 4])
def test_extreme_codes_do_not_overflow(level, bits):
    """All codes and all x at their ends: sums in 16 bits are the trap here, and a GGUF may hold -128."""
    for code in (0x80, 0x81, 0x7F) if bits == 8 else (0xFF, 0x00):
        made = sample(8, 64, bits)
        matrix = Quantised(torch.full_like(made.codes, code), made.scale, made.least, made.size)
        x = torch.where(torch.arange(64) % 3 > 0, 127.0, -127.0).repeat(3, 1)
        assert_close(matrix(x).double(), x.double() @ torch.from_numpy(numbers(matrix)).t(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("rounding", [True, False])
def test_what_is_no_number_is_not_made_one(level, rounding):
    matrix = sample(9, 64, 8, rounding)
    for bad in (float("nan"), float("inf"), -float("inf")):
        x = torch.randn(5, 64)
        x[2, 40] = bad
        y = matrix(x)
        assert not y[2].isfinite().any() and y[[0, 1, 3, 4]].isfinite().all()


@pytest.mark.parametrize("bits", [8, 4])
def test_a_row_is_the_same_alone_and_in_any_batch(level, bits):
    if level == "off":
        pytest.skip("torch's own products depend on the number of rows in the last bit")
    torch.manual_seed(0)
    matrix = sample(40, 96, bits)
    x = torch.randn(37, 96)
    together = matrix(x)
    for rows in (1, 2, 3, 6, 19):
        assert torch.equal(torch.cat([matrix(part) for part in x.split(rows)]), together)


def test_threads_share_the_work(fresh):
    """Two threads give what one gives; OpenMP is torch's own, whose number of threads is the one set there."""
    fresh("")
    torch.manual_seed(0)
    matrix, x = sample(1000, 512, 4), torch.randn(7, 512)
    one = matrix(x)
    torch.set_num_threads(2)
    try:
        assert torch.equal(matrix(x), one)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("rounding", [True, False])
def test_the_gradient_is_that_of_the_float_product(rounding):
    torch.manual_seed(0)
    matrix = sample(13, 70, 4, rounding)
    x = torch.randn(3, 70, requires_grad=True)
    bias = torch.randn(13, requires_grad=True)
    up = torch.randn(3, 13)
    found = torch.autograd.grad((matrix(x, bias) * up).sum(), [x, bias])
    expected = torch.autograd.grad((torch.nn.functional.linear(x, matrix.values(), bias) * up).sum(), [x, bias])
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b)
    with torch.no_grad():  # and the numbers are those of every other way
        assert_close(matrix(x, bias), in_torch(x, matrix.codes, matrix.scale, matrix.least, bias, 13, rounding), rtol=1e-5, atol=1e-5)


def test_it_traces_as_one_operator(fresh):
    fresh("")
    matrix, x = sample(13, 70, 4), torch.randn(2, 3, 70)
    arguments = (x, matrix.codes, matrix.scale, matrix.least, torch.randn(13), 13, True)
    torch.library.opcheck(product, arguments, test_utils=("test_schema", "test_faketensor"))
    with torch.no_grad():
        graph = torch.export.export(matrix, (x,), strict=False).module()
        assert "plait.product" in graph.code
        assert torch.equal(graph(x), matrix(x))


def test_without_a_compiler_torch_does_the_work_and_it_is_said_once(fresh, monkeypatch, tmp_path):
    fresh("")
    monkeypatch.setenv("PLAIT_CACHE", str(tmp_path))
    monkeypatch.setenv("CC", str(tmp_path / "no-such-compiler"))
    torch.manual_seed(0)
    matrix, x = sample(13, 70, 8), torch.randn(2, 70)
    with pytest.warns(RuntimeWarning, match=r"no-such-compiler.*PLAIT_NATIVE=off"):
        y = matrix(x)
    assert torch.equal(matrix(x), y)  # a second warning would be an error here
    assert torch.equal(y, in_torch(x, matrix.codes, matrix.scale, matrix.least, None, 13, True))
    assert native.described("product") == "torch"


def test_a_compiler_that_fails_leaves_nothing_behind(fresh, monkeypatch, tmp_path):
    fresh("")
    fails = tmp_path / "cc"
    fails.write_text('#!/bin/sh\nif [ "$1" != --version ]; then echo "this one is broken" >&2; exit 3; fi\n')
    fails.chmod(0o755)
    monkeypatch.setenv("PLAIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CC", str(fails))
    with pytest.raises(native.CannotBuild, match="ended with 3: this one is broken"):
        native.build("product", "plain")
    assert not list((tmp_path / "cache" / "native").iterdir())


def test_a_level_that_is_not_there_is_refused(fresh):
    fresh("sse9")
    with pytest.raises(InputError, match=r"PLAIT_NATIVE=sse9: expected .*plain or off"):
        native.level()


def test_a_change_of_dtype_leaves_the_numbers(fresh):
    matrix = sample(8, 64, 4)
    before = matrix.values()
    assert torch.equal(matrix.to(torch.bfloat16).values(), before)
    assert matrix(torch.randn(2, 64, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_rows_of_another_width_are_refused(level):
    with pytest.raises(ValueError, match="63 values do not fit a matrix of 64"):
        sample(8, 64, 8)(torch.randn(1, 63))


def test_tokens_read_their_rows():
    torch.manual_seed(0)
    tokens = Tokens(11, 40, scale=3.0).requires_grad_(False)
    part = page.QuantisedTokens(quantised(tokens.weight, 8), 3.0)
    ids = torch.tensor([[1, 10, 4]])
    found, expected = part(stream(ids)).x, tokens(stream(ids)).x
    assert_close(found, expected, rtol=0, atol=float(expected.abs().max()) / 127)
    assert torch.equal(found, part.weight[ids] * 3.0)
