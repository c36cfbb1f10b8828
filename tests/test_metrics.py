"Scores against scikit-learn and fairlearn on random populations with ties; facts; gradients."

import numpy as np
import pytest
import torch
from fairlearn.metrics import (
    MetricFrame,
    count,
    demographic_parity_difference,
    equal_opportunity_difference,
    equalized_odds_difference,
    false_positive_rate,
    selection_rate,
    true_positive_rate,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from moe_expert.errors import MoEExpertError, UndefinedScoreError
from moe_expert.scores import metrics as scores_metrics
from moe_expert.scores.facts import AIMS, COMPOSITES, EQUALIZED_ODDS, FACTS


def draw(seed, n=80, models=4, levels=None):
    "Probabilities (rounded to `levels` values: ties), labels, groups; no class or group is absent."
    rng = np.random.default_rng(seed)
    p1 = rng.random((models, n))
    if levels:
        p1 = np.round(p1 * levels) / levels
    y, sens = rng.integers(0, 2, n), rng.integers(0, 2, n)
    y[:4], sens[:4] = [0, 1, 0, 1], [0, 0, 1, 1]
    return torch.tensor(p1), torch.tensor(y), torch.tensor(sens)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10**6), levels=st.sampled_from([None, 1, 2, 5, 10]), n=st.integers(4, 120)
)
def test_against_scikit_learn_and_fairlearn(seed, levels, n):
    p1, y, sens = draw(seed, n, levels=levels)
    yhat = (p1 >= 0.5).long()
    oracles = {
        'accuracy': [accuracy_score(y, h) for h in yhat],
        'f1': [f1_score(y, h, zero_division=0) for h in yhat],
        'roc_auc': [roc_auc_score(y, p) for p in p1],
        'demographic_parity': [
            demographic_parity_difference(y, h, sensitive_features=sens) for h in yhat
        ],
        'equal_opportunity': [
            equal_opportunity_difference(y, h, sensitive_features=sens) for h in yhat
        ],
        'equalized_odds': [equalized_odds_difference(y, h, sensitive_features=sens) for h in yhat],
    }
    ours = {
        'accuracy': scores_metrics.accuracy(p1, y),
        'f1': scores_metrics.f1(p1, y),
        'roc_auc': scores_metrics.roc_auc(p1, y),
        'demographic_parity': scores_metrics.demographic_parity(p1, sens),
        'equal_opportunity': scores_metrics.equal_opportunity(p1, y, sens),
        'equalized_odds': scores_metrics.equalized_odds(p1, y, sens),
    }
    for name, expected in oracles.items():
        np.testing.assert_allclose(ours[name], expected, atol=1e-12, err_msg=name)
    np.testing.assert_allclose(
        scores_metrics.utility(p1, y),
        (ours['accuracy'] + ours['f1'] + ours['roc_auc']) / 3,
        atol=1e-15,
    )
    np.testing.assert_allclose(
        scores_metrics.fair_result(p1, y, sens),
        (ours['demographic_parity'] + ours['equal_opportunity']) / 2,
        atol=1e-15,
    )


@pytest.mark.parametrize('seed', range(5))
def test_rates_by_group_against_fairlearn(seed):
    p1, y, _ = draw(seed, 200, models=1)
    groups = torch.from_numpy(np.random.default_rng(seed).integers(0, 4, 200))
    ours = scores_metrics.by_group(p1[0], y, groups, list('abcd'))
    names = {
        'people': count,
        'accuracy': accuracy_score,
        'selection rate': selection_rate,
        'true positive rate': true_positive_rate,
        'false positive rate': false_positive_rate,
    }
    frame = MetricFrame(
        metrics=names,
        y_true=y,
        y_pred=(p1[0] >= 0.5).long(),
        sensitive_features=np.array(list('abcd'))[groups],
    )
    assert ours.by_group.index.tolist() == frame.by_group.index.tolist()
    for name in names:
        np.testing.assert_allclose(ours.by_group[name], frame.by_group[name], atol=1e-12)
        np.testing.assert_allclose(ours.overall[name], frame.overall[name], atol=1e-12)
        if name != 'people':
            np.testing.assert_allclose(
                ours.difference()[name], frame.difference()[name], atol=1e-12
            )
            np.testing.assert_allclose(ours.ratio()[name], frame.ratio()[name], atol=1e-12)


def test_equalized_odds_need_both_classes_in_both_groups():
    p1, y, sens = draw(3)
    for label, message in ((0, 'nodes with label 0'), (1, 'nodes with label 1')):
        one_sided = torch.where(sens == 1, 1 - label, y)
        with pytest.raises(UndefinedScoreError, match=message):
            scores_metrics.equalized_odds(p1, one_sided, sens)
        assert scores_metrics.equalized_odds(p1, one_sided, sens, undefined='nan').isnan().all()


def test_a_batch_is_its_members_one_by_one_and_labels_may_be_batched():
    p1, y, sens = draw(1, models=6, levels=7)
    stacked = p1.view(2, 3, -1)
    for f, args in [
        (scores_metrics.utility, (y,)),
        (scores_metrics.fair_result, (y, sens)),
        (scores_metrics.equalized_odds, (y, sens)),
        (scores_metrics.soft_equal_opportunity, (y, sens)),
        (scores_metrics.demographic_parity, (sens,)),
        (scores_metrics.soft_demographic_parity, (sens,)),
    ]:
        alone = torch.stack([f(p, *args) for p in p1])
        torch.testing.assert_close(f(p1, *args), alone, atol=1e-14, rtol=0)
        torch.testing.assert_close(f(stacked, *args), alone.view(2, 3), atol=1e-14, rtol=0)
        torch.testing.assert_close(
            f(p1, *[a.expand(6, -1) for a in args]), alone, atol=1e-14, rtol=0
        )
        assert f(p1.float(), *args).dtype == torch.float64


def test_node_order_does_not_matter():
    p1, y, sens = draw(2, levels=4)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        scores_metrics.utility(p1[:, order], y[order]),
        scores_metrics.utility(p1, y),
        atol=1e-14,
        rtol=0,
    )
    torch.testing.assert_close(
        scores_metrics.fair_result(p1[:, order], y[order], sens[order]),
        scores_metrics.fair_result(p1, y, sens),
        atol=1e-14,
        rtol=0,
    )


def test_constant_predictors():
    _, y, sens = draw(3)
    for level in (0.0, 0.3, 0.5, 1.0):
        p1 = torch.full((1, len(y)), level, dtype=torch.double)
        assert scores_metrics.roc_auc(p1, y).item() == 0.5
        assert scores_metrics.fair_result(p1, y, sens).item() == 0
        assert scores_metrics.f1(p1, y).item() == pytest.approx(
            f1_score(y, (p1[0] >= 0.5).long(), zero_division=0)
        )


@pytest.mark.parametrize(
    'call, words',
    [
        (lambda p, y, s: scores_metrics.f1(p, torch.zeros_like(y)), 'label 1'),
        (lambda p, y, s: scores_metrics.roc_auc(p, torch.zeros_like(y)), 'both classes'),
        (lambda p, y, s: scores_metrics.roc_auc(p, torch.ones_like(y)), 'both classes'),
        (lambda p, y, s: scores_metrics.utility(p, torch.zeros_like(y)), 'undefined'),
        (
            lambda p, y, s: scores_metrics.demographic_parity(p, torch.ones_like(s)),
            'fewer than two groups',
        ),
        (lambda p, y, s: scores_metrics.equal_opportunity(p, y * s, s), 'nodes with label 1'),
        (lambda p, y, s: scores_metrics.fair_result(p, y * s, s), 'undefined'),
        (
            lambda p, y, s: scores_metrics.soft_demographic_parity(p, torch.zeros_like(s)),
            'fewer than two groups',
        ),
        (
            lambda p, y, s: scores_metrics.soft_equal_opportunity(p, y * (1 - s), s),
            'nodes with label 1',
        ),
        (
            lambda p, y, s: scores_metrics.soft_equal_opportunity(p, torch.zeros_like(y), s),
            'nodes with label 1',
        ),
        (lambda p, y, s: scores_metrics.accuracy(p[:, :0], y[:0]), 'no nodes'),
    ],
)
def test_undefined_scores_raise(call, words):
    with pytest.raises(UndefinedScoreError, match=words) as caught:
        call(*draw(4))
    assert isinstance(caught.value, MoEExpertError) and isinstance(caught.value, ValueError)


def test_nan_instead_of_an_error_where_asked():
    p1, y, sens = draw(5)
    some = torch.stack([y, torch.zeros_like(y)])
    assert scores_metrics.f1(p1[:2], some, undefined='nan').isnan().tolist() == [False, True]
    assert scores_metrics.roc_auc(p1[:2], some, undefined='nan').isnan().tolist() == [False, True]
    assert scores_metrics.equal_opportunity(
        p1[:2], some, sens, undefined='nan'
    ).isnan().tolist() == [False, True]
    assert (
        scores_metrics.soft_demographic_parity(p1, torch.zeros_like(sens), undefined='nan')
        .isnan()
        .all()
    )
    with pytest.raises(ValueError, match="'raise' or 'nan'"):
        scores_metrics.f1(p1, y, undefined='zero')


@pytest.mark.parametrize('bad', [1.5, -0.1, float('nan')])
def test_what_is_no_probability_is_refused(bad):
    p1, y, sens = draw(6)
    p1[1, 3] = bad
    for call in (
        lambda: scores_metrics.utility(p1, y),
        lambda: scores_metrics.fair_result(p1, y, sens),
    ):
        with pytest.raises(ValueError, match='probabilities'):
            call()


def test_gradients_of_the_soft_gaps_equal_finite_differences():
    p1, y, sens = draw(7, n=24, models=2)
    p1.requires_grad_()
    assert torch.autograd.gradcheck(lambda p: scores_metrics.soft_demographic_parity(p, sens), p1)
    assert torch.autograd.gradcheck(lambda p: scores_metrics.soft_equal_opportunity(p, y, sens), p1)


def test_soft_gaps_work_under_vmap():
    p1, y, sens = draw(8)
    gaps = torch.func.vmap(
        lambda p: (
            scores_metrics.soft_demographic_parity(p, sens)
            + scores_metrics.soft_equal_opportunity(p, y, sens)
        )
    )(p1)
    torch.testing.assert_close(
        gaps,
        scores_metrics.soft_demographic_parity(p1, sens)
        + scores_metrics.soft_equal_opportunity(p1, y, sens),
    )


def test_composites():
    ref, vef, jsd = torch.tensor([[0.3, 0.0], [0.6, 0.1], [0.0, 0.2]])
    procedure = scores_metrics.fair_procedure(ref, vef, jsd)
    torch.testing.assert_close(procedure, torch.tensor([0.3, 0.1]))
    torch.testing.assert_close(
        scores_metrics.final_score(torch.tensor([0.8, 0.9]), torch.tensor([0.1, 0.2]), procedure),
        torch.tensor([0.4, 0.6]),
    )


# ---------------------------------------------------------------- facts


def test_the_bounds_of_the_composites_follow_from_their_parts():
    bounds = {name: (facts.low, facts.high) for name, facts in FACTS.items()}
    for name in ('utility', 'fair_result'):
        assert bounds[name] == (0, 1)
    assert bounds['vef'] == (0, 2)  # masking may help one group and hurt the other
    assert bounds['fair_procedure'] == (0, pytest.approx(4 / 3))
    assert bounds['final_score'] == (pytest.approx(-7 / 3), 1)
    assert '−7/3' in FACTS['final_score'].meaning
    worst = {name: facts.worst for name, facts in FACTS.items()}
    for name in COMPOSITES:  # the worst of the parts makes the worst composite
        assert FACTS[name].of(worst) == pytest.approx(FACTS[name].worst)


def test_directions_derive_from_one_fact():
    for facts in (*FACTS.values(), EQUALIZED_ODDS):
        words = ('higher', 'maximize', 1) if facts.higher_is_better else ('lower', 'minimize', -1)
        assert (facts.better, facts.direction, facts.sign) == words
        assert facts.meaning.endswith('.') and facts.low < facts.high
    assert list(AIMS) == ['utility', 'fair_result', 'fair_procedure']


@pytest.mark.parametrize(
    'name, metric',
    [
        ('acc', scores_metrics.accuracy),
        ('f1', scores_metrics.f1),
        ('auc', scores_metrics.roc_auc),
        ('utility', scores_metrics.utility),
        ('dp', scores_metrics.demographic_parity),
        ('eo', scores_metrics.equal_opportunity),
        ('fair_result', scores_metrics.fair_result),
        ('fair_procedure', scores_metrics.fair_procedure),
        ('final_score', scores_metrics.final_score),
    ],
)
def test_a_metric_carries_its_facts(name, metric):
    assert metric.facts is FACTS[name]


def test_counts_say_how_many_people_a_rate_is_about():
    p1, y, sens = draw(11, models=1)
    counts = scores_metrics.by_group(p1[0], y, sens).counts
    for group in (0, 1):
        mine = y[sens == group]
        assert counts.loc[group, 'accuracy'] == len(mine)
        assert counts.loc[group, 'true positive rate'] == mine.sum()
        assert counts.loc[group, 'false positive rate'] == (1 - mine).sum()
