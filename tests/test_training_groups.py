"""Training with any number of groups: experts, gate, teachers and stage 3."""

import numpy as np
import pytest
import torch

from moe_expert.data.synthetic import make_synthetic
from moe_expert.experts.losses import GroupWeights, adversary_shapes, soft_gaps
from moe_expert.experts.populations import joined
from moe_expert.experts.specs import LAMBDAS, PARETO
from moe_expert.experts.trainers import (
    GraphAttentionTrainer,
    PopulationTrainer,
    TrainConfig,
    Trainer,
    TrainSettings,
)
from moe_expert.experts.training import train_population
from moe_expert.mixture.comparison import gate_usage
from moe_expert.mixture.gate import Mixture, init_gates
from moe_expert.mixture.gate_training import (
    GateConfig,
    GateSettings,
    GateTrainer,
    Lesson,
    gate_terms,
    make_lesson,
    soft_objective,
    soft_utility,
    train_gates,
)
from moe_expert.mixture.integration import FineTuner, FineTuneSettings, fine_tuned
from moe_expert.mixture.teachers import halves, join_lessons
from moe_expert.scores.evaluation import Evaluator
from moe_expert.scores.metrics import (
    attributes_of,
    soft_demographic_parity,
    soft_equal_opportunity,
)

CPU = torch.device('cpu')
EVERY = dict(zip(LAMBDAS, (0.5, 1.0, 2.0, 0.5)))
CONFIGS = [TrainConfig(1e-2), TrainConfig(1e-2, seed=1, **EVERY), TrainConfig(3e-3, **EVERY)]
KINDS = ('three', 'crossed', 'separate', 'separate, weighted')


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def people(kind, n=400, seed=0):
    "Synthetic people with more groups; a twelfth is in no group of the second attribute."
    data = make_synthetic(n, n_features=6, seed=seed, group_bias=2.0)
    second = torch.randint(3, (n,), generator=rng(seed))
    data.x[:, 1] += 0.4 * second
    second[torch.rand(n, generator=rng(seed + 1)) < 1 / 12] = -1
    if kind == 'three':
        data.sens = second
        data.group_names, data.sens_name = ['a', 'b', 'c'], 'race'
    elif kind == 'crossed':
        data.sens = torch.where(second < 0, -1, 3 * data.sens + second)
        names = [f'{s} × {r}' for s in 'fm' for r in 'abc']
        data.group_names, data.sens_name = names, 'sex × race'
    else:
        data.sens = torch.stack([data.sens, second], 1)
        data.group_names, data.sens_name = [['f', 'm'], ['a', 'b', 'c']], 'sex, race'
    if 'weighted' in kind:
        data.weight = 0.5 + torch.rand(n, generator=rng(5), dtype=torch.float64)
    return data


@pytest.fixture(scope='module', params=KINDS)
def data(request):
    return people(request.param)


def trainer_of(data, backbone='mlp', **settings):
    kind = GraphAttentionTrainer if backbone == 'gat' else PopulationTrainer
    return kind(data, CONFIGS, TrainSettings(backbone=backbone, **settings), CPU, 0)


@pytest.mark.parametrize('backbone', ['mlp', 'gcn', 'sage'])
@pytest.mark.parametrize('batch', [None, 16])
def test_written_gradients_are_those_of_the_loss(data, backbone, batch):
    "Also in steps of 16 people, which lack groups."
    trainer = trainer_of(data, backbone, batch_size=batch)
    for _, b in zip(range(4), trainer.batches()):
        ours, followed = trainer.gradients(b, False), Trainer.gradients(trainer, b, False)
        for a, e in zip(ours, followed):
            torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('backbone', ['mlp', 'gat'])
def test_a_step_knows_its_people(data, backbone):
    "Groups and weights of the very nodes, also of those that a step lacks."
    trainer = trainer_of(data, backbone, batch_size=16)
    y, sens = data.y[data.train_mask], data.sens[data.train_mask]
    weight = data.weight[data.train_mask] if 'weight' in data else None
    cut, original = [], trainer._of_nodes
    trainer._of_nodes = lambda nodes: (cut.append(nodes), original(nodes))[1]
    trainer.stream = trainer._endless()
    for batch in trainer.batches():
        nodes = cut[-1]
        assert torch.equal(batch.sens, sens[nodes].double())
        part = None if weight is None else weight[nodes]
        known = dict(sizes=trainer.sizes, unknown=True)
        expected = GroupWeights.of(sens[nodes], y[nodes], part, **known)
        for name in ('group', 'gap', 'spread', 'count', 'compared'):
            assert torch.equal(getattr(batch.weights, name), getattr(expected, name))
        assert (batch.weights.weight is None) == (part is None)
    assert len(cut) == 2


def test_adversaries_have_heads_and_are_left_aside(data):
    trainer = trainer_of(data)
    shapes = adversary_shapes(8, trainer.sizes)
    logits = sum(1 if k == 2 else k for k in trainer.sizes)
    assert trainer.adam.params['adversary_hidden.weight'].shape == (3, logits, 8)
    assert not set(trainer.population().params) & set(shapes)
    before = {k: trainer.adam.params[k].clone() for k in shapes}
    trainer.epoch(False)
    trainer.keep([1, 2])
    trainer.epoch(False)
    assert all(not torch.equal(trainer.adam.params[k], before[k][1:]) for k in shapes)
    assert len(trainer.population()) == 2


@pytest.mark.parametrize('name', ['lambda_fair', 'lambda_attention'])
def test_a_penalty_narrows_the_largest_gap(data, name):
    "On the people who taught, by the evaluator's definitions."
    trainer = PopulationTrainer(
        data, [TrainConfig(1e-2), TrainConfig(1e-2, **{name: 3.0})], TrainSettings(), CPU, 0
    )
    for _ in range(300):
        trainer.epoch(False)
    nodes = data.train_mask.nonzero()[:, 0]
    if name == 'lambda_fair':
        p1, y = trainer.population().probabilities(data.x, None, nodes), data.y[nodes]
        more = dict(sample_weight=data.weight[nodes] if 'weight' in data else None)
        columns = attributes_of(data.sens[nodes])
        dp = torch.stack([soft_demographic_parity(p1, c, **more) for c in columns]).amax(0)
        eo = torch.stack([soft_equal_opportunity(p1, y, c, **more) for c in columns]).amax(0)
        scores = (dp + eo) / 2
        weights = GroupWeights.of(data.sens[nodes], y, more['sample_weight'])
        torch.testing.assert_close(soft_gaps(p1, weights), scores, rtol=1e-12, atol=0)
    else:
        scores = Evaluator(data, 'train').scores(trainer.population())['att_jsd']
    assert scores[1] < 0.5 * scores[0]


def test_a_population_of_all_terms_is_trained_and_scored(data):
    settings = TrainSettings(epochs=60, val_every=20, batch_size=64)
    models = train_population(data, CONFIGS, PARETO, settings=settings)
    assert all(m.error is None and np.isfinite(m.score) for m in models)
    alone = train_population(data, CONFIGS[1:2], PARETO, settings=settings)[0]
    for k, v in alone.population.params.items():
        torch.testing.assert_close(v, models[1].population.params[k], rtol=0, atol=1e-9)


def test_weights_of_one_train_the_same_experts():
    "To the bit, with two groups as ever and with separate attributes."
    for data in (make_synthetic(400, n_features=6, seed=0), people('separate')):
        weighted = data.clone()
        weighted.weight = torch.ones(400, dtype=torch.float64)
        a, b = trainer_of(data), trainer_of(weighted)
        for _ in range(20):
            a.epoch(False)
            b.epoch(False)
        assert torch.equal(a.adam.flat, b.adam.flat) and b.weight is not None


def test_weights_decide_what_is_learnt():
    "People of weight 10⁻⁶ teach as much as if they were not there."
    data = people('three')
    train = data.train_mask.nonzero()[:, 0]
    few = train[::2]
    less, weighted = data.clone(), data.clone()
    less.train_mask = torch.zeros_like(data.train_mask)
    less.train_mask[few] = True
    weighted.weight = torch.full((400,), 1e-6, dtype=torch.float64)
    weighted.weight[few] = 1.0
    a, b, c = (trainer_of(d, dropout=0.0) for d in (less, weighted, data))
    for _ in range(30):
        for t in (a, b, c):
            t.epoch(False)
    assert (a.adam.flat - b.adam.flat).abs().max() < 1e-3
    assert (a.adam.flat - c.adam.flat).abs().max() > 1e-2


# --- gate, teachers, stage 3 ----------------------------------------------------------------------


@pytest.fixture(scope='module')
def experts(data):
    settings = TrainSettings(epochs=60, val_every=30)
    return joined([m.population for m in train_population(data, CONFIGS, settings=settings)])


@pytest.fixture(scope='module')
def lesson(data, experts):
    return make_lesson(experts, data, data.train_mask.nonzero()[:, 0])


def test_soft_utility_counts_a_person_as_often_as_its_weight_says():
    p1 = torch.rand(2, 50, generator=rng(), dtype=torch.float64)
    y, times = (torch.arange(50) % 3 == 0).long(), torch.randint(1, 4, (50,), generator=rng(1))
    again = torch.repeat_interleave(torch.arange(50), times)
    found = soft_utility(p1, y, weight=times.double())
    torch.testing.assert_close(found, soft_utility(p1[:, again], y[again]))
    assert (found - soft_utility(p1, y)).abs().min() > 1e-4
    ones = torch.ones(50, dtype=torch.float64)
    for pairs in (2**16, 100):
        plain = soft_utility(p1, y, pairs)
        assert torch.equal(soft_utility(p1, y, pairs, ones), plain)
    g = torch.rand(2, 50, 3, generator=rng(2), dtype=torch.float64).softmax(-1)
    for a, b, c in zip(gate_terms(g, times.double()), gate_terms(g[:, again]), gate_terms(g)):
        torch.testing.assert_close(a, b)
        assert (a - c).abs().min() > 1e-6
    for a, b in zip(gate_terms(g, ones), gate_terms(g)):
        torch.testing.assert_close(a, b, rtol=1e-15, atol=1e-16)


def test_the_soft_objective_has_the_gradient_of_finite_differences(data):
    nodes = data.train_mask.nonzero()[:40, 0]
    y, sens = data.y[nodes], data.sens[nodes]
    weight = data.weight[nodes] if 'weight' in data else None
    weights = GroupWeights.of(sens, y, weight)
    p1 = torch.rand(2, 40, generator=rng(), dtype=torch.float64).requires_grad_()
    a = (torch.rand(2, 40, 6, generator=rng(1), dtype=torch.float64) + 0.1).requires_grad_()
    objective = lambda p1, a: soft_objective(p1, a, y, weights)
    assert torch.autograd.gradcheck(objective, (p1, a), atol=1e-5)


def test_a_lesson_carries_groups_and_weights(data, lesson):
    nodes = torch.tensor([5, 0, 40, 7, 9, 33])
    part, train = lesson.part(nodes, 4), data.train_mask.nonzero()[:, 0]
    assert torch.equal(part.sens, data.sens[train][nodes])
    weight = data.weight[train] if 'weight' in data else None
    assert (part.weight is None) == (weight is None)
    for n, found in ((6, part.group_weights), (4, part.explained_weights)):
        own = None if weight is None else weight[nodes[:n]]
        expected = GroupWeights.of(part.sens[:n], part.y[:n], own)
        assert torch.equal(found.group, expected.group) and torch.equal(found.gap, expected.gap)
    both = join_lessons([part, lesson])
    assert isinstance(both, Lesson) and len(both.sens) == 6 + len(train)
    if weight is not None:
        assert torch.equal(both.weight, torch.cat([weight[nodes], weight]))


def test_gates_learn_from_any_groups(data, experts, lesson):
    trainer = GateTrainer(experts, lesson, [GateConfig(1e-2)], GateSettings(), 0)
    first = trainer.loss(trainer.adam.params, lesson).item()
    for _ in range(20):
        trainer.epoch(False)
    assert trainer.loss(trainer.adam.params, lesson).item() < first
    settings = GateSettings(epochs=20, val_every=10, batch_size=50)
    (gate,) = train_gates(experts, lesson, [GateConfig(1e-2)], Evaluator(data), settings=settings)
    assert gate.error is None and np.isfinite(gate.score)
    usage = gate_usage(gate.population, data, data.test_mask.nonzero()[:, 0])
    n_groups = sum(map(len, data.group_names)) if data.sens.dim() == 2 else len(data.group_names)
    assert len(usage) == 1 + n_groups


def test_use_of_experts_by_group(data, experts):
    nodes = data.test_mask.nonzero()[:, 0]
    gates = {
        k: torch.randn(v.shape, generator=rng(), dtype=torch.double)
        for k, v in init_gates([0], 6).items()
    }
    mixture = Mixture(experts, gates)
    w, usage = mixture.weights(data.x, data.edge_index, nodes)[0], gate_usage(mixture, data, nodes)
    if data.sens.dim() == 2:
        mine, found = data.sens[nodes, 1] == 2, usage['race: c']
    else:
        mine, found = data.sens[nodes] == 2, usage[data.group_names[2]]
    weight = getattr(data, 'weight', torch.ones(data.num_nodes))
    expected = np.average(w[mine, 1].numpy(), weights=weight[nodes][mine].numpy())
    assert found['expert2']['mean_weight'] == pytest.approx(expected, abs=1e-12)
    some = nodes[data.sens[nodes].view(len(nodes), -1)[:, -1] != 0]
    assert len(gate_usage(mixture, data, some)) == len(usage) - 1  # a group without people


def test_stage_3_trains_with_a_pull(data, experts):
    mixture = Mixture(experts, init_gates([0], 6))
    train = data.train_mask.nonzero()[:, 0]
    spread = []
    for pull in (0.0, 30.0):
        tuner = FineTuner(mixture, data, train, FineTuneSettings(1e-3, 1e-3, pull=pull), 0)
        for _ in range(40):
            tuner.epoch(False)
        hidden = tuner.population().experts.hidden(data.x, nodes=train).detach()
        columns = data.sens[train].view(len(train), -1).T
        spread.append(
            sum(
                torch.stack([hidden[:, c == g].mean(1) for g in range(int(c.max()) + 1)])
                .var(0)
                .sum()
                .item()
                for c in columns
            )
        )
    assert spread[1] < 0.7 * spread[0]
    way = FineTuneSettings(1e-3, 1e-3, epochs=10, val_every=5, batch_size=50)
    assert np.isfinite(fine_tuned(mixture, data, way, Evaluator(data), None).score)


def test_the_gaps_of_stage_3_fall(data, experts):
    "Along the gradient through the experts, on the people who teach."
    mixture, train = Mixture(experts, init_gates([0], 6)), data.train_mask.nonzero()[:, 0]
    tuner = FineTuner(mixture, data, train, FineTuneSettings(3e-3, 3e-3), 0)
    first = tuner.mixture_loss(mixture, train).item()
    for _ in range(30):
        tuner.epoch(False)
    assert tuner.mixture_loss(tuner.population(), train).item() < first - 0.01
    lesson = make_lesson(mixture.experts, data, train)
    assert soft_gaps(lesson.p1.T, lesson.group_weights).shape == (3,)


def test_halves_share_every_class_of_every_group(data):
    nodes = data.val_mask.nonzero()[:, 0].flip(0)
    first, second = halves(nodes, data, seed=3)
    assert torch.equal(torch.cat([first, second]).sort().values, nodes.sort().values)
    kinds = {}
    for i, part in enumerate((first, second)):
        for node in part.tolist():
            kind = (int(data.y[node]), *np.atleast_1d(data.sens[node].numpy()).tolist())
            kinds.setdefault(kind, [0, 0])[i] += 1
    assert len(kinds) > 6 and all(0 <= b - a <= 1 for a, b in kinds.values())
    assert not torch.equal(first, halves(nodes, data, seed=4)[0])
