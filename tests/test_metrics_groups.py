"""Scores of any number of groups, with weights, against Fairlearn, scikit-learn and brute force.

The formulas for two groups that the scores had before are kept here (`two_groups`): for two groups,
and for weights of 1, every bit must be the same.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from fairlearn.metrics import (
    MetricFrame,
    demographic_parity_difference,
    equal_opportunity_difference,
    equalized_odds_difference,
    false_positive_rate,
    selection_rate,
    true_positive_rate,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from moe_expert.data.synthetic import make_synthetic
from moe_expert.errors import ArgumentError, ScoreInputError, UndefinedScoreError
from moe_expert.scores import metrics, procedure
from moe_expert.scores.attributions import attribution_shares, js_divergence
from moe_expert.scores.evaluation import Evaluator, NodeRecord, plain_scores, procedure_scores
from moe_expert.scores.facts import FACTS

BASE_RATE = 'base rate'
GAPS = ('dp', 'eo', 'ref', 'vef', 'att_jsd')


def people(seed, k, n=None, models=3, levels=6):
    "A record of people in k groups (each with both outcomes), with ties and positive weights."
    rng = np.random.default_rng(seed)
    n = n or 12 * k + 8
    sens = np.concatenate([np.repeat(np.arange(k), 2), rng.integers(0, k, n - 2 * k)])
    y = np.concatenate([np.tile([0, 1], k), rng.integers(0, 2, n - 2 * k)])
    weight = torch.tensor(rng.uniform(0.2, 3, n))
    record = NodeRecord(
        torch.arange(n),
        torch.tensor(y),
        torch.tensor(sens),
        torch.tensor(rng.integers(0, levels + 1, (models, n)) / levels),
        torch.tensor(rng.integers(-1, levels, (models, n)) / levels),
        torch.tensor(rng.choice([0, 0.5, 1], (models, n))),
        None,
        torch.tensor(rng.normal(size=(models, n, 5))),
    )
    return record, weight


def subset(record, where):
    "The record of some people, or of some people several times."
    rows = {
        name: getattr(record, name)[..., where]
        for name in ('nodes', 'y', 'p1', 'fidelity', 'flipped')
    }
    weight = None if record.weight is None else record.weight[where]
    a = record.attributions[:, where]
    return replace(record, **rows, sens=record.sens[where], attributions=a, weight=weight)


def assert_same(found, expected, atol=1e-12):
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=atol, rtol=0, msg=name)


def assert_equal_bits(found, expected):
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


# ---------------------------------------------------------------- oracles


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(2, 7), weighted=st.booleans())
def test_gaps_against_fairlearn(seed, k, weighted):
    record, weight = people(seed, k)
    weight = weight if weighted else None
    y, sens, extra = record.y, record.sens, {'sample_weight': weight}
    ours = {
        demographic_parity_difference: metrics.demographic_parity(record.p1, sens, **extra),
        equal_opportunity_difference: metrics.equal_opportunity(record.p1, y, sens, **extra),
        equalized_odds_difference: metrics.equalized_odds(record.p1, y, sens, **extra),
    }
    for oracle, found in ours.items():
        expected = [oracle(y, p >= 0.5, sensitive_features=sens, **extra) for p in record.p1]
        np.testing.assert_allclose(found, expected, atol=1e-12, err_msg=oracle.__name__)


@pytest.mark.parametrize('k', [2, 3, 12, 40])
@pytest.mark.parametrize('weighted', [False, True])
def test_every_rate_against_fairlearn(k, weighted):
    record, weight = people(k, k, models=1)
    oracles = {
        'accuracy': accuracy_score,
        BASE_RATE: lambda y, h, sample_weight=None: np.average(y, weights=sample_weight),
        'selection rate': selection_rate,
        'true positive rate': true_positive_rate,
        'false positive rate': false_positive_rate,
    }
    assert set(oracles) == set(metrics.RATES)
    params = {'sample_weight': weight.numpy()} if weighted else None
    frame = MetricFrame(
        metrics=oracles,
        y_true=record.y,
        y_pred=(record.p1[0] >= 0.5).long(),
        sensitive_features=record.sens,
        sample_params=params and dict.fromkeys(oracles, params),
    )
    ours = metrics.by_group(
        record.p1[0], record.y, record.sens, sample_weight=weight if weighted else None
    )
    assert ours.by_group['people'].tolist() == record.sens.bincount().tolist()
    for name in oracles:
        for found, expected in (
            (ours.by_group[name], frame.by_group[name]),
            (ours.overall[name], frame.overall[name]),
            (ours.difference()[name], frame.difference()[name]),
            (ours.ratio()[name], frame.ratio()[name]),
        ):
            np.testing.assert_allclose(found, np.asarray(expected, float), atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), levels=st.sampled_from([1, 3, 10, 1000]))
def test_weighted_utility_against_scikit_learn(seed, levels):
    record, weight = people(seed, 2, n=60, levels=levels)
    for name, metric, oracle in (
        ('acc', metrics.accuracy, accuracy_score),
        ('f1', metrics.f1, f1_score),
        ('auc', metrics.roc_auc, roc_auc_score),
    ):
        seen = record.p1 if name == 'auc' else (record.p1 >= 0.5).long()
        expected = [oracle(record.y, p, sample_weight=weight) for p in seen]
        found = metric(record.p1, record.y, sample_weight=weight)
        np.testing.assert_allclose(found, expected, atol=1e-12, err_msg=name)


def top(values, k, weight):
    "Memberships in the top of weight k, person by person; people with equal values share."
    left, membership = k, np.zeros(len(values))
    for value in sorted(set(values), reverse=True):
        tied = values == value
        membership[tied] = min(1, max(left, 0) / weight[tied].sum())
        left -= weight[tied].sum()
    return membership


def by_hand(record, m):
    "dp, eo, ref, vef and att_jsd of one model, group by group, with numpy."
    s, y, decided = record.sens.numpy(), record.y.numpy(), record.p1[m].numpy() >= 0.5
    w = np.ones(len(s)) if record.weight is None else record.weight.numpy()
    f, drop = record.fidelity[m].numpy(), record.drop[m].numpy()
    shares = record.attributions[m].abs().numpy()
    shares = shares / shares.sum(1, keepdims=True)

    def size(weights):  # of a top: whole places; where weights are below 1, of a mean weight each
        unit = min(1, weights.mean())
        return unit * max(1, np.floor(weights.sum() / unit / 5 + 1e-9))

    known, groups = s >= 0, sorted(set(s[s >= 0]))
    everyone = np.zeros(len(s))
    everyone[known] = top(f[known], size(w[known]), w[known])
    rows = {name: [] for name in ('dp', 'eo', 'ref', 'vef')}
    means = []
    for group in groups:
        at = s == group
        rows['dp'].append(np.average(decided[at], weights=w[at]))
        rows['eo'].append(np.average(decided[at & (y == 1)], weights=w[at & (y == 1)]))
        rows['ref'].append(np.average(everyone[at], weights=w[at]))
        rows['vef'].append(np.average(drop[at], weights=w[at] * top(f[at], size(w[at]), w[at])))
        means.append(np.average(shares[at], weights=w[at], axis=0))
    gaps = {name: max(values) - min(values) for name, values in rows.items()}
    jsd = entropy(np.mean(means, 0)) - np.mean([entropy(q) for q in means])
    return gaps | {'att_jsd': jsd / np.log(len(groups))}


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    k=st.integers(2, 6),
    scale=st.sampled_from([None, 1e-3, 1, 1000]),
    unknown=st.booleans(),
)
def test_gaps_against_brute_force(seed, k, scale, unknown):
    record, weight = people(seed, k)
    record.weight = None if scale is None else scale * weight
    if unknown:
        record.sens[2 * k :: 3] = -1
    scores = record.scores()
    for m in range(3):
        for name, value in by_hand(record, m).items():
            assert scores[name][m].item() == pytest.approx(value, abs=1e-9), name


@pytest.mark.parametrize('k', [2, 3, 7])
def test_a_weight_of_three_is_three_people(k):
    record, _ = people(5, k)
    times = torch.from_numpy(np.random.default_rng(k).integers(1, 4, len(record.y)))
    copies = subset(record, torch.arange(len(times)).repeat_interleave(times))
    assert_same(replace(record, weight=times.double()).scores(), copies.scores(), atol=1e-10)


@pytest.mark.parametrize('k', [2, 3, 10])
def test_divergence_of_k_distributions(k):
    q = torch.rand(k, 4, 6, generator=torch.Generator().manual_seed(k)).double()
    q = (q / q.sum(-1, keepdim=True)).requires_grad_()
    mean = q.detach().mean(0).numpy()
    expected = entropy(mean, axis=-1) - np.mean(
        [entropy(p, axis=-1) for p in q.detach().numpy()], 0
    )
    np.testing.assert_allclose(js_divergence(*q).detach(), expected / np.log(k), atol=1e-12)
    assert torch.autograd.gradcheck(lambda q: js_divergence(*q), q)
    disjoint = torch.eye(k).double()
    assert js_divergence(*disjoint).item() == pytest.approx(1, abs=1e-12)


# ---------------------------------------------------------------- two groups, weights of 1


def two_groups(record):
    "The scores by the formulas for two groups and without weights, as they were."
    p1, y, s = record.p1, record.y.double(), record.sens.double()
    yhat = (p1 >= 0.5).double()

    def gap(members):
        rates = [(yhat * m).sum(-1) / m.sum(-1) for m in members]
        return (rates[0] - rates[1]).abs()

    def membership(values, k):
        threshold = values.kthvalue(values.shape[-1] - k + 1, dim=-1, keepdim=True).values
        above, tied = values > threshold + 1e-9, (values - threshold).abs() <= 1e-9
        places = (k - above.sum(-1, keepdim=True)).to(values.dtype)
        return torch.where(above, 1, tied * places / tied.sum(-1, keepdim=True))

    n1 = int(s.sum())
    n0, f = len(s) - n1, record.fidelity
    top = membership(f, (n0 + n1) // 5)
    drops = []
    for group, size in enumerate((n0, n1)):
        mine = membership(torch.where(s == group, f, -torch.inf), size // 5)
        drops.append((mine * (record.correct - record.correct_after)).sum(-1) / (size // 5))
    ranks = torch.tensor(np.array([pd.Series(p).rank().to_numpy() for p in p1.numpy()]))
    pos = y.sum()
    scores = {
        'acc': (yhat == y).double().sum(-1) / len(y),
        'f1': 2 * (yhat * y).sum(-1) / (yhat.sum(-1) + pos),
        'auc': ((ranks * y).sum(-1) - pos * (pos + 1) / 2) / (pos * (1 - y).sum()),
        'dp': gap((1 - s, s)),
        'eo': gap(((1 - s) * y, s * y)),
        'selection_rate': yhat.mean(-1),
        'ref': ((top * (1 - s)).sum(-1) / n0 - (top * s).sum(-1) / n1).abs(),
        'vef': (drops[0] - drops[1]).abs(),
    }
    shares = attribution_shares(record.attributions)
    q0, q1 = ((m[None] @ shares)[..., 0, :] / m.sum(-1, keepdim=True) for m in (1 - s, s))
    tiny = torch.finfo(q0.dtype).tiny
    log_mean = ((q0 + q1) / 2).clamp(min=tiny).log2()
    parts = [(q * (q.clamp(min=tiny).log2() - log_mean)).sum(-1) for q in (q0, q1)]
    return scores | {'att_jsd': sum(parts).div(2).clamp(0, 1)}


@pytest.mark.parametrize('seed', range(10))
def test_two_groups_have_the_bits_they_had(seed):
    record, _ = people(seed, 2, n=101 + seed, levels=(3, 10, 1000)[seed % 3])
    scores = record.scores()
    assert_equal_bits({name: scores[name] for name in two_groups(record)}, two_groups(record))


@pytest.mark.parametrize('k', [2, 3, 9])
def test_weights_of_one_change_no_bit(k):
    record, _ = people(3, k, n=137)
    ones = replace(record, weight=torch.ones(137, dtype=torch.double))
    assert_equal_bits(ones.scores(), record.scores())
    record.sens[::5] = -1
    assert_equal_bits(replace(ones, sens=record.sens).scores(), record.scores())
    args, w = (record.p1, record.y, record.sens), {'sample_weight': ones.weight}
    for metric in (metrics.equalized_odds, metrics.soft_equal_opportunity, metrics.fair_result):
        assert torch.equal(metric(*args, **w), metric(*args))
    found, expected = (metrics.by_group(record.p1[0], *args[1:], **x) for x in (w, {}))
    pd.testing.assert_frame_equal(found.by_group, expected.by_group, check_exact=True)
    pd.testing.assert_series_equal(found.overall, expected.overall, check_exact=True)


def test_soft_gap_of_two_groups_and_its_gradient_have_the_bits_they_had():
    record, _ = people(1, 2, levels=1000)
    s = record.sens.double()
    for p1 in (record.p1, torch.full_like(record.p1, 0.25)):  # a gap, and none
        p, q = (p1.clone().requires_grad_() for _ in range(2))
        found = metrics.soft_demographic_parity(p, record.sens)
        old = ((q * (1 - s)).sum(-1) / (1 - s).sum() - (q * s).sum(-1) / s.sum()).abs()
        assert torch.equal(found, old)
        found.sum().backward()
        old.sum().backward()
        assert torch.equal(p.grad, q.grad)


# ---------------------------------------------------------------- invariants


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.sampled_from([2, 3, 40]), weighted=st.booleans())
def test_numbers_and_order_of_groups_do_not_matter(seed, k, weighted):
    record, weight = people(seed, k)
    record.weight = weight if weighted else None
    expected = record.scores()
    order = torch.from_numpy(np.random.default_rng(seed).permutation(k))
    for names in (order, 3 * order + 2):  # permuted; and with gaps between the numbers
        assert_same(replace(record, sens=names[record.sens]).scores(), expected)


def test_weights_may_have_any_unit():
    "Where the mean is above 1, a top has whole places, so ref and vef keep to it less exactly."
    record, weight = people(2, 3, n=200)
    expected = replace(record, weight=weight / 5).scores()
    for unit in (1e-6, 0.1):
        assert_same(replace(record, weight=unit * weight).scores(), expected, 1e-9)
    large = replace(record, weight=1000 * weight).scores()
    for name in ('acc', 'f1', 'auc', 'utility', 'dp', 'eo', 'fair_result', 'att_jsd'):
        torch.testing.assert_close(large[name], expected[name], atol=1e-12, rtol=0, msg=name)
    for name in ('ref', 'vef'):
        torch.testing.assert_close(large[name], expected[name], atol=0.1, rtol=0, msg=name)


def test_uncompared_people_count_in_utility_alone():
    record, weight = people(4, 3, n=120)
    for w in (None, weight):
        record.weight = w
        known = record.sens >= 0
        known[5::4] = False
        unknown = replace(record, sens=record.sens.masked_fill(~known, -1))
        scores, rest = unknown.scores(), subset(record, known).scores()
        for name in ('acc', 'f1', 'auc', 'selection_rate'):
            assert torch.equal(scores[name], record.scores()[name])
        for name in GAPS:
            torch.testing.assert_close(scores[name], rest[name], atol=1e-12, rtol=0, msg=name)
        table = metrics.by_group(record.p1[0], record.y, unknown.sens, 'abc', sample_weight=w)
        assert table.overall['people'] == 120 and table.by_group['people'].sum() == known.sum()
        assert table.overall['accuracy'] == pytest.approx(scores['acc'][0].item(), abs=1e-15)
        assert table.difference()['selection rate'] == pytest.approx(scores['dp'][0].item())


def test_separate_attributes_count_by_their_largest_gap():
    record, weight = people(6, 3, n=200)
    other = torch.arange(200) % 4
    for w in (None, weight):
        record.weight = w
        alone = [replace(record, sens=s).scores() for s in (record.sens, other)]
        both = replace(record, sens=torch.stack([record.sens, other], 1)).scores()
        for name in GAPS:
            assert torch.equal(both[name], torch.maximum(*(s[name] for s in alone))), name
        for name in ('fair_result', 'fair_procedure', 'final_score'):
            torch.testing.assert_close(both[name], FACTS[name].of(both), msg=name)
        assert torch.equal(both['utility'], alone[0]['utility'])
    assert any((alone[0][n] > alone[1][n]).any() for n in GAPS)
    assert any((alone[0][n] < alone[1][n]).any() for n in GAPS)


def test_a_matrix_with_one_column_is_a_vector():
    record, _ = people(6, 3)
    column = replace(record, sens=record.sens[:, None])
    assert_equal_bits(column.scores(), record.scores())
    for wrong in (torch.zeros(2, 2, 2), torch.tensor(1)):
        with pytest.raises(ScoreInputError, match=r'\[N, A\]'):
            metrics.attributes_of(wrong)


# ---------------------------------------------------------------- groups that lack people


def test_a_group_without_positives_drops_out_of_equal_opportunity_alone():
    record, _ = people(8, 4, n=150)
    record.y[record.sens == 2] = 0
    rest = subset(record, record.sens != 2)
    args = record.p1, record.y, record.sens
    assert torch.equal(
        metrics.equal_opportunity(*args), metrics.equal_opportunity(rest.p1, rest.y, rest.sens)
    )
    frame = metrics.by_group(record.p1[0], record.y, record.sens)
    assert np.isnan(frame.by_group.loc[2, 'true positive rate'])
    assert frame.difference()['true positive rate'] == metrics.equal_opportunity(*args)[0].item()
    rates = frame.by_group['true positive rate'].drop(2)
    assert frame.ratio()['true positive rate'] == rates.min() / rates.max()
    dp = [(record.p1[0] >= 0.5)[record.sens == g].double().mean() for g in range(4)]
    expected = (max(dp) - min(dp)).item()
    assert metrics.demographic_parity(record.p1, record.sens)[0].item() == pytest.approx(expected)
    p1 = record.p1.clone().requires_grad_()  # the group that is absent spoils no gradient
    metrics.soft_equal_opportunity(p1, record.y, record.sens).sum().backward()
    assert p1.grad.isfinite().all() and p1.grad.any()
    record.y[record.sens > 0] = 0
    with pytest.raises(UndefinedScoreError, match='fewer than two groups have nodes with label 1'):
        metrics.equal_opportunity(*args)
    assert metrics.equal_opportunity(*args, undefined='nan').isnan().all()
    frame = metrics.by_group(record.p1[0], record.y, record.sens)
    assert np.isnan(frame.difference()['true positive rate'])
    assert np.isnan(frame.ratio()['true positive rate'])


def test_rows_of_groups_may_lack_different_groups():
    "As in a bootstrap without strata: each row compares the groups that it has."
    p1, y = torch.tensor([0.9, 0.2, 0.7, 0.1, 0.6]), torch.ones(5)
    rows = torch.tensor([[0, 1, 2, 0, 1], [0, 0, 2, 2, 0], [1, 1, 1, 1, 1], [-1, 0, 1, -1, -1]])
    p1, y = p1.expand(4, 5), y.expand(4, 5)
    gaps = metrics.equal_opportunity(p1, y, rows, undefined='nan')
    assert gaps.isnan().tolist() == [False, False, True, False]
    for row in (0, 1, 3):
        assert gaps[row] == metrics.equal_opportunity(p1[row], y[row], rows[row])
    with pytest.raises(UndefinedScoreError):
        metrics.equal_opportunity(p1, y, rows)
    with pytest.raises(ArgumentError, match='group sizes'):
        procedure.ref(p1, rows)


@pytest.mark.parametrize('group', [-1, 0, 1, 5])
def test_one_group_has_no_gaps(group):
    record, _ = people(9, 2)
    record.sens[:] = group
    for call in (
        lambda: metrics.demographic_parity(record.p1, record.sens),
        lambda: procedure.ref(record.fidelity, record.sens),
        lambda: procedure.vef(record.fidelity, record.correct, record.correct_after, record.sens),
        lambda: procedure.att_jsd(record.attributions, record.sens),
    ):
        with pytest.raises(UndefinedScoreError, match='nodes'):
            call()
    assert procedure.att_jsd(record.attributions, record.sens, undefined='nan').isnan().all()
    table = metrics.by_group(record.p1[0], record.y, record.sens)
    assert len(table.by_group) == (group >= 0) and table.difference().isna().all()


@pytest.mark.parametrize('wrong', [0.0, -1.0, float('nan'), float('inf')])
def test_weights_must_be_positive(wrong):
    record, weight = people(10, 3)
    weight[3] = wrong
    args = record.p1, record.y, record.sens
    for call in (
        lambda w: metrics.utility(*args[:2], sample_weight=w),
        lambda w: metrics.fair_result(*args, sample_weight=w),
        lambda w: metrics.by_group(record.p1[0], *args[1:], sample_weight=w),
    ):
        with pytest.raises(ScoreInputError, match='positive'):
            call(weight)
        with pytest.raises(ScoreInputError, match='shape of p1'):
            call(weight[:-1])
        with pytest.raises(ScoreInputError, match='tensors'):
            call(weight.numpy())


@pytest.mark.parametrize('wrong', [-2, 0.5, float('nan'), float('inf')])
def test_groups_must_be_whole_numbers(wrong):
    record, _ = people(10, 3)
    sens = record.sens.double()
    sens[3] = wrong
    with pytest.raises(ScoreInputError, match='whole numbers'):
        metrics.demographic_parity(record.p1, sens)


# ---------------------------------------------------------------- batches, gradients, the evaluator


def test_batches_with_weights_are_their_rows_one_by_one():
    record, weight = people(11, 3, n=90)
    rows = torch.stack([torch.randperm(90) for _ in range(3)])
    w, y, sens = weight[rows], record.y[rows], record.sens[rows]
    together = plain_scores(record.p1, y, sens, sample_weight=w)
    jsd = procedure.att_jsd(record.attributions, sens, sample_weight=w)
    seen = record.fidelity, record.correct, record.correct_after
    together |= procedure_scores(*seen, jsd, sens, sample_weight=w)
    for m in range(3):
        one = {'sample_weight': w[m]}
        alone = plain_scores(record.p1[m], y[m], sens[m], **one)
        jsd = procedure.att_jsd(record.attributions[m], sens[m], **one)
        alone |= procedure_scores(*(o[m] for o in seen), jsd, sens[m], **one)
        assert_same({name: value[m] for name, value in together.items()}, alone)


@pytest.mark.parametrize('weighted', [False, True])
def test_gradients_with_several_groups_equal_finite_differences(weighted):
    record, weight = people(12, 3, n=24, models=2, levels=1000)
    extra = {'sample_weight': weight} if weighted else {}
    p1, a = record.p1.requires_grad_(), record.attributions.requires_grad_()
    args = record.y, record.sens
    for call, inputs in (
        (lambda p: metrics.soft_demographic_parity(p, record.sens, **extra), p1),
        (lambda p: metrics.soft_equal_opportunity(p, *args, **extra), p1),
        (lambda a: procedure.att_jsd(a, record.sens, **extra), a),
    ):
        assert torch.autograd.gradcheck(call, inputs)


class Fixed:
    "Models whose answers are given: p₁ = σ(x·w); masking removes a feature's part."

    def __init__(self, weights):
        self.weights = weights.double()

    def probabilities(self, x, edge_index, nodes=None):
        return torch.sigmoid(self.weights @ (x if nodes is None else x[nodes]).double().T)

    def masked_probabilities(self, x, edge_index, nodes, features):
        rows = x[nodes].double().expand(len(self.weights), -1, -1).clone()
        rows.scatter_(2, features.clamp(min=0)[..., None], 0.0)
        masked = torch.sigmoid((rows * self.weights[:, None]).sum(-1))
        return torch.where(features >= 0, masked, self.probabilities(x, None, nodes))

    def attributions(self, x, edge_index, nodes):
        return x[nodes].double() * self.weights[:, None]


def test_the_evaluator_takes_groups_and_weights_from_the_data():
    data = make_synthetic(300, 6, seed=1)
    generator = torch.Generator().manual_seed(0)
    race = torch.randint(0, 3, (300,), generator=generator)
    race[::9] = -1
    data.weight = torch.rand(300, generator=generator) + 0.5
    models = Fixed(torch.randn(2, data.x.shape[1], generator=generator))
    found = {}
    for name, sens in {'sex': data.sens, 'race': race}.items():
        one = data.clone()
        one.sens = sens
        found[name] = Evaluator(one).scores(models)
    data.sens = torch.stack([data.sens, race], 1)
    evaluator = Evaluator(data)
    record = evaluator.record(models)
    assert record.sens.shape == (len(record.nodes), 2) and record.weight.dtype == torch.float64
    scores = evaluator.scores(models)
    for name in GAPS:
        expected = torch.maximum(found['sex'][name], found['race'][name])
        torch.testing.assert_close(scores[name], expected, atol=1e-12, rtol=0, msg=name)
    torch.testing.assert_close(evaluator.att_jsd(models), scores['att_jsd'])
    unweighted = data.clone()
    del unweighted.weight
    assert Evaluator(unweighted).weight is None
    assert not torch.equal(Evaluator(unweighted).scores(models)['acc'], scores['acc'])


def test_the_evaluator_names_its_groups():
    data = make_synthetic(200, 6, seed=1)
    n, zeros = int(data.val_mask.sum()), int((data.sens[data.val_mask] == 0).sum())
    assert (
        repr(Evaluator(data)) == f'Evaluator({n} nodes, {zeros} in group 0, {n - zeros} in group 1)'
    )
    where = data.val_mask.nonzero()[:, 0]
    data.sens[where] = torch.arange(n) % 3 - 1
    assert repr(Evaluator(data)).endswith(f'in group 1, {-(-n // 3)} not compared)')
    data.sens[where] = torch.arange(n) % 8
    assert f'8 groups of {n // 8} to {-(-n // 8)})' in repr(Evaluator(data))
    data.sens = torch.stack([torch.arange(200) % 2, torch.arange(200) % 3], 1)
    assert repr(Evaluator(data)).count(';') == 1
