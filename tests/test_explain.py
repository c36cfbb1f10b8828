"GraphLIME against LassoLars on real data, attributions against captum, REF/VEF by brute force."

import warnings

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients
from conftest import same_edges
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize, nnls
from scipy.spatial.distance import jensenshannon
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LassoLars, LogisticRegression
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from moe_expert.data.synthetic import make_synthetic
from moe_expert.datasets import load_dataset
from moe_expert.errors import ArgumentError, UndefinedScoreError
from moe_expert.scores import attributions as scores_attributions
from moe_expert.scores import graphlime as scores_graphlime
from moe_expert.scores import lasso as scores_lasso
from moe_expert.scores import procedure as scores_procedure
from moe_expert.scores.graphlime import GraphLIME, graphlime
from moe_expert.scores.lasso import GramMatrices, nonnegative_lasso

RHO = 0.1


# ---------------------------------------------------------------- GraphLIME: oracles


def unit_kernel(a, c):
    """Centred n × n Gaussian kernel over its Frobenius norm, with k − 1 for k.

    Centring removes the constant. Where values hardly differ, k = 1 − tiny has lost most digits
    (coefficients are then off by up to 4e-5); expm1 keeps them.
    """
    k = np.expm1(-(np.subtract.outer(a, a) ** 2) / c)
    k = k - k.mean(0) - k.mean(1, keepdims=True) + k.mean()
    norm = np.linalg.norm(k)
    return k / norm if norm >= 1e-12 else 0 * k


def definition(x, p1):
    "K̄ [d, n²] and L̄ [n²] of one neighbourhood."
    kernels = np.stack([unit_kernel(a, 0.2 * x.shape[1]).ravel() for a in x.T])
    return kernels, unit_kernel(p1, 0.2).ravel()


def objective(kernels, target, beta):
    return 0.5 * np.sum((target - beta @ kernels) ** 2) + RHO * beta.sum()


def lasso_lars(kernels, target):
    """scikit-learn on n·K̄, n·L̄ over n² rows, and whether its answer is a unique optimum.

    On collinear features LARS gives up, mostly with a ConvergenceWarning, sometimes silently with a
    negative coefficient (set to 0 here).
    """
    n = np.sqrt(len(target))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        beta = (
            LassoLars(alpha=RHO, positive=True, fit_intercept=False)
            .fit(n * kernels.T, n * target)
            .coef_
        )
    converged = (
        not any(issubclass(w.category, ConvergenceWarning) for w in caught) and beta.min() >= -1e-9
    )
    return np.maximum(beta, 0), converged and is_unique_optimum(kernels, target, beta)


def is_unique_optimum(kernels, target, beta):
    "Optimality conditions, and linear independence of all features that could carry weight."
    gram, b = kernels @ kernels.T, kernels @ target
    w = b - RHO - gram @ beta
    carriers = w > -1e-6
    optimal = w.max() <= 1e-6 and np.abs(w[beta > 0]).max(initial=0) <= 1e-6
    return optimal and (
        carriers.sum() == 0 or np.linalg.eigvalsh(gram[np.ix_(carriers, carriers)])[0] > 1e-3
    )


def neighbours(edge_index, node):
    others = edge_index[0, edge_index[1] == node]
    return torch.cat([torch.tensor([node]), others[others != node].unique()])


def predictions(data, seed=0):
    "[4, N]: a random net, a confident one, a logistic regression, one that hardly varies."
    generator = torch.Generator().manual_seed(seed)
    x, train = data.x.double(), data.train_mask
    nets = []
    for scale in (1, 6):
        hidden = torch.nn.functional.leaky_relu(
            x @ torch.randn(x.shape[1], 8, generator=generator).double()
        )
        nets.append(
            torch.sigmoid(scale * hidden @ torch.randn(8, generator=generator).double() / 4)
        )
    fitted = LogisticRegression(max_iter=2000).fit(x[train].numpy(), data.y[train].numpy())
    logistic = torch.from_numpy(fitted.predict_proba(x.numpy())[:, 1])
    return torch.stack([*nets, logistic, 0.4 + 1e-3 * logistic])


@pytest.fixture(scope='module', params=['bail', 'german', 'math', 'por'])
def real(request, data_dir):
    return load_dataset(request.param, data_dir=data_dir, edition='full')


def test_graphlime_equals_lasso_lars_on_real_data(real):
    nodes = real.val_mask.nonzero().squeeze(1)
    degree = torch.bincount(real.edge_index[1], minlength=real.num_nodes)[nodes]
    by_degree = nodes[degree.argsort(stable=True)]
    sample = by_degree[
        torch.linspace(0, len(nodes) - 1, 24).long()
    ]  # from the loneliest to the largest hub
    p1 = predictions(real)
    beta = GraphLIME(real.x, real.edge_index, sample, RHO).explain(p1).numpy()
    compared = 0
    for i, node in enumerate(sample.tolist()):
        inside = neighbours(real.edge_index, node)
        for m in range(len(p1)):
            kernels, target = definition(real.x[inside].double().numpy(), p1[m, inside].numpy())
            expected, unique = lasso_lars(kernels, target)
            ours, theirs = (
                objective(kernels, target, beta[m, i]),
                objective(kernels, target, expected),
            )
            assert ours <= theirs + 1e-6, (real.name, node, m, ours - theirs)
            if unique:
                compared += 1
                np.testing.assert_allclose(
                    beta[m, i], expected, atol=1e-7, err_msg=f'{real.name}, node {node}, model {m}'
                )
    assert compared >= len(sample) * len(p1) / 2, compared


def direct_problem_in_blocks(x, p1, block=128):
    "Gram matrix and alignments from all n² kernel entries, a block of rows at a time."
    values, widths = np.vstack([x.T, p1]), [0.2 * x.shape[1]] * x.shape[1] + [0.2]

    def rows(v, c, at):
        return np.expm1(-(np.subtract.outer(v[at], v) ** 2) / c)

    blocks = [slice(i, i + block) for i in range(0, len(p1), block)]
    means = np.stack(
        [np.concatenate([rows(v, c, at).mean(1) for at in blocks]) for v, c in zip(values, widths)]
    )
    gram = np.zeros((len(values), len(values)))
    for at in blocks:
        k = np.stack(
            [
                (rows(v, c, at) - mu[at, None] - mu + mu.mean()).ravel()
                for v, c, mu in zip(values, widths, means)
            ]
        )
        gram += k @ k.T
    norm = np.sqrt(gram.diagonal())
    scale = np.where(norm >= 1e-12, 1 / np.maximum(norm, 1e-300), 0)
    gram = gram * scale * scale[:, None]
    return gram[:-1, :-1], gram[:-1, -1]


@pytest.mark.slow
def test_the_hub_of_bail(data_dir):
    data = load_dataset('bail', data_dir=data_dir, edition='full')
    hub = int(torch.bincount(data.edge_index[1]).argmax())
    inside = neighbours(data.edge_index, hub)
    assert len(inside) > 5000
    p1 = predictions(data)[2]
    beta = (
        GraphLIME(data.x, data.edge_index, torch.tensor([hub]), RHO).explain(p1[None])[0, 0].numpy()
    )
    gram, b = direct_problem_in_blocks(data.x[inside].double().numpy(), p1[inside].numpy())
    factor = np.linalg.cholesky(
        gram + 1e-13 * np.eye(len(b))
    )  # ½|Aβ − c|² with AᵀA = G, Aᵀc = b − ρ
    best = nnls(factor.T, np.linalg.solve(factor, b - RHO))[0]

    def value(beta):
        return 0.5 * beta @ gram @ beta - (b - RHO) @ beta

    assert value(beta) <= value(best) + 1e-9
    np.testing.assert_allclose(beta, best, atol=1e-5)


# ---------------------------------------------------------------- GraphLIME: properties


@pytest.fixture(scope='module')
def small():
    return make_synthetic(400, 12, seed=3)


def test_explanations_do_not_depend_on_node_numbers(small):
    p1 = predictions(small)
    p1[0] = 0.7  # constant
    nodes = torch.arange(0, 400, 3)
    new_number = torch.randperm(400, generator=torch.Generator().manual_seed(5))
    old_number = new_number.argsort()
    shuffled = new_number[small.edge_index][
        :, torch.randperm(small.edge_index.shape[1], generator=torch.Generator().manual_seed(6))
    ]
    beta = GraphLIME(small.x, small.edge_index, nodes).explain(p1)
    again = GraphLIME(small.x[old_number], shuffled, new_number[nodes]).explain(p1[:, old_number])
    torch.testing.assert_close(again, beta, atol=1e-8, rtol=0)
    assert (beta[0] == 0).all()
    assert torch.equal(scores_graphlime.top_features(beta), scores_graphlime.top_features(again))


def test_a_population_is_its_members_one_by_one(small):
    p1 = predictions(small)
    plan = GraphLIME(small.x, small.edge_index, small.val_mask)
    together = plan.explain(p1)
    for m, p in enumerate(p1):
        torch.testing.assert_close(plan.explain(p[None])[0], together[m], atol=1e-9, rtol=0)
    least = plan.held_bytes + plan.largest_need
    for memory in (2 * least, 4 * least, 8 * least):
        args = small.x, small.edge_index, small.val_mask
        other = GraphLIME(*args, memory_bytes=memory, chunk_elements=5000)
        assert other.held_bytes + other.kept_bytes <= memory
        kept = all(chunk.phi is not None for chunk in other.chunks)
        assert kept == (memory == 8 * least), (kept, other.kept_bytes)
        torch.testing.assert_close(other.explain(p1), together, atol=1e-9, rtol=0)
    proba = torch.stack([1 - p1, p1], -1)
    torch.testing.assert_close(
        graphlime(small.x, small.edge_index, proba[2], plan.nodes), together[2], atol=1e-9, rtol=0
    )


def star(n):
    return torch.stack([torch.arange(1, n), torch.zeros(n - 1, dtype=torch.long)])


def table(n, d, seed=0):
    "Continuous, binary, few-valued, constant, repeated and mirrored columns, and three models."
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, d, generator=generator) * 2 - 1
    kind = torch.arange(d) % 6
    x[:, kind == 1] = x[:, kind == 1].sign()
    x[:, kind == 2] = (2 * x[:, kind == 2]).round() / 2
    x[:, kind == 3] = -1
    for k in range(4, d):
        if k % 6 > 3:
            x[:, k] = x[:, k - 4] * (1 if k % 6 == 4 else -1)
    weights = torch.randn(3, d, generator=generator) * (torch.rand(3, d, generator=generator) < 0.2)
    return x, torch.sigmoid(2 * (weights @ x.T)).double()


@pytest.mark.parametrize(
    'n, d', [(2, 1), (2, 40), (5, 7), (12, 60), (40, 12), (30, 330), (300, 6), (600, 20)]
)
def test_any_shape_against_the_definition(n, d):
    "Fewer people than features and more, a hub, and so many features that rows are computed."
    x, p1 = table(n, d)
    plan = GraphLIME(x, star(n), torch.tensor([0]))
    assert all(chunk.by_row == (d == 330) for chunk in plan.chunks)
    beta = plan.explain(p1)[:, 0].numpy()
    for m in range(3):
        kernels, target = definition(x.double().numpy(), p1[m].numpy())
        gram, b = torch.tensor(kernels @ kernels.T), torch.tensor(kernels @ target)
        exact = nonnegative_lasso(gram[None], b[None, None], RHO)[0, 0].numpy()
        np.testing.assert_allclose(beta[m], exact, atol=1e-7)
        assert objective(kernels, target, beta[m]) <= objective(kernels, target, exact) + 1e-9
        assert (beta[m] > 0).any() or (kernels @ target <= RHO).all()
    assert n < 40 or (beta > 0).any()


@pytest.mark.parametrize('by_row', [False, True])
def test_rows_of_gram_matrices_are_those_of_whole_ones(by_row, monkeypatch):
    "The same coefficients either way, for many nodes of several sizes in one chunk."
    x, p1 = table(60, 30)
    ring = torch.stack([torch.arange(60).repeat(5), (torch.arange(300) % 60)])
    ring[1] = (ring[0] + torch.arange(5).repeat_interleave(60) + 1 + (ring[0] % 3)) % 60
    edges = torch.cat([ring, ring.flip(0)], 1)
    expected = GraphLIME(x, edges, torch.arange(60)).explain(p1)
    monkeypatch.setattr(scores_graphlime._Chunk, 'by_row', by_row)
    beta = GraphLIME(x, edges, torch.arange(60)).explain(p1)
    torch.testing.assert_close(beta, expected, atol=1e-9, rtol=0)
    assert (expected > 0).any(-1).float().mean() > 0.5


class LiveBytes(TorchDispatchMode):
    "The largest sum of bytes of all tensors made inside that were alive at the same time."

    def __init__(self):
        super().__init__()
        self.alive, self.peak = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if torch.is_tensor(t) and t.untyped_storage().nbytes() > 4096:
                self.count(t.untyped_storage())
        return out

    def count(self, storage):
        self.alive = {k: v for k, v in self.alive.items() if not v[0].expired()}
        self.alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))


@pytest.mark.parametrize(
    'n, d, neighbours, megabytes',
    [(200, 120, 8, 4), (60, 330, 60, 16), (200, 330, 5, 16), (4000, 20, None, 24)],
)
def test_memory_stays_within_the_limit(n, d, neighbours, megabytes):
    """All tensors that are alive at the same time, results included, in a small version of 1,000
    people × 600 columns (Gram matrices alone take 22 MB at this size), of a complete graph, and of
    a hub."""
    x, p1 = table(n, d)
    if neighbours is None:
        edges, nodes = star(n), torch.tensor([0])
    else:
        source = torch.arange(n).repeat_interleave(neighbours)
        edges = torch.stack([source, (source + torch.arange(len(source)) % neighbours + 1) % n])
        edges, nodes = torch.cat([edges, edges.flip(0)], 1), torch.arange(0, n, 8)
    with LiveBytes() as seen:
        plan = GraphLIME(x, edges, nodes, memory_bytes=megabytes * 2**20)
        plan.top_features(p1)
    assert seen.peak <= megabytes * 2**20
    assert plan.held_bytes + plan.largest_need <= megabytes * 2**20


def test_kernel_features_are_computed_once_where_they_fit(monkeypatch):
    "The small version of a million people: their table takes more than half of the memory."
    data = make_synthetic(3000, 20, avg_degree=20)
    nodes, rows = torch.arange(0, 3000, 4), []
    table = scores_graphlime._Kernels.table

    def counted(self, x, limit):
        rows.append(len(x))
        return table(self, x, limit)

    monkeypatch.setattr(scores_graphlime._Kernels, 'table', counted)
    plan = GraphLIME(data.x, data.edge_index, nodes)
    size = 8 * len(plan.present) * (plan.kernels.columns + 1)
    rows.clear()
    plan = GraphLIME(data.x, data.edge_index, nodes, memory_bytes=int(1.8 * size))
    p1 = torch.sigmoid(data.x[:, :2].T.double())
    for _ in range(2):
        plan.top_features(p1)
    assert not all(chunk.phi is not None for chunk in plan.chunks)
    assert sum(rows) == len(plan.present)
    nobody = plan.top_features(torch.full((1, 3000), 0.5, dtype=torch.double))
    assert not nobody.any()


def test_part_of_a_plan(small):
    "Coefficients, memory: those of the whole plan."
    p1 = predictions(small)
    plan = GraphLIME(small.x, small.edge_index, small.val_mask)
    which = torch.tensor([7, 0, 30, 12])
    part = plan.part(which)
    torch.testing.assert_close(part.explain(p1), plan.explain(p1)[:, which], atol=1e-9, rtol=0)
    assert part.nodes.equal(plan.nodes[which]) and part.table is plan.table
    assert len(part.chunks) > 0 and part.kept_bytes == 0


def test_what_does_not_fit_is_refused_before_the_work(monkeypatch):
    x, _ = table(3000, 20)
    monkeypatch.setattr(scores_graphlime, '_centred', None)  # whoever begins the work fails
    with pytest.raises(ArgumentError, match='node 0 has 2999 neighbours and 1. features') as error:
        GraphLIME(x, star(3000), torch.tensor([0]), memory_bytes=2**21)
    assert 'the limit is 2 MB' in str(error.value) and 'memory_bytes' in str(error.value)


def test_what_does_not_vary_in_a_neighbourhood_costs_nothing():
    "One-hot columns of a table: people who resemble each other differ in few of them."
    category = torch.arange(400) // 8
    x = torch.nn.functional.one_hot(category, 50).float() * 2 - 1
    x = torch.cat([x, torch.linspace(-1, 1, 400)[:, None]], 1)
    source = torch.arange(399)
    edges = torch.stack([torch.cat([source, source + 1]), torch.cat([source + 1, source])])
    plan = GraphLIME(x, edges, torch.arange(400))
    entries = sum(torch.Size(chunk.shapes[1]).numel() for chunk in plan.chunks)
    everything = len(plan.members) * plan.kernels.columns
    assert entries < everything / 5, (entries, everything)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    spread=st.sampled_from([1.0, 1e-2, 1e-4, 1e-5]),
    offset=st.sampled_from([-0.99, 0.0, 0.7]),
)
def test_neighbourhoods_in_which_little_varies(seed, spread, offset):
    "Normalised kernels keep their accuracy however little features and probabilities vary."
    rng = np.random.default_rng(seed)
    n, d = int(rng.integers(2, 30)), 4
    x = offset + spread * 0.3 * rng.random((n, d))
    x[:, 1] = np.where(rng.random(n) < 0.5, -1, 1)
    p1 = 0.1 + 0.4 * (1 + offset) + 0.2 * (x[:, 0] - offset) + 0.02 * spread * x[:, 1]
    far = np.vstack(
        [x, [[-1.0] * d], [[1.0] * d]]
    )  # two more nodes outside: they widen the range of every feature
    hub = torch.stack([torch.arange(1, n), torch.zeros(n - 1, dtype=torch.long)])
    everywhere = np.append(p1, [0, 1])
    beta = graphlime(
        torch.tensor(far),
        hub,
        torch.tensor(np.stack([1 - everywhere, everywhere], 1)),
        torch.tensor([0]),
    )
    kernels, target = definition(x, p1)
    gram, b = kernels @ kernels.T, kernels @ target
    exact = nonnegative_lasso(torch.tensor(gram)[None], torch.tensor(b)[None, None], RHO)[
        0, 0
    ].numpy()
    assert objective(kernels, target, beta[0].numpy()) <= objective(kernels, target, exact) + 1e-6


def test_tiny_variation_far_below_what_n_by_n_kernels_can_resolve():
    "An x-variation of 1e-6 gives a kernel of norm ~1e-12·n; explicit features still see it."
    generator = torch.Generator().manual_seed(0)
    t = torch.rand(50, generator=generator).double()
    x = torch.stack([0.3 + 2e-6 * t, torch.rand(50, generator=generator).double()], 1)
    p1 = 0.4 + 1e-5 * t
    hub = torch.stack([torch.arange(1, 50), torch.zeros(49, dtype=torch.long)])
    beta = graphlime(x, hub, torch.stack([1 - p1, p1], -1), torch.tensor([0]))
    torch.testing.assert_close(beta[0], torch.tensor([0.9, 0.0]).double(), atol=1e-4, rtol=0)


def test_edge_cases_of_the_neighbourhood():
    x = torch.tensor([[0.1, 1.0], [0.5, 1.0], [0.9, 1.0], [-1.0, 1.0]])
    proba = torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.1, 0.9], [0.3, 0.7]])
    pairs = torch.tensor(
        [[0, 1, 1, 1], [1, 0, 0, 1]]
    )  # a repeated edge, a self-loop, two lonely nodes
    beta = graphlime(x, pairs, proba, torch.tensor([3, 0, 2]))
    assert (
        (beta[[0, 2]] == 0).all()
        and (beta[:, 1] == 0).all()
        and beta[1, 0] == pytest.approx(0.9, abs=1e-9)
    )
    assert graphlime(x, pairs, proba, torch.tensor([False, False, False, True])).shape == (1, 2)
    assert GraphLIME(x, pairs, torch.zeros(0, dtype=torch.long)).explain(
        proba[None, :, 1]
    ).shape == (1, 0, 2)
    assert (
        graphlime(torch.ones(4, 2), pairs, proba, torch.tensor([0])) == 0
    ).all()  # nothing varies


def test_edges_in_one_direction_are_the_same_neighbourhood(small):
    p1 = predictions(small)[0]
    proba, nodes = torch.stack([1 - p1, p1], -1), torch.arange(0, len(p1), 7)
    expected = graphlime(small.x, small.edge_index, proba, nodes)
    assert (expected > 0).any()
    for form, edges in same_edges(small.edge_index).items():
        assert torch.equal(graphlime(small.x, edges, proba, nodes), expected), form


def test_raw_features_outside_the_unit_range(small):
    "The features are exact on the data's own range."
    x = 15 * small.x + 40
    p1 = predictions(small)[:1]
    node = int(torch.bincount(small.edge_index[1]).argmax())
    inside = neighbours(small.edge_index, node)
    beta = GraphLIME(x, small.edge_index, torch.tensor([node])).explain(p1)[0, 0].numpy()
    kernels, target = definition(x[inside].double().numpy(), p1[0, inside].numpy())
    assert (
        objective(kernels, target, beta)
        <= objective(kernels, target, lasso_lars(kernels, target)[0]) + 1e-6
    )


@pytest.mark.parametrize(
    'call, words',
    [
        (lambda x, e, p: GraphLIME(x, e, torch.tensor([0, 9])), 'lie in'),
        (lambda x, e, p: GraphLIME(x, e, torch.tensor([1, 1])), 'distinct'),
        (lambda x, e, p: GraphLIME(x, e, torch.tensor([True])), 'mask'),
        (lambda x, e, p: GraphLIME(x, e, torch.tensor([0]), rho=0), 'rho'),
        (lambda x, e, p: GraphLIME(x, e, torch.tensor([0])).explain(p), 'shape'),
        (lambda x, e, p: GraphLIME(x, e, torch.tensor([0])).explain(p[None] * 3), 'probabilities'),
        (
            lambda x, e, p: GraphLIME(x, e, torch.tensor([0])).explain(p[None] * torch.nan),
            'probabilities',
        ),
        (lambda x, e, p: graphlime(x, e, p[:, None], torch.tensor([0])), 'class probabilities'),
        (lambda x, e, p: GraphLIME(1e4 * x, e, torch.tensor([0])), 'scale the features'),
    ],
)
def test_wrong_input_is_refused(call, words):
    x, edges = torch.linspace(-1, 1, 12).view(4, 3), torch.tensor([[0, 1, 2, 3], [1, 0, 0, 0]])
    with pytest.raises(ValueError, match=words):
        call(x, edges, torch.tensor([0.1, 0.9, 0.5, 0.6]))


# ---------------------------------------------------------------- the small lassos


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6), d=st.integers(1, 12), rank=st.integers(1, 14), copies=st.booleans()
)
def test_lasso_is_optimal(seed, d, rank, copies):
    generator = torch.Generator().manual_seed(seed)
    a = torch.rand(20, d, rank, generator=generator).double()
    if copies:
        a[:, d // 2 :] = a[:, : d - d // 2]  # twins
    a = a / a.norm(dim=-1, keepdim=True)
    target = torch.rand(20, 3, rank, generator=generator).double()
    gram, b = a @ a.mT, target / target.norm(dim=-1, keepdim=True) @ a.mT
    beta = nonnegative_lasso(gram, b, RHO)
    violation = scores_lasso.kkt_violation(
        gram.repeat_interleave(3, 0), (b - RHO).flatten(0, 1), beta.flatten(0, 1)
    )
    assert (beta >= 0).all() and violation.max() <= 2e-9


def test_coordinate_descent_takes_over():
    a = torch.rand(20, 5, 9, generator=torch.Generator().manual_seed(0)).double() - 0.3
    gram, b = (
        a @ a.mT,
        (a @ torch.rand(20, 9, 3, generator=torch.Generator().manual_seed(1)).double()).mT,
    )
    beta = nonnegative_lasso(gram, b, RHO)
    for rounds in (0, 1, 2):
        torch.testing.assert_close(
            nonnegative_lasso(gram, b, RHO, max_rounds=rounds), beta, atol=1e-6, rtol=0
        )


def test_equal_features_share_their_weight():
    gram = torch.ones(1, 4, 4).double()
    b = torch.tensor([[[0.2, 0.7, 0.7, 0.7 + 1e-14]]]).double()
    beta = nonnegative_lasso(gram, b, RHO)
    torch.testing.assert_close(beta[0, 0], torch.tensor([0, 0.2, 0.2, 0.2]).double())
    top = scores_graphlime.top_features(
        torch.tensor(
            [[0, 0.5, 0.5 + 4e-7, 0.1], [0, 0, 0, 0], [0, 0.5, 0.6, 0], [0, 0.5, 0.5 + 6e-7, 0]]
        ).double()
    )
    assert top.tolist() == [
        [False, True, True, False],
        [False] * 4,
        [False, False, True, False],
        [False, False, True, False],
    ]


def least_norm_by_slsqp(gram, f, beta):
    "The point of least norm on the face of solutions through β, by a general-purpose optimiser."
    e = np.flatnonzero((beta > 0) | (f - gram @ beta > -1e-9))
    values, basis = np.linalg.eigh(gram[np.ix_(e, e)])
    basis = basis[:, values > 1e-9 * values[-1]]
    point = basis.T @ beta[e]
    found = minimize(
        lambda z: z @ z / 2,
        beta[e],
        jac=lambda z: z,
        method='SLSQP',
        bounds=[(0, None)] * len(e),
        constraints=dict(type='eq', fun=lambda z: basis.T @ z - point, jac=lambda z: basis.T),
        options=dict(ftol=1e-15, maxiter=500),
    )
    out = np.zeros_like(beta)
    out[e] = found.x
    return out


@pytest.mark.parametrize('kind', ['twins', 'binary', 'affine'])
def test_of_several_solutions_the_least_norm_counts(kind):
    "Affine: counts with the same total, so that all features may carry weight, many not equally."
    rng, degenerate, signs = np.random.default_rng(0), 0, 0
    for _ in range(60):
        d, rank = int(rng.integers(3, 12)), int(rng.integers(2, 5))
        a = (
            (rng.random((d, rank)) < 0.5).astype(float)
            if kind == 'binary'
            else rng.random((d, rank))
        )
        if kind == 'twins':
            a[d // 2 :] = a[: d - d // 2]
        if kind == 'affine':
            a = rng.multinomial(6, np.ones(rank) / rank, size=d).astype(float)
        f = a @ rng.random(rank) - (0 if kind == 'affine' else RHO)
        gram, right = torch.tensor(a @ a.T)[None], torch.tensor(f)[None]
        one, several = scores_lasso._active_sets(GramMatrices(gram), right, 1)
        beta = nonnegative_lasso(gram, right[None] + RHO, RHO)[0]
        assert (beta >= 0).all() and scores_lasso.kkt_violation(gram, right, beta) <= 1e-9
        order = rng.permutation(d)
        again = nonnegative_lasso(gram[:, order][:, :, order], right[None, :, order] + RHO, RHO)[0]
        torch.testing.assert_close(again, beta[:, order], atol=1e-9, rtol=0)
        if bool(several.any()):
            expected = least_norm_by_slsqp(a @ a.T, f, one[0].numpy())
            np.testing.assert_allclose(beta[0].numpy(), expected, atol=1e-6)
            degenerate += bool((one - beta).abs().max() > 1e-6)
            signs += bool((np.linalg.pinv(a @ a.T, 1e-9) @ f).min() < -1e-6)
    assert degenerate >= 5 and (kind != 'affine' or signs >= 5)


def test_nearly_equal_features_meet_the_conditions():
    "On both sides of the rank cut-off; coordinate descent ends at the same point."
    generator = torch.Generator().manual_seed(0)
    for distance in (0, 1e-14, 1e-10, 1e-7, 1e-5, 1e-3):
        a = torch.rand(50, 4, 6, generator=generator).double()
        a = torch.cat([a, a + distance * torch.randn(50, 4, 6, generator=generator).double()], 1)
        gram, b = a @ a.mT, (a @ torch.rand(50, 6, 1, generator=generator).double()).mT
        beta = nonnegative_lasso(gram, b, RHO)
        violation = scores_lasso.kkt_violation(gram, b[:, 0] - RHO, beta[:, 0])
        assert (beta >= 0).all() and violation.max() <= 1e-9, distance
    a[:, 4:] = a[:, :4]
    gram, b = a @ a.mT, (a @ torch.rand(50, 6, 1, generator=generator).double()).mT
    torch.testing.assert_close(
        nonnegative_lasso(gram, b, RHO, max_rounds=0),
        nonnegative_lasso(gram, b, RHO),
        atol=1e-6,
        rtol=0,
    )


def test_no_convergence_is_an_error():
    unbounded = torch.tensor(
        [[[1.0, -1.0], [-1.0, 1.0]]]
    ).double()  # and b outside its range: no minimum exists
    with pytest.raises(RuntimeError, match='did not converge'):
        scores_lasso._coordinate_descent(
            unbounded, torch.ones(1, 2).double(), torch.zeros(1, 2).double(), sweeps=50
        )


# ---------------------------------------------------------------- fidelity, REF, VEF


def brute_force_weights(values, k, rounds=4000, seed=0):
    "Share of random tie orders in which each node is among the k largest."
    rng, count = np.random.default_rng(seed), np.zeros(len(values))
    for _ in range(rounds):
        order = rng.permutation(len(values))
        count[order[np.argsort(-values[order], kind='stable')[:k]]] += 1
    return count / rounds


def test_ref_and_vef_are_means_over_tie_orders():
    rng = np.random.default_rng(1)
    n = 40
    f = np.round(rng.random(n) * 4) / 4
    sens, before, after = rng.integers(0, 2, n), rng.integers(0, 2, n), rng.integers(0, 2, n)
    weights = brute_force_weights(f, n // 5)
    expected = abs(
        weights[sens == 0].sum() / (sens == 0).sum() - weights[sens == 1].sum() / (sens == 1).sum()
    )
    assert scores_procedure.ref(torch.tensor(f), torch.tensor(sens)).item() == pytest.approx(
        expected, abs=0.01
    )
    drops = []
    for g in (0, 1):
        at = sens == g
        k = max(1, at.sum() // 5)
        drops.append((brute_force_weights(f[at], k) * (before - after)[at]).sum() / k)
    result = scores_procedure.vef(
        torch.tensor(f), torch.tensor(before), torch.tensor(after), torch.tensor(sens)
    ).item()
    assert result == pytest.approx(abs(drops[0] - drops[1]), abs=0.02)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6), n=st.integers(2, 60), levels=st.integers(1, 6), k=st.integers(1, 60)
)
def test_top_weights(seed, n, levels, k):
    rng, k = np.random.default_rng(seed), min(k, n)
    values = torch.tensor(rng.integers(0, levels, n) + rng.random(n) * 1e-11)
    weights = scores_procedure.top_weights(values, k)
    assert (
        weights.sum().item() == pytest.approx(k, abs=1e-9)
        and ((weights >= 0) & (weights <= 1)).all()
    )
    order = torch.tensor(rng.permutation(n))
    torch.testing.assert_close(scores_procedure.top_weights(values[order], k), weights[order])


@pytest.mark.parametrize(
    'n, k', [(1, 1), (4, 1), (5, 1), (9, 1), (10, 2), (15, 3), (35, 7), (4719, 943)]
)
def test_number_of_places(n, k):
    assert scores_procedure.places(n, 0.2) == k


def test_batched_gaps_and_groups():
    generator = torch.Generator().manual_seed(0)
    f, before, after = (
        torch.randint(0, 3, (2, 5, 30), generator=generator).double() for _ in range(3)
    )
    sens = (torch.arange(30) % 3 == 0).long()
    rows = torch.stack([sens[torch.randperm(30, generator=generator)] for _ in range(5)])
    for s in (sens, rows):
        ref, vef = scores_procedure.ref(f, s), scores_procedure.vef(f, before, after, s)
        for i in range(2):
            for j in range(5):
                alone = s if s.ndim == 1 else s[j]
                torch.testing.assert_close(ref[i, j], scores_procedure.ref(f[i, j], alone))
                torch.testing.assert_close(
                    vef[i, j], scores_procedure.vef(f[i, j], before[i, j], after[i, j], alone)
                )
    with pytest.raises(ValueError, match='group sizes'):
        scores_procedure.ref(f[0], torch.stack([sens, 1 - sens] * 2 + [sens]))
    for group in (0, 1):
        with pytest.raises(UndefinedScoreError):
            scores_procedure.vef(f, before, after, torch.full((30,), group))


def test_fidelity_modes_differ_only_where_the_prediction_flips():
    p, q = torch.rand(2, 500, generator=torch.Generator().manual_seed(0)).double()
    same = (p >= 0.5) == (q >= 0.5)
    proper, published = scores_procedure.fidelity(p, q), scores_procedure.fidelity(p, q, 'cfa')
    torch.testing.assert_close(proper[same], published[same])
    assert (proper[~same] > published[~same]).all() and (proper[~same] > 0).all()
    with pytest.raises(ValueError, match='mode'):
        scores_procedure.fidelity(p, q, 'other')


# ---------------------------------------------------------------- Integrated Gradients, ATT_JSD


def network(bias=True, activation=torch.nn.Tanh):
    torch.manual_seed(0)
    layers = torch.nn.Linear(6, 16, bias=bias), activation(), torch.nn.Linear(16, 2, bias=bias)
    return torch.nn.Sequential(*layers).double()


@pytest.mark.parametrize(
    'bias, activation', [(True, torch.nn.Tanh), (False, torch.nn.LeakyReLU), (True, torch.nn.GELU)]
)
def test_integrated_gradients_against_captum(bias, activation):
    model, x = (
        network(bias, activation),
        torch.randn(30, 6, generator=torch.Generator().manual_seed(1)).double(),
    )
    captum = IntegratedGradients(lambda rows: model(rows).softmax(-1)[:, 1])
    expected = captum.attribute(x, n_steps=50, method='gausslegendre')
    ours, error = scores_attributions.integrated_gradients(
        model, x, n_steps=50, return_completeness=True
    )
    torch.testing.assert_close(
        ours, expected, atol=1e-8, rtol=0
    )  # captum keeps its steps in single precision
    assert error.max() < 1e-9
    torch.testing.assert_close(
        scores_attributions.integrated_gradients(model, x, n_steps=50, batch_size=1),
        ours,
        atol=1e-12,
        rtol=0,
    )
    assert scores_attributions.integrated_gradients(model, x[:0]).shape == (0, 6)


def test_completeness_error_tells_of_kinks():
    model, x = (
        network(True, torch.nn.ReLU),
        torch.randn(30, 6, generator=torch.Generator().manual_seed(1)).double(),
    )
    errors = [
        scores_attributions.integrated_gradients(model, x, n_steps=n, return_completeness=True)[
            1
        ].max()
        for n in (4, 256)
    ]
    assert errors[0] > 5 * errors[1] > 1e-7


def test_closed_form_of_homogeneous_models():
    model = network(False, torch.nn.LeakyReLU)
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(2)).double()
    x = torch.cat([x, 1e-3 * x, 1e-8 * x, 40 * x, torch.zeros(1, 6).double()]).requires_grad_()
    logits = model(x)
    margin = logits[:, 1] - logits[:, 0]
    (gradient,) = torch.autograd.grad(margin.sum(), x)
    ours = scores_attributions.homogeneous_attributions(x, margin, gradient)
    torch.testing.assert_close(
        ours, scores_attributions.integrated_gradients(model, x, n_steps=200), atol=1e-9, rtol=1e-9
    )
    torch.testing.assert_close(
        ours.sum(-1), torch.sigmoid(margin) - 0.5, atol=1e-12, rtol=1e-9
    )  # completeness
    slope = scores_attributions.homogeneous_attributions(
        torch.ones(3, 1), torch.tensor([0.0, 0.00999, 0.01001]).double(), torch.ones(3, 1).double()
    )
    torch.testing.assert_close(
        slope[:, 0], torch.tensor([0.25, 0.25, 0.25]).double(), atol=3e-6, rtol=0
    )
    margins = torch.linspace(-3, 3, 13).double().requires_grad_()
    ones = torch.ones(13, 1).double()
    assert torch.autograd.gradcheck(
        lambda m: scores_attributions.homogeneous_attributions(ones, m, ones), margins
    )


def slopes_of(rate, jump):
    "Integrals of a step of the slope at `jump` and of a steep sigmoid, and the pieces asked for."
    seen = []

    def integrate(pieces):
        seen.append(pieces)
        points, weights = scores_attributions.gauss_legendre(
            pieces.n_steps, rate, pieces.low, pieces.high
        )
        a = rate[pieces.path]
        total = (weights * a * (points > jump)).sum(0)
        gain = a * ((pieces.high - jump).clamp(min=0) - (pieces.low - jump).clamp(min=0))
        kink = (jump - pieces.low) / (pieces.high - pieces.low)
        return scores_attributions.Integral(total[:, None], gain, kink)

    return integrate, seen


def test_the_loop_refines_only_what_is_incomplete():
    rate = torch.tensor([1.0, 0.0, 2.0]).double()
    integrate, seen = slopes_of(rate, jump=0.3)
    whole = scores_attributions.Pieces.whole(3, 4, rate)
    total, error = scores_attributions.integrate_until_complete(
        integrate, whole, tolerance=1e-9, max_rounds=10
    )
    assert [pieces.path.tolist() for pieces in seen] == [[0, 1, 2], [0, 2, 0, 2]]
    torch.testing.assert_close(total[:, 0], 0.7 * rate)
    assert error.max() < 1e-12

    without_kink = lambda pieces: integrate(pieces)._replace(kink=None)
    seen.clear()
    _, error = scores_attributions.integrate_until_complete(
        without_kink, whole, tolerance=1e-9, max_rounds=3
    )
    assert [pieces.n_steps for pieces in seen] == [4, 8, 16, 32]
    assert error[1] == 0 and error[0] > 1e-9  # reported, although it is above the tolerance


def test_points_double_for_incomplete_rows_only():
    model = network(True, torch.nn.ReLU)
    x = torch.randn(30, 6, generator=torch.Generator().manual_seed(1)).double()
    first, error = scores_attributions.integrated_gradients(
        model, x, n_steps=4, return_completeness=True
    )
    refined, smaller = scores_attributions.integrated_gradients(
        model, x, n_steps=4, max_steps=512, tolerance=1e-3, return_completeness=True
    )
    complete = error <= 1e-3
    assert complete.any() and (~complete).any()
    assert torch.equal(refined[complete], first[complete])
    assert smaller.max() <= 1e-3 < error.max()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), zeros=st.booleans())
def test_att_jsd_against_scipy(seed, zeros):
    generator = torch.Generator().manual_seed(seed)
    attributions = torch.randn(3, 20, 5, generator=generator).double()
    sens = (torch.arange(20) < 7).long()
    if zeros:
        attributions[:, :4], attributions[..., 2] = 0, 0
    shares = (attributions.abs() / attributions.abs().sum(-1, keepdim=True)).numpy()
    shares = np.where(np.isnan(shares), 1 / 5, shares)
    expected = [
        jensenshannon(s[sens == 0].mean(0), s[sens == 1].mean(0), base=2) ** 2 for s in shares
    ]
    np.testing.assert_allclose(scores_procedure.att_jsd(attributions, sens), expected, atol=1e-12)
    batched = scores_procedure.att_jsd(attributions, torch.stack([sens, sens, 1 - sens]))
    np.testing.assert_allclose(batched, expected, atol=1e-12)


def test_att_jsd_gradient_equals_finite_differences():
    attributions = (
        torch.randn(12, 4, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    )
    sens = torch.arange(12) % 2
    assert torch.autograd.gradcheck(lambda a: scores_procedure.att_jsd(a, sens), attributions)
    with pytest.raises(UndefinedScoreError):
        scores_procedure.att_jsd(attributions, torch.ones(12))
