"""Losses of any number of groups: several attributes, people in no group, people with weights."""

from itertools import combinations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from moe_expert.experts.backbones import forward, hidden_gradient
from moe_expert.experts.initialisation import init_population
from moe_expert.experts.losses import (
    GroupWeights,
    adversary_loss,
    adversary_shapes,
    attribution_divergence,
    cross_entropy,
    divergence_of,
    expert_gradients,
    expert_loss,
    group_sizes,
    representation_gap,
    soft_gaps,
)
from moe_expert.experts.specs import LAMBDAS

N, D, HIDDEN, MODELS = 60, 5, 4, 3
GROUP_TERMS = LAMBDAS[:3]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def groups(k, seed=1, unknown=0.0):
    "Groups in unequal shares, each with people; some people in none."
    chance = torch.arange(1, k + 1).double()
    sens = torch.multinomial(chance, N, True, generator=rng(seed))
    sens[:k] = torch.arange(k)
    sens[torch.rand(N, generator=rng(seed + 1)) < unknown] = -1
    return sens


WEIGHT = 0.2 + 3 * torch.rand(N, generator=rng(9), dtype=torch.float64)
CASES = {
    'three': (groups(3), None),
    'crossed': (2 * groups(2) + groups(2, seed=5), None),
    'unknown': (groups(3, unknown=0.2), None),
    'two, unknown': (groups(2, unknown=0.2), None),
    'two, weighted': (groups(2), WEIGHT),
    'three, weighted': (groups(3), WEIGHT),
    'separate': (torch.stack([groups(2), groups(4, seed=5, unknown=0.2)], 1), None),
    'separate, weighted': (torch.stack([groups(3), groups(4, 5, 0.2), groups(2, 7)], 1), WEIGHT),
    'a group without class 1': (groups(3), 'class 1 only in groups 0 and 1'),
}


@pytest.fixture(params=CASES)
def case(request):
    "x, y, sens, weight of 60 people."
    sens, weight = CASES[request.param]
    x = torch.randn(N, D, generator=rng(), dtype=torch.float64)
    x[7], x[11, :3] = 0, 0
    y = (torch.rand(N, generator=rng(3)) < 0.4).long()
    if isinstance(weight, str):
        y[sens == 2], weight = 0, None
    return x, y, sens, weight


def some_params(sizes, n_models=MODELS, hidden=HIDDEN):
    params = dict(init_population(range(n_models), D, hidden).params)
    for i, (k, shape) in enumerate(adversary_shapes(hidden, sizes).items()):
        params[k] = torch.randn(n_models, *shape, generator=rng(i), dtype=torch.float64)
    return {k: v.clone().requires_grad_() for k, v in params.items()}


def per_attribute(sens):
    "The columns, each an attribute."
    return [c.numpy() for c in (sens.T if sens.dim() == 2 else sens[None])]


def means_of(values, column, weight, among=None):
    "Weighted mean of each group that has people; `values` is [n, …]."
    w = np.ones(len(column)) if weight is None else weight.numpy()
    among = np.ones(len(column), bool) if among is None else among
    return [
        np.average(values[mine], axis=0, weights=w[mine])
        for g in range(column.max() + 1)
        if (mine := (column == g) & among).any()
    ]


def entropy(q):
    q = q[q > 0]
    return -(q * np.log2(q)).sum()


def brute_force(params, x, y, sens, weight, m):
    "All terms of one model, by their definitions and pair by pair."
    p = {k: v.detach()[m].numpy() for k, v in params.items()}
    x, y = x.numpy(), y.numpy()
    w = np.ones(len(x)) if weight is None else weight.numpy()
    z = x @ p['hidden.weight'].T
    hidden = np.where(z > 0, z, 0.01 * z)
    margin = hidden @ (p['out.weight'][1] - p['out.weight'][0])
    p1 = 1 / (1 + np.exp(-margin))
    slope = np.where(z > 0, 1, 0.01) * (p['out.weight'][1] - p['out.weight'][0])
    a = np.abs(x * (slope @ p['hidden.weight']))
    total = a.sum(1, keepdims=True)
    shares = np.where(total == 0, 1 / D, a / np.where(total == 0, 1, total))
    rep, dp, eo, jsd, adv, at = [], [], [], [], [], 0
    for column in per_attribute(sens):
        pairs = [
            np.square(a - b).mean() for a, b in combinations(means_of(hidden, column, weight), 2)
        ]
        rep.append(np.mean(pairs))
        dp.append(np.ptp(means_of(p1, column, weight)))
        eo.append(np.ptp(means_of(p1, column, weight, y == 1)))
        q = means_of(shares, column, weight)
        spread = entropy(np.mean(q, 0)) - np.mean([entropy(v) for v in q])
        jsd.append(spread / np.log2(len(q)))
        k = column.max() + 1
        rows = slice(at, at + (1 if k == 2 else k))
        at = rows.stop
        losses = []
        for name, seen in (('hidden', hidden), ('proba', p1[:, None])):
            into = p[f'adversary_{name}.weight']
            into = np.reshape(into, (-1, seen.shape[1]))[rows]
            logits = seen @ into.T + p[f'adversary_{name}.bias'][rows]
            if k == 2:
                logits = np.concatenate([0 * logits, logits], 1)
            log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
            known = column >= 0
            own = log_p[np.arange(len(x))[known], column[known]]
            losses.append(-np.average(own, weights=w[known]))
        adv.append(np.mean(losses))
    chosen = np.where(y == 1, p1, 1 - p1)
    return {
        'ce': -np.average(np.log(chosen), weights=w),
        'lambda_rep': np.mean(rep),
        'lambda_fair': (max(dp) + max(eo)) / 2,
        'lambda_attention': max(jsd),
        'lambda_adv': np.mean(adv),
    }


def test_every_term_is_its_definition(case):
    x, y, sens, weight = case
    weights, params = GroupWeights.of(sens, y, weight), some_params(group_sizes(sens))
    f = forward(params, x)
    attributions = x * (hidden_gradient(f) @ params['hidden.weight'])
    found = {
        'ce': cross_entropy(f.margin, y, weight),
        'lambda_rep': representation_gap(f.hidden, weights),
        'lambda_fair': soft_gaps(f.p1, weights),
        'lambda_attention': attribution_divergence(f, params, x.abs(), weights),
        'lambda_adv': adversary_loss(f, params, sens, weights),
    }
    for m in range(MODELS):
        for name, expected in brute_force(params, x, y, sens, weight, m).items():
            assert found[name][m].item() == pytest.approx(expected, rel=1e-10, abs=1e-13), name
            assert expected > 1e-4
    elsewhere = divergence_of(attributions, weights)
    torch.testing.assert_close(elsewhere, found['lambda_attention'], rtol=0, atol=1e-12)
    ones = {k: torch.ones(MODELS).double() for k in LAMBDAS}
    whole = expert_loss(params, x, y, sens, weights, ones)
    torch.testing.assert_close(whole, sum(found.values()))


@pytest.mark.parametrize('name', LAMBDAS)
def test_gradients_by_hand_equal_finite_differences(case, name):
    x, y, sens, weight = case
    weights, params = GroupWeights.of(sens, y, weight), some_params(group_sizes(sens))
    lambdas = {name: torch.tensor([0.7, 0.0, 2.0]).double()}
    keep = (torch.rand(MODELS, N, HIDDEN, generator=rng(4)) > 0.3).double() / 0.7
    found = expert_gradients(params, x, y, sens, weights, lambdas, keep=keep)

    def value(p, sign):
        loss = expert_loss(p, x, y, sens, weights, lambdas, keep=keep)
        plain = expert_loss(p, x, y, sens, weights, {}, keep=keep)
        return (plain + sign * (loss - plain)).detach()

    for k, g in found.items():
        reversed_ = name == 'lambda_adv' and not k.startswith('adversary')
        for seed in range(3):
            way = torch.randn(g.shape, generator=rng(seed), dtype=torch.float64)
            up, down = ({**params, k: params[k] + t * way} for t in (1e-6, -1e-6))
            sign = -1 if reversed_ else 1
            numeric = (value(up, sign) - value(down, sign)) / 2e-6
            exact = (g * way).flatten(1).sum(1)
            torch.testing.assert_close(exact, numeric, rtol=1e-5, atol=2e-8)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_gradients_by_hand_are_those_of_autograd(case, dtype):
    x, y, sens, weight = case
    weights = GroupWeights.of(sens, y, weight, dtype)
    params = some_params(group_sizes(sens))
    params = {k: v.detach().to(dtype).requires_grad_() for k, v in params.items()}
    lambdas = {k: torch.tensor([0.7, 0.0, 2.0], dtype=dtype) for k in LAMBDAS}
    by_hand = expert_gradients(params, x.to(dtype), y, sens.to(dtype), weights, lambdas)
    loss = expert_loss(params, x.to(dtype), y, sens, weights, lambdas).sum()
    near = dict(rtol=1e-9, atol=1e-13) if dtype == torch.float64 else dict(rtol=1e-3, atol=2e-6)
    for (k, _), g in zip(params.items(), torch.autograd.grad(loss, list(params.values()))):
        torch.testing.assert_close(by_hand[k], g, **near)
    assert by_hand.keys() == params.keys()


def test_gradients_of_the_terms_pass_gradcheck(case):
    _, y, sens, weight = case
    weights = GroupWeights.of(sens, y, weight)
    draw = lambda *shape: torch.rand(*shape, generator=rng(2), dtype=torch.float64)
    hidden, p1 = draw(2, N, HIDDEN).requires_grad_(), draw(2, N).requires_grad_()
    attributions = (draw(2, N, D) + 0.1).requires_grad_()
    for term, at in (
        (representation_gap, hidden),
        (soft_gaps, p1),
        (divergence_of, attributions),
    ):
        assert torch.autograd.gradcheck(lambda v, term=term: term(v, weights), (at,), atol=1e-6)


# --- what must not matter -------------------------------------------------------------------------


def all_terms(params, x, y, sens, weight, sizes=None):
    "Losses with each term alone, and all gradients."
    weights = GroupWeights.of(sens, y, weight, sizes=sizes)
    found = {}
    for name in LAMBDAS:
        lambdas = {name: torch.ones(MODELS).double()}
        found[name] = expert_loss(params, x, y, sens, weights, lambdas).detach()
        for k, g in expert_gradients(params, x, y, sens, weights, lambdas).items():
            found[name, k] = g
    return found


def same(a, b, tolerance=1e-11):
    assert a.keys() == b.keys()
    for k in a:
        torch.testing.assert_close(a[k], b[k], rtol=tolerance, atol=tolerance / 100)


def test_names_of_groups_do_not_matter(case):
    "Nor the order of the attributes; adversaries are renamed alike."
    x, y, sens, weight = case
    sizes = group_sizes(sens)
    columns = sens[:, None] if sens.dim() == 1 else sens
    order = [torch.randperm(k, generator=rng(k)).flip(0) for k in sizes]
    assert any((o != torch.arange(len(o))).any() for o in order)
    renamed = torch.stack(
        [torch.where(c < 0, -1, o[c.clamp(min=0)]) for c, o in zip(columns.T, order)], 1
    ).flip(1)
    renamed = renamed[:, 0] if sens.dim() == 1 else renamed
    params, at, places, signs = some_params(sizes), 0, [], []
    for k, o in zip(sizes, order):
        if k == 2:  # one logit: it changes its sign if the two groups change their names
            places.append(torch.tensor([at]))
            signs.append(torch.tensor([-1.0 if o[0] == 1 else 1.0]).double())
        else:
            places.append(at + o.argsort())
            signs.append(torch.ones(k).double())
        at += len(places[-1])
    place, sign = torch.cat(places[::-1]), torch.cat(signs[::-1])

    def moved(name, v):
        if not name.startswith('adversary'):
            return v
        if v.dim() == 2 and name == 'adversary_hidden.weight':  # one logit
            return v * sign
        return v[:, place] * sign.view(1, -1, *[1] * (v.dim() - 2))

    expected = all_terms(params, x, y, sens, weight)
    found = all_terms({k: moved(k, v) for k, v in params.items()}, x, y, renamed, weight)
    expected = {k: moved(k[1], v) if isinstance(k, tuple) else v for k, v in expected.items()}
    same(expected, found)


def test_a_weight_is_that_many_people():
    x = torch.randn(N, D, generator=rng(), dtype=torch.float64)
    y = (torch.rand(N, generator=rng(3)) < 0.4).long()
    sens = torch.stack([groups(3, unknown=0.1), groups(2, seed=5)], 1)
    times = torch.randint(1, 4, (N,), generator=rng(6))
    again = torch.repeat_interleave(torch.arange(N), times)
    params = some_params((3, 2))
    weighted = all_terms(params, x, y, sens, times.double())
    same(weighted, all_terms(params, x[again], y[again], sens[again], None))


def test_weights_of_one_change_no_bit(case):
    x, y, sens, _ = case
    params = some_params(group_sizes(sens))
    a = all_terms(params, x, y, sens, None)
    b = all_terms(params, x, y, sens, torch.ones(N))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_people_in_no_group_teach_through_cross_entropy_alone():
    x = torch.randn(N, D, generator=rng(), dtype=torch.float64)
    y = (torch.rand(N, generator=rng(3)) < 0.4).long()
    sens, params = groups(3, unknown=0.3), some_params((3,))
    known = sens >= 0
    assert 5 < (~known).sum() < 40
    weights = GroupWeights.of(sens, y)
    without = GroupWeights.of(sens[known], y[known])
    f, g = forward(params, x), forward(params, x[known])
    for a, b in (
        (representation_gap(f.hidden, weights), representation_gap(g.hidden, without)),
        (soft_gaps(f.p1, weights), soft_gaps(g.p1, without)),
        (adversary_loss(f, params, sens, weights), adversary_loss(g, params, sens[known], without)),
        (
            attribution_divergence(f, params, x.abs(), weights),
            attribution_divergence(g, params, x[known].abs(), without),
        ),
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)
    ones = {k: torch.ones(MODELS).double() for k in GROUP_TERMS}
    loss = expert_loss(params, x, y, sens, weights, ones)
    terms = expert_loss(params, x[known], y[known], sens[known], without, ones)
    terms = terms - cross_entropy(g.margin, y[known])
    torch.testing.assert_close(loss, terms + cross_entropy(f.margin, y))  # all 60 in the latter


@pytest.mark.parametrize('missing', [(2,), (4,), (0, 4), (1, 2, 3)])
def test_a_group_that_a_step_lacks_drops_out(missing):
    "As if it did not exist, wherever it stands in the order."
    x = torch.randn(N, D, generator=rng(), dtype=torch.float64)
    y = (torch.rand(N, generator=rng(3)) < 0.4).long()
    there = [g for g in range(5) if g not in missing]
    fewer = groups(len(there))
    sens = torch.tensor(there)[fewer]
    params = some_params((5,))
    a, b = GroupWeights.of(sens, y, sizes=(5,)), GroupWeights.of(fewer, y)
    lambdas = {k: torch.ones(MODELS).double() for k in GROUP_TERMS}
    torch.testing.assert_close(
        expert_loss(params, x, y, sens, a, lambdas),
        expert_loss(params, x, y, fewer, b, lambdas),
        rtol=1e-12,
        atol=0,
    )
    found = expert_gradients(params, x, y, sens, a, lambdas)
    for k, g in expert_gradients(params, x, y, fewer, b, lambdas).items():
        torch.testing.assert_close(found[k], g, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize('sens', [torch.full((N,), 2), torch.full((N,), -1)], ids=['one', 'none'])
def test_a_step_with_fewer_than_two_groups_compares_nothing(sens):
    x = torch.randn(N, D, generator=rng(), dtype=torch.float64)
    y, params = (torch.arange(N) % 3 == 0).long(), some_params((3,))
    weights = GroupWeights.of(sens, y, sizes=(3,))
    lambdas = {k: torch.ones(MODELS).double() for k in GROUP_TERMS}
    loss = expert_loss(params, x, y, sens, weights, lambdas)
    torch.testing.assert_close(loss, cross_entropy(forward(params, x).margin, y), rtol=0, atol=0)
    plain = expert_gradients(params, x, y, sens, weights, {})
    for k, g in expert_gradients(params, x, y, sens, weights, lambdas).items():
        torch.testing.assert_close(g, plain[k], rtol=0, atol=1e-15)
    every = {k: torch.ones(MODELS).double() for k in LAMBDAS}
    assert all(
        g.isfinite().all() for g in expert_gradients(params, x, y, sens, weights, every).values()
    )
    if (sens < 0).all():
        assert not adversary_loss(forward(params, x), params, sens, weights).any()


def test_equal_largest_means_share_the_slope():
    "So no number depends on which of two equal groups is named first."
    sens, y = torch.tensor([0, 1, 2, 3]), torch.tensor([0, 0, 0, 0])
    p1 = torch.tensor([[0.75, 0.25, 0.75, 0.5]]).double().requires_grad_()
    loss = soft_gaps(p1, GroupWeights.of(sens, y))
    assert loss.item() == 0.25  # half of the soft dp; nobody is of class 1
    (g,) = torch.autograd.grad(loss, p1)
    assert g.tolist() == [[0.25, -0.5, 0.25, 0]]


# --- how much work it is --------------------------------------------------------------------------


class Work(TorchDispatchMode):
    "Counts operations, and remembers the largest array."

    def __init__(self):
        super().__init__()
        self.operations, self.largest = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.operations += 1
        for t in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(t, torch.Tensor) and not t._is_view():
                self.largest = max(self.largest, t.numel())
        return out


def work(k, n=400):
    "Operations, largest array and multiplications of one step with k groups."
    x = torch.randn(n, D, generator=rng(), dtype=torch.float64)
    y, sens = (torch.arange(n) % 7 < 3).long(), torch.arange(n) % k
    params = {k: v.detach() for k, v in some_params((k,)).items()}
    lambdas = {k: torch.ones(MODELS).double() for k in LAMBDAS}
    with Work() as seen, FlopCounterMode(display=False) as flops:
        weights = GroupWeights.of(sens, y, sizes=(k,), unknown=False)
        found = expert_gradients(params, x, y, sens, weights, lambdas)
    assert all(g.isfinite().all() for g in found.values())
    return seen.operations, seen.largest, flops.get_total_flops()


def test_the_work_of_a_step_grows_linearly_with_the_groups():
    three, ten, forty = (work(k) for k in (3, 10, 40))
    assert three[0] == ten[0] == forty[0]  # as many operations for 40 groups as for 3
    assert forty[1] <= 4 * ten[1]
    rise = (ten[2] - three[2]) / 7  # multiplications for each group more
    assert 0 < forty[2] - ten[2] <= 30 * rise * 1.001


def test_forty_groups_are_learnt_from():
    "Each term falls along its own gradient."
    x = torch.randn(400, D, generator=rng(), dtype=torch.float64)
    sens, y = torch.arange(400) % 40, (torch.arange(400) % 7 < 3).long()
    x[:, 0] += sens / 20
    params, weights = some_params((40,)), GroupWeights.of(sens, y)
    for name in GROUP_TERMS:
        ones = {name: torch.ones(MODELS).double()}
        term = lambda p, ones=ones: (
            expert_loss(p, x, y, sens, weights, ones) - expert_loss(p, x, y, sens, weights, {})
        )
        grads = [expert_gradients(params, x, y, sens, weights, lam) for lam in (ones, {})]
        moved = {k: params[k] - 1e-3 * (g - grads[1][k]) for k, g in grads[0].items()}
        assert (term(moved) < term(params)).all()
