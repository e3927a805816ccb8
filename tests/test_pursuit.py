"The fast pursuits against the literal float64 algorithm, over a few hundred random problems"
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from sklearn.linear_model import orthogonal_mp

from headpursuit.pursuit import matching_pursuit, omp, orthonormal_basis, projection_score, somp, somp_literal, somp_moments

problem = st.fixed_dictionaries(dict(n=st.integers(2, 60), d=st.integers(2, 40), v=st.integers(1, 60), k=st.integers(1, 12), t=st.integers(1, 15),
                                     noise=st.sampled_from([0., .1, 3.]), center=st.booleans(), unit_atoms=st.booleans(), seed=st.integers(0, 2**31)))


def draw(n, d, v, k, noise, seed, **_):
    "Coordinates, an output matrix, and a dictionary with unequal norms"
    g = torch.Generator().manual_seed(seed)
    normal = lambda *s: torch.randn(*s, generator=g, dtype=torch.float64)
    D = normal(v, d) * (.2 + 2 * torch.rand(v, 1, generator=g, dtype=torch.float64))
    return normal(n, k) * (1 + noise) + noise, normal(d, k), D


@settings(max_examples=150, deadline=None)
@given(problem, st.sampled_from(['magnitude', 'energy']))
def test_somp_is_the_literal_algorithm(p, rule):
    Z, W, D = draw(**p)
    H, options = Z @ W.T, dict(rule=rule, center=p['center'], unit_atoms=p['unit_atoms'])
    slow = somp_literal(H, D, p['t'], **options)
    for fast in (somp(H, D, p['t'], **options), somp(Z, D, p['t'], W=W, **options)):
        same_support(fast.support, slow)
        torch.testing.assert_close(fast.explained[:len(slow)], slow.explained[:len(fast)], atol=1e-6, rtol=0)
        torch.testing.assert_close(fast.reconstruction(), slow.reconstruction(), atol=1e-5, rtol=1e-5)


def same_support(support, slow):
    "Equal as long as there is anything left to explain: below that, the choice is among rounding errors"
    alive = int((slow.explained < 1 - 1e-9).sum()) + 1
    assert support[:alive].tolist() == slow.support[:alive].tolist()


@settings(max_examples=150, deadline=None)
@given(problem)
def test_moments_are_the_literal_algorithm_with_the_energy_rule(p):
    Z, W, D = draw(**p)
    X = Z - Z.mean(0) if p['center'] else Z
    many = somp_moments((X.T @ X / len(X))[None], W[None], D, p['t'], unit_atoms=p['unit_atoms'])
    slow = somp_literal(Z @ W.T, D, p['t'], rule='energy', center=p['center'], unit_atoms=p['unit_atoms'])
    same_support(many.support[0], slow)
    torch.testing.assert_close(many.explained[0, :len(slow)], slow.explained, atol=1e-6, rtol=0)
    if p['t'] >= p['v'] and len(slow):
        torch.testing.assert_close(projection_score((X.T @ X)[None], W[None], D)[0], slow.explained[-1], atol=1e-6, rtol=0)


@settings(max_examples=60, deadline=None)
@given(st.integers(4, 40), st.integers(4, 60), st.integers(1, 4), st.integers(0, 2**31))
def test_omp_agrees_with_scikit_learn(d, v, t, seed):
    rng = np.random.default_rng(seed)
    D, h = rng.normal(size=(v, d)), rng.normal(size=d)
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    t = min(t, d, v)
    ours = omp(torch.tensor(h), torch.tensor(D), t)
    theirs = orthogonal_mp(D.T, h, n_nonzero_coefs=t)
    assert set(ours.support.tolist()) == set(np.flatnonzero(theirs))
    np.testing.assert_allclose(ours.reconstruction()[0], D.T @ theirs, atol=1e-8)


@settings(max_examples=60, deadline=None)
@given(problem)
def test_explained_variance_grows_and_stays_below_one(p):
    Z, W, D = draw(**p)
    e = somp(Z, D, p['t'], W=W, center=p['center']).explained
    assert (e >= 0).all() and (e <= 1).all() and (e.diff() >= -1e-12).all()


@settings(max_examples=60, deadline=None)
@given(problem, st.floats(.01, 100), st.permutations(range(6)))
def test_score_ignores_scale_of_signals_scale_of_atoms_and_order_of_samples(p, scale, _):
    Z, W, D = draw(**p)
    H = Z @ W.T
    one = somp(H, D, p['t']).explained
    torch.testing.assert_close(somp(scale * H.flip(0), D * (1 + torch.arange(len(D))[:, None]), p['t']).explained, one, atol=1e-8, rtol=0)


def test_orthogonal_dictionary_gives_the_sorted_energies():
    D = torch.eye(6, dtype=torch.float64)
    h = torch.tensor([3., -5, 0, 1, 4, 2], dtype=torch.float64)
    p, m = omp(h, D, 4), matching_pursuit(h, D, 4)
    assert p.support.tolist() == m.support.tolist() == [1, 4, 0, 5]
    torch.testing.assert_close(p.explained, torch.tensor([25., 41, 50, 54], dtype=torch.float64) / 55)


def test_float32_stays_close_to_float64():
    Z, W, D = draw(n=200, d=64, v=300, k=16, noise=.1, seed=0)
    fast, slow = somp(Z.float(), D.float(), 10, W=W.float()), somp_literal(Z @ W.T, D, 10)
    assert fast.support.tolist() == slow.support.tolist()
    torch.testing.assert_close(fast.explained.double(), slow.explained, atol=1e-4, rtol=0)


@pytest.mark.parametrize('f', [somp, somp_literal])
def test_rank_deficient_dictionaries_stop_at_their_rank(f):
    g = torch.Generator().manual_seed(0)
    D = torch.randn(20, 3, generator=g, dtype=torch.float64) @ torch.randn(3, 30, generator=g, dtype=torch.float64)
    H = torch.randn(50, 30, generator=g, dtype=torch.float64)
    assert len(f(H, D, 20)) == 3 == orthonormal_basis(D).shape[1]
