"Thresholds by group: Fairlearn's own decisions, what chose them, and what they are not."

import sys
from copy import copy

import numpy as np
import pytest
import torch
from fairlearn.metrics import MetricFrame, selection_rate, true_positive_rate
from fairlearn.postprocessing import ThresholdOptimizer
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import accuracy_score

from moe_expert.data.synthetic import make_synthetic
from moe_expert.errors import ArgumentError, MoEExpertError
from moe_expert.experts.initialisation import init_population
from moe_expert.mixture.crossfit import CrossfitSettings, crossfit
from moe_expert.mixture.teachers import equal_parts
from moe_expert.mixture.thresholds import (
    TITLES,
    GroupThresholds,
    choose_thresholds,
    group_codes,
    out_of_fold_p1,
    thresholds_by_group,
)
from moe_expert.mixture.thresholds import (
    tested_thresholds as thresholds_on_test,
)
from moe_expert.parameters import PARITIES, check
from moe_expert.run_moe import trained


class Known(ClassifierMixin, BaseEstimator):
    def fit(self, x, y):
        return self

    def __sklearn_is_fitted__(self):
        return True

    def predict_proba(self, x):
        return np.column_stack([1 - x[:, 0], x[:, 0]])


def drawn(groups, n=900, seed=0):
    rng = np.random.default_rng(seed)
    g = rng.integers(0, groups, n)
    p = np.clip(rng.beta(2, 2, n) + 0.12 * g, 0, 1).round(3)  # rounded: some are tied
    y = (rng.random(n) < p).astype(int)
    return p, y, g


@pytest.mark.parametrize('groups', [2, 3])
@pytest.mark.parametrize('tolerance', [0.0, 0.05])
@pytest.mark.parametrize('parity', PARITIES)
def test_the_chances_are_those_of_fairlearn(parity, tolerance, groups):
    p, y, g = drawn(groups)
    theirs = ThresholdOptimizer(
        estimator=Known(),
        constraints=PARITIES[parity],
        prefit=True,
        predict_method='predict_proba',
        tol=tolerance or None,
    ).fit(p[:, None], y, sensitive_features=g)
    ours = choose_thresholds(*map(torch.as_tensor, (p, y, g)), parity, tolerance)
    new, _, of = drawn(groups, seed=1)
    expected = theirs._pmf_predict(new[:, None], sensitive_features=of)[:, 1]
    chance = ours.chance(torch.as_tensor(new), torch.as_tensor(of)).numpy()
    assert abs(chance - expected).max() < 1e-12
    here = ours.chance(torch.as_tensor(p), torch.as_tensor(g)).numpy()
    counted = {'dp': np.full(len(p), True), 'eo': y == 1}[parity]
    rates = [here[counted & (g == k)].mean() for k in range(groups)]
    assert max(rates) - min(rates) <= tolerance + 0.005  # its grid has 1,000 steps


def small():
    data = make_synthetic(300, n_features=5, seed=0, group_bias=2.0)
    few = CrossfitSettings(steps=24, parts=3)
    parts = equal_parts(data.val_mask.nonzero()[:, 0], data, few.parts, seed=0)
    start = init_population([1, 2, 3], 5).to(torch.float64)
    networks = crossfit(start, data, parts, few, seed=0).only([0, 3])
    return data, networks, networks.means([[0, 3]])


def test_only_validation_labels_choose():
    data, networks, ensemble = small()
    rule = thresholds_by_group(networks, ensemble, 1.0, data)
    for mask, changes in ((data.test_mask, False), (data.train_mask, False), (data.val_mask, True)):
        other = copy(data)
        other.y = torch.where(mask, 1 - data.y, data.y)
        assert (thresholds_by_group(networks, ensemble, 1.0, other) != rule) is changes
    nodes, p1 = out_of_fold_p1(networks, [0, 3], data)
    for part, own in zip(networks.parts, p1.split([len(p) for p in networks.parts])):
        k = next(k for k, p in enumerate(networks.parts) if p is part)
        alone = networks.means([[0, 3]], part=k).probabilities(data.x, data.edge_index)[0]
        assert torch.equal(alone[part], own)
    assert torch.equal(nodes.sort().values, data.val_mask.nonzero()[:, 0])


def test_the_test_is_that_of_the_drawn_decisions():
    data, networks, ensemble = small()
    scored = thresholds_on_test(networks, ensemble, 1.0, data, 7, 'dp', 0.1)
    assert list(scored) == list(TITLES.values())
    rule, test = thresholds_by_group(networks, ensemble, 1.0, data, 'dp', 0.1), data.test_mask
    p1 = ensemble.probabilities(data.x, data.edge_index)[0][test]
    y, sens = data.y[test].numpy(), data.sens[test].numpy()
    by_group = rule.decisions(p1, data.sens[test], seed=7).numpy()
    metrics = dict(acc=accuracy_score, dp=selection_rate, eo=true_positive_rate)
    for scores, decided in zip(scored.values(), ((p1 >= 0.5).numpy().astype(float), by_group)):
        frame = MetricFrame(metrics=metrics, y_true=y, y_pred=decided, sensitive_features=sens)
        gaps = frame.difference()
        found = [scores['acc']['value'], scores['dp']['value'], scores['eo']['value']]
        assert found == pytest.approx([frame.overall['acc'], gaps['dp'], gaps['eo']], abs=1e-12)
        assert all(scores[k]['low'] <= scores[k]['value'] <= scores[k]['high'] for k in metrics)


def test_people_without_a_group_keep_one_half():
    p, y, g = map(torch.as_tensor, drawn(2))
    some = torch.where(torch.arange(len(g)) % 5 == 0, -1, g)
    rule = choose_thresholds(p, y, some)
    assert set(rule.rules) == {0, 1}
    chance = rule.chance(p, some)
    assert torch.equal(chance[some < 0], (p[some < 0] >= 0.5).double())
    codes = group_codes(torch.stack([g, some], 1))
    assert (codes == -1).sum() == (some < 0).sum() and set(codes.tolist()) == {-1, 0, 3}


def test_what_cannot_be_chosen_is_refused(monkeypatch):
    p, y, g = map(torch.as_tensor, drawn(2))
    with pytest.raises(ArgumentError, match='parity must be one of dp, eo'):
        choose_thresholds(p, y, g, 'tpr')
    with pytest.raises(MoEExpertError, match='group 1 has one class only'):
        choose_thresholds(p, torch.where(g == 1, 0, y), g)
    data, networks, ensemble = small()
    data.weight = torch.ones(len(data.y))
    with pytest.raises(MoEExpertError, match='people with weights'):
        thresholds_by_group(networks, ensemble, 1.0, data)
    monkeypatch.setitem(sys.modules, 'fairlearn', None)  # as if it were not installed
    monkeypatch.setattr('moe_expert.trainer.MoETrainer', None)  # would fail if it were called
    asked = check('train', dict(dataset='german', ways='crossfit', thresholds='dp'))
    with pytest.raises(MoEExpertError, match=r'pip install "moe_expert\[fairlearn\]"'):
        trained(asked)


def test_a_lot_is_drawn_once_for_a_seed():
    rule = GroupThresholds('dp', 0.0, {0: ((0.5, 0.2), (0.5, 0.8))})
    p1, groups = torch.full((999,), 0.5), torch.zeros(999)
    first = rule.decisions(p1, groups, seed=0)
    assert torch.equal(first, rule.decisions(p1, groups, seed=0))
    assert not torch.equal(first, rule.decisions(p1, groups, seed=1))
    assert abs(first.mean() - 0.5) < 0.06
