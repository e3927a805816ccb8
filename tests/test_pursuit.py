"The fast pursuits against the literal float64 algorithm, over several hundred random problems"
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from sklearn.linear_model import orthogonal_mp

from headpursuit.pursuit import (
    Pursuit, matching_pursuit, omp, orthonormal_basis, projection_score, somp, somp_literal,
    somp_moments, somp_samples,
)

shape = dict(
    n=st.integers(2, 60),  # samples
    d=st.integers(2, 40),  # width
    v=st.integers(1, 90),  # atoms: fewer than dimensions, and more
    k=st.integers(1, 12),  # head size
    t=st.integers(1, 15),  # steps
    seed=st.integers(0, 2**31),
)
problem = st.fixed_dictionaries(dict(
    **shape,
    noise=st.sampled_from([0., .1, 3.]),
    center=st.booleans(),
    unit_atoms=st.booleans(),
))
rules = st.sampled_from(['magnitude', 'energy'])


def normal(*sizes, seed):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*sizes, generator=g, dtype=torch.float64)


def draw(n, d, v, k, noise, seed, **_):
    "Coordinates, an output matrix, and a dictionary with unequal norms"
    D = normal(v, d, seed=seed) * (.2 + 2 * normal(v, 1, seed=seed + 1).abs())
    Z = normal(n, k, seed=seed + 2) * (1 + noise) + noise
    return Z, normal(d, k, seed=seed + 3), D


def same_or_tied(fast: Pursuit, H, D, t, **options):
    """Equal supports as far as there is anything left to explain, or, at the first difference, a
    tie: by the literal algorithm's own scores, both atoms are equally good to 1e-9."""
    slow = somp_literal(H, D, t, **options)
    alive = int((slow.explained < 1 - 1e-9).sum()) + 1
    ours, theirs = fast.support.tolist()[:alive], slow.support.tolist()[:alive]
    if ours == theirs:
        torch.testing.assert_close(
            fast.explained[:len(slow)].double(), slow.explained[:len(fast)], atol=1e-6, rtol=0)
        return
    step = next(i for i, (a, b) in enumerate(zip(ours + [-1], theirs + [-1])) if a != b)
    assert step < min(len(ours), len(theirs)), f'{ours} stops elsewhere than {theirs}'
    scores = literal_scores(H, D, theirs[:step], **options)
    a, b = scores[ours[step]], scores[theirs[step]]
    assert abs(a - b) <= 1e-9 * b, f'step {step}: {ours} scores {a}, {theirs} scores {b}'


def literal_scores(H, D, support, rule='magnitude', center=True, unit_atoms=True):
    "Scores of all atoms when those of `support` are chosen"
    X, D = H.double(), D.double()
    if center: X = X - X.mean(0)
    U = D / D.norm(dim=1, keepdim=True)
    if support:
        Q = torch.linalg.qr(U[support].T).Q
        X = X - (X @ Q) @ Q.T
    scores = (X @ (U if unit_atoms else D).T).abs()
    return scores.pow(1 if rule == 'magnitude' else 2).sum(0).tolist()


@settings(max_examples=150, deadline=None)
@given(problem, rules, st.sampled_from([torch.float32, torch.float64]))
def test_somp_is_the_literal_algorithm(p, rule, dtype):
    Z, W, D = draw(**p)
    Z, W, D = Z.float().double(), W.float().double(), D.float().double()  # fits in both
    H = Z @ W.T
    options = dict(rule=rule, center=p['center'], unit_atoms=p['unit_atoms'])
    slow = somp_literal(H, D, p['t'], **options)
    for fast in (somp(H, D.to(dtype), p['t'], **options),
                 somp(Z, D.to(dtype), p['t'], W=W, **options)):
        same_or_tied(fast, H, D, p['t'], **options)
        torch.testing.assert_close(fast.reconstruction(), slow.reconstruction(),
                                   atol=1e-5, rtol=1e-5)


@settings(max_examples=150, deadline=None)
@given(problem, st.sampled_from([torch.float32, torch.float64]))
def test_many_heads_are_many_literal_algorithms(p, dtype):
    Z, _, D = draw(**p)
    D = D.float()
    W = normal(3, p['d'], p['k'], seed=p['seed'])
    Z = Z * torch.tensor([1., 1e-3, 0])[:, None, None]  # the last head is silent
    X = Z - Z.mean(1, keepdim=True) if p['center'] else Z
    C = X.mT @ X / p['n']
    unit_atoms = dict(unit_atoms=p['unit_atoms'])
    options = dict(center=p['center'], **unit_atoms)
    by_rule = dict(
        energy=somp_moments(C, W, D.to(dtype), p['t'], **unit_atoms),
        magnitude=somp_samples(Z, W, D.to(dtype), p['t'], **options),
    )
    for rule, many in by_rule.items():
        assert many.support.shape == many.explained.shape == (3, min(p['t'], p['v']))
        assert (many.support[2] == -1).all() and not many.explained[2].any()
        for i in range(2):
            s = many.support[i][many.support[i] >= 0]
            head = Pursuit(s, many.explained[i, :len(s)])
            same_or_tied(head, Z[i] @ W[i].T, D, p['t'], rule=rule, **options)
    if p['t'] >= p['v']:
        every = projection_score(C, W, D.double())
        torch.testing.assert_close(every, by_rule['energy'].explained[:, -1], atol=1e-6, rtol=0)


@settings(max_examples=200, deadline=None)
@given(
    problem, rules,
    st.sampled_from([1e-25, 1e-12, 1., 1e9, 1e18]),  # size of the signals
    st.sampled_from([1e-25, 1., 1e18]),  # size of the atoms
    st.sampled_from([0., 10., 1e4]),  # offset of the signals, in their own size
    st.sampled_from([None, 1e-2, 1e-4, 1e-8]),  # half of the atoms lean on the others, so far off
    st.sampled_from([torch.float32, torch.float64]),
)
def test_size_offset_and_near_dependence_change_nothing(
        p, rule, size, length, offset, lean, dtype):
    Z, W, D = draw(**p)
    if lean and len(D) > 1:
        half = len(D) // 2
        D[half:2 * half] = D[:half] + lean * D[half:2 * half]
    H = (size * (Z @ W.T + offset)).to(dtype)
    D = (length * D).to(dtype)
    options = dict(rule=rule, unit_atoms=p['unit_atoms'])
    same_or_tied(somp(H, D, p['t'], **options), H, D, p['t'], **options)


@settings(max_examples=120, deadline=None)
@given(
    problem, rules,
    st.sampled_from([1e-25, 1., 1e18]),  # size of z
    st.sampled_from([1e-12, 1., 1e9]),  # size of the output matrices
    st.sampled_from([1e-25, 1., 1e18]),  # size of the atoms
    st.sampled_from([0., 1e4]),  # offset of z, in its own size
    st.sampled_from([None, 1e-2, 1e-4, 1e-8]),  # half of the atoms lean on the others, so far off
    st.sampled_from([torch.float32, torch.float64]),
)
def test_size_offset_and_near_dependence_change_nothing_for_many_heads(
        p, rule, size, width, length, offset, lean, dtype):
    Z, _, D = draw(**p)
    half = len(D) // 2
    if lean: D[half:2 * half] = D[:half] + lean * D[half:2 * half]
    D = (length * D).to(dtype)
    Z = (size * torch.stack([Z + offset, Z.flip(0), 0 * Z])).to(dtype)
    W = (width * normal(3, p['d'], p['k'], seed=p['seed'])).to(dtype)
    unit_atoms = dict(unit_atoms=p['unit_atoms'])
    if rule == 'energy':
        X = Z.double() - Z.double().mean(1, keepdim=True)
        many = somp_moments(X.mT @ X, W, D, p['t'], **unit_atoms)
    else:
        many = somp_samples(Z, W, D, p['t'], **unit_atoms)
    assert (many.support[2] == -1).all()
    for i in range(2):
        s = many.support[i][many.support[i] >= 0]
        H = Z[i].double() @ W[i].double().T
        head = Pursuit(s, many.explained[i, :len(s)])
        same_or_tied(head, H, D, p['t'], rule=rule, **unit_atoms)


@settings(max_examples=60, deadline=None)
@given(problem, st.sampled_from([2.**-83, 2.**60]), st.sampled_from([2.**-83, 2.**60]))
def test_one_signal_and_scores_do_not_know_sizes(p, size, length):
    "Powers of two, which change no digit: equal to the last bit"
    Z, W, D = draw(**p)
    h = Z[0] @ W.T
    for pursue in (omp, matching_pursuit):
        one, other = pursue(h, D, p['t']), pursue(size * h, length * D, p['t'])
        assert one.support.tolist() == other.support.tolist()
        torch.testing.assert_close(one.explained, other.explained, atol=1e-12, rtol=0)
    C = (Z.mT @ Z)[None]
    one, other = (projection_score(a * C, b * W[None], c * D) for a, b, c in (
        (1, 1, 1), (size, length, size)))
    torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), rules, st.sampled_from([1e-5, 1e-7, 1e-9, 1e-12]))
def test_near_ties_are_decided_as_in_double(seed, rule, apart):
    "Crowds of atoms that differ by less than float32 can see in a product"
    D = normal(12, 24, seed=seed).repeat(20, 1)
    D = (D + apart * normal(*D.shape, seed=seed + 1))
    Z, W = normal(2, 50, 6, seed=seed + 2), normal(2, 24, 6, seed=seed + 3)
    Zc = Z - Z.mean(1, keepdim=True)
    D = D.float() if apart > 1e-7 else D
    if rule == 'energy': many = somp_moments(Zc.mT @ Zc, W, D, 6)
    else: many = somp_samples(Z, W, D, 6)
    for i in range(2):
        s = many.support[i][many.support[i] >= 0]
        same_or_tied(Pursuit(s, many.explained[i, :len(s)]), Z[i] @ W[i].T, D, 6, rule=rule)


def test_exact_ties_go_to_the_lowest_index():
    D = normal(6, 24, seed=0).repeat(50, 1)  # every atom fifty times
    for dtype in (torch.float32, torch.float64):
        for rule in ('magnitude', 'energy'):
            p = somp(normal(40, 24, seed=1), D.to(dtype), 8, rule=rule)
            assert sorted(p.support.tolist()) == list(range(6))


@pytest.mark.parametrize('rule', ['magnitude', 'energy'])
def test_many_steps_on_a_large_dictionary(rule):
    "Fifty steps explain nearly all, so that the float32 energies must be measured again"
    D = normal(3000, 64, seed=0).float()
    Z = normal(80, 16, seed=1) * torch.logspace(0, -3, 16)
    W = normal(64, 16, seed=2)
    options = dict(rule=rule)
    same_or_tied(somp(Z, D, 50, W=W, **options), Z @ W.T, D, 50, **options)


def test_the_dictionary_s_precision_does_not_change_the_choice():
    D = normal(2000, 48, seed=0).bfloat16()
    Z, W = normal(4, 100, 8, seed=1), normal(4, 48, 8, seed=2)
    C = Z.mT @ Z
    for pursue in (lambda D: somp_moments(C, W, D, 6), lambda D: somp_samples(Z, W, D, 6)):
        half, single, double = (pursue(D.to(t)) for t in (D.dtype, torch.float32, torch.float64))
        assert torch.equal(half.support, double.support)
        assert torch.equal(single.support, double.support)
        torch.testing.assert_close(single.explained, double.explained, atol=1e-9, rtol=0)


@pytest.mark.parametrize('precision', ['high', 'medium'])
def test_coarse_matrix_products_do_not_change_the_choice(precision):
    D = normal(2000, 48, seed=0).float()
    Z, W = normal(4, 100, 8, seed=1), normal(4, 48, 8, seed=2)
    exact = somp_moments(Z.mT @ Z, W, D, 6)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try: coarse = somp_moments(Z.mT @ Z, W, D, 6)
    finally: torch.set_float32_matmul_precision(before)
    assert torch.equal(coarse.support, exact.support)


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
@given(problem, st.floats(.01, 100))
def test_score_ignores_scale_of_signals_scale_of_atoms_and_order_of_samples(p, scale):
    Z, W, D = draw(**p)
    H = Z @ W.T
    one = somp(H, D, p['t']).explained
    longer = D * (1 + torch.arange(len(D))[:, None])
    other = somp(scale * H.flip(0), longer, p['t']).explained
    torch.testing.assert_close(other, one, atol=1e-8, rtol=0)


def test_orthogonal_dictionary_gives_the_sorted_energies():
    D = torch.eye(6, dtype=torch.float64)
    h = torch.tensor([3., -5, 0, 1, 4, 2], dtype=torch.float64)
    energies = torch.tensor([25., 41, 50, 54], dtype=torch.float64) / 55
    for p in (omp(h, D, 4), matching_pursuit(h, D, 4)):
        assert p.support.tolist() == [1, 4, 0, 5]
        torch.testing.assert_close(p.explained, energies)


def test_results_are_in_the_precision_of_the_input():
    H, D = normal(20, 16, seed=0), normal(30, 16, seed=1)
    for dtype in (torch.float32, torch.float64):
        one = matching_pursuit(H[0].to(dtype), D.to(dtype), 3)
        for p in (somp(H.to(dtype), D.to(dtype), 3), one):
            assert {x.dtype for x in (p.explained, p.coefficients, p.atoms, p.mean)} == {dtype}
            assert p.reconstruction().dtype == dtype


@pytest.mark.parametrize('f', [somp, somp_literal])
def test_rank_deficient_dictionaries_stop_at_their_rank(f):
    D = normal(20, 3, seed=0) @ normal(3, 30, seed=1)
    assert len(f(normal(50, 30, seed=2), D, 20)) == 3 == orthonormal_basis(D).shape[1]


def test_bad_input_is_refused_for_many_heads_too():
    C, W, D = torch.eye(4)[None], normal(1, 8, 4, seed=0), normal(9, 8, seed=1)
    for call, words in (
        (lambda: somp_moments(C * torch.nan, W, D, 2), 'NaN'),
        (lambda: somp_moments(C, W, D[:, :5], 2), 'same space'),
        (lambda: somp_moments(C[0], W, D, 2), '3 axes'),
        (lambda: somp_samples(C, W * torch.inf, D, 2), 'W .* infinite'),
        (lambda: somp_samples(C, W, D, 2, rule='l1'), 'rule must be'),
        (lambda: somp_samples(C, W, D, 0), 'at least 1'),
    ):
        with pytest.raises(ValueError, match=words): call()
