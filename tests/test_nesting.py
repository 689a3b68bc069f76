import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from mrl.nesting import (
    check_granularities,
    check_weights,
    log_spaced,
    prefix,
    sample_weights,
    truncate,
    uniform,
    unit,
)

DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)


@pytest.mark.parametrize(
    ("embed_dim", "smallest", "expected"),
    [
        (2048, 8, [8, 16, 32, 64, 128, 256, 512, 1024, 2048]),
        (768, 8, [12, 24, 48, 96, 192, 384, 768]),
        (128, 2, [2, 4, 8, 16, 32, 64, 128]),
        (7, 1, [7]),
        (8, 8, [8]),
    ],
)
def test_log_spaced(embed_dim, smallest, expected):
    assert log_spaced(embed_dim, smallest) == expected


@pytest.mark.parametrize("smallest", [0, -1, 9])
def test_log_spaced_refuses_a_start_outside_the_width(smallest):
    with pytest.raises(ValueError, match=rf"1\.\.8 .*got {smallest}"):
        log_spaced(8, smallest)


def test_uniform_is_the_papers_spacing():
    expected = [8, 212, 416, 620, 824, 1028, 1232, 1436, 1640, 1844, 2048]
    assert uniform(2048, 11) == expected  # Table 29


@given(st.integers(1, 300), st.data())
def test_spacings_make_valid_granularities(embed_dim, data):
    smallest = data.draw(st.integers(1, embed_dim))
    widths = log_spaced(embed_dim, smallest)
    assert check_granularities(widths, embed_dim) == widths
    assert widths[-1] == embed_dim
    assert widths[0] >= smallest
    if embed_dim - smallest >= 1:
        count = data.draw(st.integers(2, embed_dim - smallest + 1))
        widths = uniform(embed_dim, count, smallest)
        assert check_granularities(widths, embed_dim) == widths
        assert (len(widths), widths[0], widths[-1]) == (count, smallest, embed_dim)


@pytest.mark.parametrize(("count", "smallest"), [(1, 8), (9, 8), (2, 16), (2, 0)])
def test_uniform_refuses_what_does_not_fit(count, smallest):
    with pytest.raises(ValueError, match="granularities|widths"):
        uniform(15, count, smallest)


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ([], "empty"),
        ([0, 2], r"positive and strictly increasing, got \[0, 2\]"),
        ([-2, 2], "positive"),
        ([2, 2, 4], r"strictly increasing, got \[2, 2, 4\]"),
        ([4, 2], r"strictly increasing, got \[4, 2\]"),
        ([2, 32], "granularity 32 exceeds the embedding width 16"),
        ([2.0, 4], r"integers, got 2\.0"),
        ([True, 4], "integers, got True"),
        (["2"], "integers, got '2'"),
    ],
)
def test_check_granularities_refuses(widths, message):
    with pytest.raises(ValueError, match=message):
        check_granularities(widths, embed_dim=16)


@given(st.integers(1, 12), st.integers(-3, 15))
def test_prefix_is_the_first_entries_or_an_error(embed_dim, m):
    z = torch.arange(3.0 * embed_dim).reshape(3, embed_dim)
    if 1 <= m <= embed_dim:
        assert prefix(z, m).tolist() == [row[:m] for row in z.tolist()]
    else:
        with pytest.raises(ValueError, match=f"got {m}"):
            prefix(z, m)


def test_truncate_cuts_then_normalises():
    z = torch.tensor([[3.0, 4.0, 12.0]])
    assert torch.allclose(truncate(z, 2), torch.tensor([[0.6, 0.8]]))
    assert torch.equal(truncate(z, 2, normalize=False), torch.tensor([[3.0, 4.0]]))
    assert z.tolist() == [[3.0, 4.0, 12.0]]


def scales(dtype):
    """From the smallest number of the dtype to its largest, in ten equal steps of the exponent."""
    info = torch.finfo(dtype)
    ends = math.log2(info.smallest_normal * info.eps), math.log2(info.max)
    powers = [ends[0] + i / 10 * (ends[1] - ends[0]) for i in range(11)]
    return [2.0 ** min(power, ends[1] - 1e-3) for power in powers]


def long_double_unit(z):
    """By NumPy's widest floats, whose squares neither vanish nor overflow."""
    wide = z.detach().double().numpy().astype("longdouble")
    return torch.from_numpy((wide / (wide**2).sum(-1, keepdims=True) ** 0.5).astype("float64"))


@DTYPES
@pytest.mark.parametrize("width", [1, 3, 2048])
def test_rows_of_any_length_become_unit_vectors(dtype, width):
    generator = torch.Generator().manual_seed(0)
    direction = 2 * torch.rand(width + 5, generator=generator, dtype=torch.float64) - 1
    direction[0] = 1  # so that something is left of the smallest row
    z = torch.stack([scale * direction for scale in scales(dtype)]).to(dtype)
    cut = truncate(z, width)
    assert cut.dtype == dtype
    wanted = long_double_unit(z[:, :width])
    torch.testing.assert_close(cut.double(), wanted, rtol=0, atol=2 * torch.finfo(dtype).eps)
    alone = torch.cat([truncate(row[None], width) for row in z])
    assert torch.equal(alone, cut)


def test_a_tiny_prefix_of_a_long_row_has_a_direction():
    z = torch.tensor([[3e-30, 4e-30, 1.0, 1.0], [3e30, 4e30, 1.0, 1.0]])
    torch.testing.assert_close(truncate(z, 2), torch.tensor([[0.6, 0.8]] * 2))


@DTYPES
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_usual_rows_are_normalised_to_the_bit_as_ever(dtype, scale):
    z = (scale * torch.randn(40, 16, generator=torch.Generator().manual_seed(0))).to(dtype)
    wanted = F.normalize(z, dim=-1)
    assert torch.equal(truncate(z, 16), wanted)
    beside_others = torch.cat([z, torch.zeros_like(z[:1]), z[:1] / z[:1] * torch.finfo(dtype).max])
    assert torch.equal(truncate(beside_others, 16)[:40], wanted)


@DTYPES
def test_zeros_stay_zeros_and_gradients_finite(dtype):
    direction = torch.tensor([[0.6, -0.5, 0.1, 0.9]], dtype=torch.float64)
    z = torch.cat([scale * direction for scale in [0.0, *scales(dtype)]]).to(dtype).requires_grad_()
    cut = truncate(z, 3)
    (cut * torch.tensor([3.0, -7.0, 1.0])).sum().backward()
    assert (cut[0] == 0).all()
    assert torch.isfinite(z.grad).all()
    assert (z.grad[1:, :3] != 0).any(1)[:-2].all()  # the longest rows' may be too small for any


def test_not_a_number_is_not_hidden():
    z = torch.tensor([[1.0, float("nan")], [1.0, 2.0]])
    assert truncate(z, 2).isnan().tolist() == [[True, True], [False, False]]


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
def test_gradients_of_truncate(scale):
    z = scale * torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    z = torch.cat([z, torch.tensor([[1e-200] * 3 + [1.0] * 3], dtype=z.dtype)]).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: truncate(z[:4], 5), z, eps=1e-7 * scale)
    (gradient,) = torch.autograd.grad(truncate(z, 3)[4, 0], z)
    torch.testing.assert_close(
        1e-200 * gradient[4, :3] * 3**1.5, torch.tensor([2.0, -1, -1]).double()
    )


@pytest.mark.parametrize("scale", [0.0, 1e-40, 1e-14, 1.0, 1e30])
def test_truncate_is_the_same_when_transformed(scale):
    z = scale * torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    wanted = truncate(z, 8)
    exported = torch.export.export(Truncated(), (torch.ones(6, 8),)).module()
    compiled = torch.compile(unit, fullgraph=True, backend="aot_eager")
    for other in (exported(z), compiled(z.clone().requires_grad_()), torch.func.vmap(unit)(z)):
        torch.testing.assert_close(other, wanted)


class Truncated(torch.nn.Module):
    def forward(self, z):
        return truncate(z, 8)


def test_weights_default_to_the_papers_sum():
    assert check_weights(None, [2, 4]) == [1.0, 1.0]
    assert check_weights([2, 1], [2, 4]) == [2.0, 1.0]


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_bad_weights_are_refused(weights):
    with pytest.raises(ValueError, match="weights"):
        check_weights(weights, [2, 4])


@given(st.integers(2, 8), st.data())
def test_sampled_weights_keep_the_full_width(num_granularities, data):
    count = data.draw(st.integers(2, num_granularities))
    seed, step = data.draw(st.integers(0, 99)), data.draw(st.integers(0, 10**6))
    weights = sample_weights([1.0] * num_granularities, count, seed=seed, step=step)
    assert weights[-1] == 1.0
    assert sum(w > 0 for w in weights) == count
    assert weights == sample_weights([1.0] * num_granularities, count, seed=seed, step=step)


def test_sampled_weights_are_unbiased():
    full = torch.tensor([2.0, 1.0, 0.5, 1.0])
    draws = [sample_weights(full.tolist(), 2, seed=0, step=step) for step in range(6000)]
    assert torch.allclose(torch.tensor(draws).mean(0), full, atol=0.1)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_sampling_an_impossible_number_is_refused(count):
    with pytest.raises(ValueError, match=rf"2\.\.4, got {count}"):
        sample_weights([1.0] * 4, count, seed=0, step=0)
