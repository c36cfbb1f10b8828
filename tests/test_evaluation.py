"Evaluator, NodeRecord and bootstrap against scores computed by hand for a few networks."

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from moe_expert.data.synthetic import make_synthetic
from moe_expert.datasets import load_dataset
from moe_expert.errors import UndefinedScoreError
from moe_expert.experts.initialisation import init_population
from moe_expert.experts.populations import joined
from moe_expert.experts.specs import EXPERTS
from moe_expert.experts.trainers import TrainConfig, TrainSettings
from moe_expert.experts.training import train_population
from moe_expert.scores import attributions as scores_attributions
from moe_expert.scores import evaluation as scores_evaluation
from moe_expert.scores import intervals as scores_intervals
from moe_expert.scores import metrics as scores_metrics
from moe_expert.scores import procedure as scores_procedure
from moe_expert.scores.evaluation import Evaluator
from moe_expert.scores.facts import FACTS
from moe_expert.scores.graphlime import GraphLIME, graphlime
from moe_expert.scores.intervals import resamples

SCORES = [
    'acc',
    'f1',
    'auc',
    'utility',
    'dp',
    'eo',
    'fair_result',
    'selection_rate',
    'ref',
    'vef',
    'att_jsd',
    'fair_procedure',
    'final_score',
]


class Networks:
    "M bias-free LeakyReLU networks d → 8 → 2, and what a population must answer."

    def __init__(self, w1, w2):  # [M, 8, d], [M, 2, 8]
        self.w1, self.w2 = w1.double(), w2.double()

    @classmethod
    def random(cls, d, models=4, seed=0, scale=1.0):
        generator = torch.Generator().manual_seed(seed)
        return cls(
            scale * torch.randn(models, 8, d, generator=generator),
            torch.randn(models, 2, 8, generator=generator),
        )

    def __getitem__(self, models):
        return Networks(self.w1[models], self.w2[models])

    def logits(self, rows):  # [M, n, d] → [M, n, 2]
        return torch.nn.functional.leaky_relu(rows.double() @ self.w1.mT) @ self.w2.mT

    def probabilities(self, x, edge_index, nodes=None):
        x = x if nodes is None else x[nodes]
        return self.logits(x.expand(len(self.w1), -1, -1)).softmax(-1)[..., 1]

    def masked_probabilities(self, x, edge_index, nodes, features):
        rows = x[nodes].expand(len(self.w1), -1, -1).clone()
        rows[torch.nn.functional.one_hot(features + 1, rows.shape[2] + 1)[..., 1:].bool()] = 0
        return self.logits(rows).softmax(-1)[..., 1]

    def attributions(self, x, edge_index, nodes):
        rows = x[nodes].double()
        models = [self[m : m + 1] for m in range(len(self.w1))]
        return torch.stack(
            [
                scores_attributions.integrated_gradients(
                    lambda r, model=model: model.logits(r[None])[0], rows
                )
                for model in models
            ]
        )


@pytest.fixture(scope='module')
def data():
    return make_synthetic(500, 10, seed=1)


@pytest.fixture(scope='module')
def networks(data):
    nets = Networks.random(data.x.shape[1])
    nets.w2[3] = 0  # the last one is constant
    return nets


def by_hand(data, nodes, population, m, rho=0.1):
    "Scores of model m, straight from DESIGN's words, one node at a time."
    x, y, s = data.x, data.y[nodes].numpy(), data.sens[nodes].numpy()
    everywhere = population.probabilities(x, data.edge_index)[m]
    p = everywhere[nodes].numpy()
    beta = graphlime(
        x, data.edge_index, torch.stack([1 - everywhere, everywhere], -1), nodes, rho
    ).numpy()
    yes = p >= 0.5
    right, f, drops = yes == y, np.zeros(len(p)), np.zeros(len(p))
    for i, node in enumerate(nodes.tolist()):
        tied = np.flatnonzero((beta[i] > 0) & (beta[i] >= beta[i].max() * (1 - 1e-6)))
        for k in tied:
            row = x[node].clone()
            row[k] = 0
            after = population[m : m + 1].logits(row[None, None]).softmax(-1)[0, 0, 1].item()
            f[i] += (p[i] - after if yes[i] else after - p[i]) / len(tied)
            drops[i] += (int(right[i]) - int((after >= 0.5) == y[i])) / len(tied)

    def weights(values, k):
        threshold = np.sort(values)[-k]
        above, tied = values > threshold + 1e-9, np.abs(values - threshold) <= 1e-9
        return above + tied * (k - above.sum()) / tied.sum()

    top = weights(f, max(1, len(f) // 5))
    ref = abs(top[s == 0].sum() / (s == 0).sum() - top[s == 1].sum() / (s == 1).sum())
    drop = []
    for g in (0, 1):
        k = max(1, (s == g).sum() // 5)
        drop.append((weights(f[s == g], k) * drops[s == g]).sum() / k)
    dp = abs(yes[s == 0].mean() - yes[s == 1].mean())
    eo = abs(yes[(s == 0) & (y == 1)].mean() - yes[(s == 1) & (y == 1)].mean())
    return {
        'auc': roc_auc_score(y, p),
        'acc': (yes == y).mean(),
        'dp': dp,
        'eo': eo,
        'ref': ref,
        'vef': abs(drop[0] - drop[1]),
    }


@pytest.mark.parametrize('twins', [False, True])
def test_scores_equal_those_made_by_hand(data, networks, twins):
    if twins:  # features that are tied, with different weights in the models
        data = data.clone()
        data.x[:, 5:8] = data.x[:, :3]
    evaluator = Evaluator(data, 'val')
    assert (evaluator.record(networks).masked.sum(-1) > 1).any()  # of two people, all kernels are
    scores = evaluator.scores(networks)
    assert list(scores) == SCORES and all(
        v.shape == (4,) and v.dtype == torch.float64 for v in scores.values()
    )
    for m in range(4):
        for name, value in by_hand(data, evaluator.nodes, networks, m).items():
            assert scores[name][m].item() == pytest.approx(value, abs=1e-9), (name, m)
    for m in range(4):  # the composites
        s = {name: value[m].item() for name, value in scores.items()}
        assert s['utility'] == pytest.approx((s['acc'] + s['f1'] + s['auc']) / 3)
        assert s['fair_result'] == pytest.approx((s['dp'] + s['eo']) / 2)
        assert s['fair_procedure'] == pytest.approx((s['ref'] + s['vef'] + s['att_jsd']) / 3)
        assert s['final_score'] == pytest.approx(
            s['utility'] - s['fair_result'] - s['fair_procedure']
        )


def test_scores_do_not_depend_on_node_numbers(data, networks):
    "Ties and a constant predictor included; the labels of unevaluated nodes are never read."
    evaluator = Evaluator(data, 'val')
    new_number = torch.randperm(data.num_nodes, generator=torch.Generator().manual_seed(2))
    old_number = new_number.argsort()
    shuffled = data.clone()
    shuffled.x, shuffled.y, shuffled.sens = (
        data.x[old_number],
        data.y[old_number],
        data.sens[old_number],
    )
    shuffled.edge_index = new_number[data.edge_index]
    shuffled.y = torch.where(data.val_mask[old_number], shuffled.y, -1)
    nodes = new_number[evaluator.nodes][
        torch.randperm(len(evaluator.nodes), generator=torch.Generator().manual_seed(3))
    ]
    expected, scores = evaluator.scores(networks), Evaluator(shuffled, nodes).scores(networks)
    for name in SCORES:
        torch.testing.assert_close(scores[name], expected[name], atol=1e-9, rtol=0, msg=name)


def reordered(data, columns=None, rows=None, edges=None):
    "The same data with columns, rows and edges in another order."
    columns = torch.arange(data.x.shape[1]) if columns is None else columns
    rows = torch.arange(data.num_nodes) if rows is None else rows
    edges = torch.arange(data.edge_index.shape[1]) if edges is None else edges
    other = data.clone()
    for key in ('y', 'sens', 'train_mask', 'val_mask', 'test_mask'):
        other[key] = data[key][rows]
    other.x = data.x[rows][:, columns]
    other.edge_index = rows.argsort()[data.edge_index][:, edges]
    return other


def with_columns(population, columns):
    "The same models of an mlp for features in another order."
    weight = population.params['hidden.weight'][..., columns]
    return replace(population, params=population.params | {'hidden.weight': weight})


@pytest.mark.parametrize(
    'name', [pytest.param('bail', marks=pytest.mark.slow), 'german', 'math', 'por']
)
def test_order_does_not_matter(data_dir, name):
    "Columns, rows and edges of the benchmarks in another order: the same scores."
    data = load_dataset(name, data_dir=data_dir, edition='full')
    generator = torch.Generator().manual_seed(0)
    random = init_population([0, 1], data.x.shape[1], 8)
    random = replace(random, params={k: 3 * v for k, v in random.params.items()})
    configs, spec = [TrainConfig(lr=1e-2)], EXPERTS['expert1']
    settings = TrainSettings(hidden=8, epochs=60, val_every=60)
    trained = train_population(data, configs, spec, settings=settings)[0].population
    population, evaluator = joined([random, trained]), Evaluator(data)
    record = evaluator.record(population)
    assert (record.masked.sum(-1) > 1).any(1).all()  # some nodes have tied features
    expected = record.scores()
    for what, count in (
        ('columns', data.x.shape[1]),
        ('rows', data.num_nodes),
        ('edges', data.edge_index.shape[1]),
    ):
        order = torch.randperm(count, generator=generator)
        other = with_columns(population, order) if what == 'columns' else population
        scores = Evaluator(reordered(data, **{what: order})).scores(other)
        for score in SCORES:
            torch.testing.assert_close(
                scores[score], expected[score], atol=1e-9, rtol=0, msg=f'{score}, {what}'
            )


@pytest.mark.parametrize('backbone', ['gcn', 'gat'])
def test_order_does_not_matter_to_a_graph_backbone(data_dir, backbone):
    data = load_dataset('por', data_dir=data_dir, edition='full')
    generator = torch.Generator().manual_seed(0)
    population = init_population([0, 1], data.x.shape[1], 8, backbone=backbone)
    expected = Evaluator(data).scores(population)
    for order in (
        {'rows': torch.randperm(data.num_nodes, generator=generator)},
        {'edges': torch.randperm(data.edge_index.shape[1], generator=generator)},
    ):
        scores = Evaluator(reordered(data, **order)).scores(population)
        for score in SCORES:
            torch.testing.assert_close(scores[score], expected[score], atol=1e-9, rtol=0, msg=score)


@pytest.mark.parametrize('mode', ['class', 'cfa'])
def test_order_of_duplicated_columns_does_not_matter(mode):
    "Copies and mirror images of columns, which a model weighs differently, in six orders."
    data, generator = make_synthetic(200, 6, seed=4), torch.Generator().manual_seed(0)
    data.x = torch.cat([data.x, data.x[:, :3], -data.x[:, :2], data.x[:, :1]], 1)
    networks = Networks.random(data.x.shape[1], seed=1)
    record = Evaluator(data, fidelity=mode).record(networks)
    assert record.masked.sum(-1).max() >= 4 and ((record.flipped % 1) > 0).any()
    for _ in range(6):
        columns = torch.randperm(data.x.shape[1], generator=generator)
        other = Evaluator(reordered(data, columns=columns), fidelity=mode)
        again = other.record(Networks(networks.w1[..., columns], networks.w2))
        assert torch.equal(again.masked, record.masked[..., columns])
        torch.testing.assert_close(again.fidelity, record.fidelity, atol=1e-9, rtol=0)
        for score, value in again.scores().items():
            torch.testing.assert_close(value, record.scores()[score], atol=1e-9, rtol=0, msg=score)


def test_a_population_is_its_members_one_by_one(data, networks):
    evaluator = Evaluator(data, 'test')
    together = evaluator.scores(networks)
    for m in range(4):
        for name, value in evaluator.scores(networks[m : m + 1]).items():
            torch.testing.assert_close(value[0], together[name][m], atol=1e-9, rtol=0, msg=name)


def test_constant_predictor(data, networks):
    record = Evaluator(data).record(networks)
    scores = record.scores()
    for name in ('dp', 'eo', 'fair_result', 'ref', 'vef', 'att_jsd', 'fair_procedure'):
        assert scores[name][3].item() == pytest.approx(0, abs=1e-12), name
    assert not record.masked[3].any()
    assert (record.fidelity[3] == 0).all() and (record.drop[3] == 0).all()
    assert scores['auc'][3].item() == 0.5


class Unhelpful(Networks):
    "Answers something else where nothing is masked."

    def masked_probabilities(self, x, edge_index, nodes, features):
        return torch.where(
            features >= 0, super().masked_probabilities(x, edge_index, nodes, features), 0.123
        )


def test_unexplained_nodes_have_no_fidelity_whatever_the_model_says(data, networks):
    record = Evaluator(data).record(Unhelpful(networks.w1, networks.w2))
    unexplained = ~record.masked.any(-1)
    assert unexplained.any()
    assert (record.fidelity[unexplained] == 0).all() and (record.drop[unexplained] == 0).all()


def test_parts_of_the_work(data, networks, monkeypatch):
    evaluator = Evaluator(data)
    full = evaluator.scores(networks)
    lean = Evaluator(data)
    monkeypatch.setattr(scores_evaluation, 'GraphLIME', None)  # whoever makes a plan now fails
    cheap = lean.scores(networks, procedure=False)
    assert list(cheap) == SCORES[:8]
    for name, value in cheap.items():
        torch.testing.assert_close(value, full[name])
    torch.testing.assert_close(lean.att_jsd(networks), full['att_jsd'])
    assert 'without' in repr(lean.record(networks, explain=False))
    assert evaluator.plan is evaluator.plan  # made once


def test_splits_and_nodes(data, networks):
    for split in ('train', 'val', 'test'):
        mask = data[f'{split}_mask']
        evaluator = Evaluator(data, split)
        assert torch.equal(evaluator.nodes, mask.nonzero().squeeze(1))
        for other in (mask, evaluator.nodes.flip(0)):
            scores = Evaluator(data, other).scores(networks, procedure=False)
            torch.testing.assert_close(
                scores['utility'], evaluator.scores(networks, procedure=False)['utility']
            )
    for wrong in ('valid', torch.tensor([0, 0]), torch.tensor([10**6]), torch.tensor([True])):
        with pytest.raises(ValueError):
            Evaluator(data, wrong)
    with pytest.raises(ValueError, match='fidelity'):
        Evaluator(data, fidelity='other')
    one_group = (data.sens == 1).nonzero().squeeze(1)
    with pytest.raises(UndefinedScoreError):
        Evaluator(data, one_group).scores(networks)


def test_published_fidelity_is_an_option(data):
    networks = Networks.random(data.x.shape[1], seed=7)
    a, b = (Evaluator(data, fidelity=mode).record(networks) for mode in ('class', 'cfa'))
    assert torch.equal(a.masked, b.masked) and torch.equal(a.flipped, b.flipped)
    assert a.flipped.any()
    after = torch.stack(  # [M, n, d]: every feature masked
        [
            networks.masked_probabilities(data.x, None, a.nodes, torch.full_like(a.p1, k).long())
            for k in range(data.x.shape[1])
        ],
        -1,
    )
    count = a.masked.sum(-1).clamp(min=1)
    proper, cfa = (
        (scores_procedure.fidelity(a.p1[..., None], after, mode) * a.masked).sum(-1) / count
        for mode in ('class', 'cfa')
    )
    torch.testing.assert_close(a.fidelity, proper)
    torch.testing.assert_close(b.fidelity, cfa)
    expected = scores_procedure.ref(cfa, a.sens)
    torch.testing.assert_close(b.scores()['ref'], expected)
    torch.testing.assert_close(a.scores()['dp'], b.scores()['dp'])


# ---------------------------------------------------------------- bootstrap


def test_bootstrap_equals_scoring_each_resample(data, networks):
    "REF's and VEF's cut-offs are made anew in every draw."
    record = Evaluator(data).record(networks)
    draws = resamples(record.sens, 25, seed=4)
    fast = scores_intervals.resampled_scores(record, draws)
    for b, draw in enumerate(draws):
        again = scores_evaluation.NodeRecord(
            record.nodes[draw],
            record.y[draw],
            record.sens[draw],
            record.p1[:, draw],
            record.fidelity[:, draw],
            record.flipped[:, draw],
            record.masked[:, draw],
            record.attributions[:, draw],
        )
        for name, value in again.scores().items():
            torch.testing.assert_close(fast[name][:, b], value, atol=1e-12, rtol=0, msg=name)


def test_draws_keep_the_groups_and_follow_the_seed(data):
    sens = data.sens[data.val_mask]
    draws = resamples(sens, 50, seed=1)
    assert (sens[draws].sum(1) == sens.sum()).all()
    assert torch.equal(draws, resamples(sens, 50, seed=1)) and not torch.equal(
        draws, resamples(sens, 50, seed=2)
    )
    assert (
        torch.bincount(draws.flatten(), minlength=len(sens)).min() > 0
    )  # everyone is drawn at some time
    with pytest.raises(UndefinedScoreError):
        resamples(torch.ones(5), 3)


def test_undefined_resamples_are_nan_not_filled_in(data, networks):
    positive = data.y == 1
    members = (
        (data.sens == 0, 30),
        ((data.sens == 1) & ~positive, 2),
        ((data.sens == 1) & positive, 1),
    )
    few = torch.cat([mask.nonzero()[:count, 0] for mask, count in members])
    record = Evaluator(data, few).record(networks)
    draws = resamples(record.sens, 400, 0)
    drawn = scores_intervals.resampled_scores(record, draws)
    missing = record.y[draws][:, 30:].sum(1) == 0
    assert 60 < missing.sum() < 180
    for name in ('eo', 'fair_result', 'final_score'):
        assert torch.equal(drawn[name].isnan(), missing.expand(len(record.p1), -1))
    assert drawn['dp'].isfinite().all() and drawn['ref'].isfinite().all()


def test_intervals_without_explanations_are_of_the_cheap_scores(data, networks):
    record = Evaluator(data).record(networks, explain=False)
    assert set(scores_intervals.intervals(record)) == set(SCORES[:8])


def test_metrics_and_record_agree(data, networks):
    record = Evaluator(data).record(networks, explain=False)
    torch.testing.assert_close(
        record.scores()['utility'], scores_metrics.utility(record.p1, record.y)
    )
    torch.testing.assert_close(
        record.scores()['fair_result'], scores_metrics.fair_result(record.p1, record.y, record.sens)
    )
    assert isinstance(Evaluator(data).plan, GraphLIME)


def test_text_of_a_score_with_its_interval(data, networks):
    record = Evaluator(data).record(networks[:1], explain=False)
    described = scores_intervals.scores_with_intervals(record)['acc']
    text = scores_intervals.interval_text(**described)
    numbers = [f'{described[part]:.3f}' for part in ('value', 'low', 'high')]
    assert text == '{} [{}, {}]'.format(*numbers)
    assert scores_intervals.interval_text(0.25, digits=1) == '0.2'


def test_every_score_has_facts_and_keeps_its_bounds(data, networks):
    for name, values in Evaluator(data).scores(networks).items():
        if name == 'selection_rate':
            continue
        facts = FACTS[name]
        assert ((values >= facts.low) & (values <= facts.high)).all(), name
