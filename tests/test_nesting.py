import pytest
import torch
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
