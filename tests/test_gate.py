"The gate against captum, brute force, finite differences and scipy; and what may not matter."

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients
from scipy.stats import entropy
from sklearn.metrics import roc_auc_score
from torch import nn

from moe_expert.data.synthetic import make_synthetic
from moe_expert.errors import MoEExpertError, UndefinedScoreError
from moe_expert.experts import populations
from moe_expert.experts import training as experts_training
from moe_expert.experts.floor import Floor
from moe_expert.experts.initialisation import init_population
from moe_expert.experts.losses import GroupWeights
from moe_expert.experts.trainers import TrainConfig
from moe_expert.experts.training import FEWEST, train_population
from moe_expert.mixture import gate as mixture_gate
from moe_expert.mixture import gate_training, integration
from moe_expert.mixture.gate import (
    Mixture,
    expert_path,
    gate_state,
    gate_weights,
    init_gates,
    mixture_attributions,
    uniform_mixture,
)
from moe_expert.mixture.gate_training import (
    EXPLAINED,
    MOST_STEPS,
    SHARPNESS,
    GateConfig,
    GateSettings,
    GateTrainer,
    Lesson,
    ScoredOnce,
    best_start,
    gate_terms,
    make_lesson,
    soft_objective,
    soft_utility,
    steps_of_epochs,
    train_gates,
)
from moe_expert.mixture.integration import FineTuner, FineTuneSettings
from moe_expert.scores.attributions import gauss_legendre
from moe_expert.scores.evaluation import Evaluator
from moe_expert.scores.procedure import att_jsd

GRAPH = ('gcn', 'sage', 'gin', 'gat')
QUICK = GateSettings(epochs=60, val_every=20)


@pytest.fixture(scope='module')
def data():
    return make_synthetic(300, 8, group_bias=2.0)


def some_experts(d, backbone='mlp', size=3.0):
    "Three experts whose probabilities spread."
    fresh = init_population([1, 2, 3], d, backbone=backbone)
    return replace(fresh, params={k: size * v for k, v in fresh.params.items()})


def some_gates(d, m=2, seed=0, size=0.5):
    "Gates that are not uniform: their hidden units switch on and off."
    rng = torch.Generator().manual_seed(seed)
    return {
        k: size * torch.randn(v.shape, generator=rng, dtype=torch.double)
        for k, v in init_gates([0] * m, d).items()
    }


@pytest.fixture(scope='module')
def mixture(data):
    return Mixture(some_experts(8), some_gates(8, 3), temperature=1.5)


@pytest.fixture(scope='module')
def nodes(data):
    return data.val_mask.nonzero()[:, 0]


@pytest.fixture(scope='module')
def trained(data):
    "Three experts that learnt something, at different rates."
    models = train_population(
        data,
        [TrainConfig(lr=lr, seed=s) for s, lr in enumerate((1e-2, 3e-3, 3e-2))],
        settings=experts_training.TrainSettings(epochs=100, val_every=50),
    )
    return replace(
        models[0].population,
        params={
            k: torch.cat([m.population.params[k] for m in models])
            for k in models[0].population.params
        },
    )


class Whole(nn.Module):
    "Experts and gate as one module of ordinary layers: the definition, written a second time."

    def __init__(self, mixture, m, edge_index=None, frozen=None):
        super().__init__()
        self.experts = nn.ModuleList(mixture.experts.module(k) for k in range(len(mixture.experts)))
        p = {k: v[m] for k, v in mixture.gates.items()}
        self.first = nn.Linear(
            p['gate.features'].shape[1] + p['gate.state'].shape[1], len(p['gate.bias'])
        ).double()
        self.second = nn.Linear(len(p['gate.bias']), len(p['gate.out_bias'])).double()
        with torch.no_grad():
            self.first.weight.copy_(torch.cat([p['gate.features'], p['gate.state']], 1))
            self.first.bias.copy_(p['gate.bias'])
            self.second.weight.copy_(p['gate.out'])
            self.second.bias.copy_(p['gate.out_bias'])
        self.temperature, self.edge_index = mixture.temperature, edge_index

    def forward(self, x):
        p = torch.stack([e(x, self.edge_index).softmax(-1)[:, 1] for e in self.experts], -1)
        state = torch.cat(
            [p, 2 * (p - 0.5).abs(), (p.var(-1, unbiased=False, keepdim=True) + 1e-12).sqrt()], -1
        )
        g = (self.second(self.first(torch.cat([x, state], -1)).relu()) / self.temperature).softmax(
            -1
        )
        return (g * p).sum(-1)


# --- what a mixture says --------------------------------------------------------------------------


def test_probabilities_and_weights_are_those_of_the_whole_module(mixture, data):
    x = data.x.double()
    for m in range(3):
        torch.testing.assert_close(
            mixture.probabilities(x)[m], Whole(mixture, m)(x), rtol=0, atol=1e-12
        )
    w = mixture.weights(x)
    assert w.shape == (3, 300, 3) and (w >= 0).all() and w.std() > 0.05
    torch.testing.assert_close(w.sum(-1), torch.ones(3, 300, dtype=torch.double))


def test_attributions_are_captums_on_the_whole_module(mixture, data, nodes):
    x = data.x.double()
    found = mixture.attributions(data.x, data.edge_index, nodes, n_steps=200, max_steps=200)
    for m in range(3):
        expected = IntegratedGradients(Whole(mixture, m)).attribute(
            x[nodes], n_steps=200, method='gausslegendre'
        )
        torch.testing.assert_close(
            found[m], expected, rtol=0, atol=1e-8
        )  # captum's weights are single precision


@pytest.mark.parametrize('backbone', GRAPH)
def test_attributions_of_graph_experts_sum_over_the_nodes_they_come_from(data, nodes, backbone):
    mixture = Mixture(some_experts(8, backbone, 1.0), some_gates(8, 1))
    x, some = data.x.double(), nodes[:3]
    found = mixture.attributions(data.x, data.edge_index, some, n_steps=64, max_steps=64)[0]
    whole, (points, weights) = Whole(mixture, 0, data.edge_index), gauss_legendre(64, x)
    for i, node in enumerate(some):
        expected = torch.zeros(8, dtype=torch.double)
        for a, w in zip(points, weights):
            row = (a * x).requires_grad_()
            expected += w * (x * torch.autograd.grad(whole(row)[node], row)[0]).sum(0).detach()
        torch.testing.assert_close(found[i], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize('backbone', ['mlp', *GRAPH, 'gat'])
def test_attributions_are_complete(data, nodes, backbone):
    mixture = Mixture(some_experts(8, backbone, 1.0), some_gates(8, 2))
    found, error = mixture.attributions(data.x, data.edge_index, nodes, return_completeness=True)
    expected = mixture.probabilities(data.x, data.edge_index, nodes) - mixture.probabilities(
        0 * data.x, data.edge_index, nodes
    )
    torch.testing.assert_close(error, (found.sum(-1) - expected).abs(), rtol=0, atol=1e-12)
    assert error.max() < 1e-3 and found.abs().max() > 0.05


def test_the_record_of_a_mixture_tells_how_complete_its_attributions_are(mixture, data):
    scores = Evaluator(data).scores(mixture)
    assert scores['completeness'].shape == (3,) and scores['completeness'].max() < 1e-3


def test_attributions_do_not_depend_on_the_company(data, nodes):
    "One gate is sharp and needs many points, the others do not: nobody's numbers change."
    gates = some_gates(8, 4)
    gates['gate.out'][0] *= 30
    mixture = Mixture(some_experts(8), gates)
    together = mixture.attributions(data.x, data.edge_index, nodes)
    for m in range(4):
        torch.testing.assert_close(
            mixture.select([m]).attributions(data.x, data.edge_index, nodes)[0],
            together[m],
            rtol=0,
            atol=1e-12,
        )
    single = torch.cat([mixture.attributions(data.x, data.edge_index, n[None]) for n in nodes], 1)
    torch.testing.assert_close(single, together, rtol=0, atol=1e-12)


@pytest.mark.parametrize('backbone', ['mlp', *GRAPH])
def test_masking_is_that_of_the_nodes_own_row_everywhere(data, nodes, backbone):
    "Brute force: a graph in which the node's own row is zeroed for itself alone."
    mixture, some = Mixture(some_experts(8, backbone, 1.0), some_gates(8, 3)), nodes[:25]
    features = torch.randint(-1, 8, (3, 25), generator=torch.Generator().manual_seed(0))
    features[:, 0] = -1
    found = mixture.masked_probabilities(data.x, data.edge_index, some, features)
    for m in range(3):
        for i, node in enumerate(some):
            f = features[m, i : i + 1]
            one = mixture.experts.masked_probabilities(
                data.x, data.edge_index, node[None], f.expand(3, 1)
            ).T
            row = data.x[node].double().clone()
            if f >= 0:
                row[f] = 0
            g = gate_weights(
                mixture.select([m]).gates,
                row @ mixture.gates['gate.features'][m].T,
                one,
                mixture.temperature,
            )[0]
            assert found[m, i].item() == pytest.approx((g * one).sum().item(), abs=1e-12)
            if backbone == 'mlp' and f >= 0:  # and without our own code for masking
                assert found[m, i].item() == pytest.approx(
                    Whole(mixture, m)(row[None]).item(), abs=1e-12
                )
    torch.testing.assert_close(
        found[:, 0], mixture.probabilities(data.x, data.edge_index, some[:1])[:, 0]
    )
    assert (found - mixture.probabilities(data.x, data.edge_index, some)).abs().max() > 0.01


def test_chunks_change_nothing(mixture, data, nodes, monkeypatch):
    before = mixture.probabilities(data.x), mixture.attributions(data.x, data.edge_index, nodes)
    monkeypatch.setattr(mixture_gate, '_CHUNK', 2000)
    after = mixture.probabilities(data.x), mixture.attributions(data.x, data.edge_index, nodes)
    for a, b in zip(before, after):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_scores_do_not_depend_on_the_numbering_of_the_nodes(data, mixture):
    order = torch.randperm(300, generator=torch.Generator().manual_seed(3))
    place = order.argsort()
    other = data.clone()
    for name in ('x', 'y', 'sens', 'train_mask', 'val_mask', 'test_mask'):
        other[name] = data[name][order]
    other.edge_index = place[data.edge_index]
    for m in (mixture, Mixture(some_experts(8, 'gcn', 1.0), mixture.gates)):
        there, here = Evaluator(other).scores(m), Evaluator(data).scores(m)
        assert here['fair_procedure'].min() > 0
        for name in here:
            torch.testing.assert_close(there[name], here[name], rtol=0, atol=1e-9)


def test_the_uniform_mixture_is_the_mean_and_every_gate_starts_there(data, mixture):
    mean = mixture.experts.probabilities(data.x).mean(0)
    for m in (
        uniform_mixture(mixture.experts, 8),
        Mixture(mixture.experts, init_gates([5, 6], 8), 0.3),
    ):
        torch.testing.assert_close(
            m.probabilities(data.x), mean.expand(len(m), -1), rtol=0, atol=1e-14
        )
        torch.testing.assert_close(
            m.weights(data.x),
            torch.full((len(m), 300, 3), 1 / 3, dtype=torch.double),
            rtol=0,
            atol=1e-14,
        )
    a, b = init_gates([5, 6, 5], 8), init_gates([5], 8)
    assert all(torch.equal(a[k][0], a[k][2]) and torch.equal(a[k][0], b[k][0]) for k in a)
    assert not torch.equal(a['gate.features'][0], a['gate.features'][1])
    assert a['gate.features'].abs().max() <= (8 + 7) ** -0.5


def test_experts_that_are_sure_do_not_give_more_than_certainty(data, nodes):
    "Weights sum to 1 but for rounding; a probability may not exceed 1 for that."
    mixture = Mixture(some_experts(8, size=1e4), some_gates(8, 20))
    masked = mixture.masked_probabilities(
        data.x, data.edge_index, nodes, torch.zeros(20, len(nodes), dtype=torch.long)
    )
    for p1 in (mixture.probabilities(data.x, data.edge_index), masked):
        assert (p1 == 1).any() and ((p1 >= 0) & (p1 <= 1)).all()
    Evaluator(data).scores(mixture)  # refuses what is no probability


def test_the_temperature_sharpens(data, mixture):
    share = [
        replace(mixture, temperature=t).weights(data.x).amax(-1).mean().item()
        for t in (0.05, 1.0, 50.0)
    ]
    assert share[0] > 0.9 > share[1] > share[2] and share[2] == pytest.approx(1 / 3, abs=0.05)


def test_state_is_finite_where_all_experts_agree():
    p = torch.full((4, 3), 0.3, dtype=torch.double, requires_grad=True)
    (grad,) = torch.autograd.grad(gate_state(p).sum(), p)
    assert grad.isfinite().all()


# --- what it is taught ----------------------------------------------------------------------------


def objective(experts, gates, data, nodes, temperature=1.5, n_steps=4):
    "soft_objective as a function of all parameters."
    lesson = make_lesson(experts, data, nodes, n_steps)
    g = gate_weights(gates, lesson.x @ gates['gate.features'].mT, lesson.p1, temperature)
    attributions = mixture_attributions(gates, lesson.x, lesson.path, temperature)
    return soft_objective(
        (g * lesson.p1).sum(-1), attributions, lesson.y, GroupWeights.of(lesson.sens, lesson.y)
    ).sum()


@pytest.mark.parametrize('backbone', ['mlp', *GRAPH, 'gat'])
def test_gradients_are_finite_differences_for_gate_and_experts(data, nodes, backbone):
    experts, gates, some = some_experts(8, backbone, 1.0), some_gates(8, 1), nodes[:40]
    leaves = {k: v.clone().requires_grad_() for k, v in (experts.params | gates).items()}
    parts = lambda p: (
        replace(experts, params={k: p[k] for k in experts.params}),
        {k: p[k] for k in gates},
    )
    grads = dict(
        zip(
            leaves,
            torch.autograd.grad(objective(*parts(leaves), data, some), list(leaves.values())),
        )
    )
    rng = torch.Generator().manual_seed(1)
    for name, value in leaves.items():
        direction = torch.randn(value.shape, generator=rng, dtype=torch.double)

        def at(step, name=name, direction=direction):
            moved = {k: v.detach() for k, v in leaves.items()}
            moved[name] = moved[name] + step * direction
            return objective(*parts(moved), data, some)

        h = 1e-7  # a hidden unit that switches at a quadrature point is a step: larger h meet some
        numeric, exact = ((at(h) - at(-h)) / (2 * h)).item(), (grads[name] * direction).sum().item()
        assert exact == pytest.approx(numeric, abs=2e-6, rel=2e-4), name
        assert abs(exact) > 1e-5, name


def test_the_soft_objective_is_made_of_the_scores_it_stands_for(data, mixture, nodes):
    lesson = make_lesson(mixture.experts, data, nodes)
    y, s = lesson.y.numpy(), lesson.sens.numpy()
    p1, attributions = (
        mixture.probabilities(data.x, None, nodes),
        mixture.attributions(data.x, None, nodes),
    )
    found = soft_objective(p1, attributions, lesson.y, GroupWeights.of(lesson.sens, lesson.y))
    without = soft_objective(p1, None, lesson.y, GroupWeights.of(lesson.sens, lesson.y))
    for m in range(3):
        p = p1[m].numpy()
        soft = 1 / (1 + np.exp(-(p - 0.5) / SHARPNESS))
        acc, f1 = (
            np.where(y == 1, soft, 1 - soft).mean(),
            2 * soft[y == 1].sum() / (soft.sum() + (y == 1).sum()),
        )
        auc = np.mean(
            [1 / (1 + np.exp(-(a - b) / SHARPNESS)) for a in p[y == 1] for b in p[y == 0]]
        )
        dp = abs(soft[s == 0].mean() - soft[s == 1].mean())
        eo = abs(soft[(s == 0) & (y == 1)].mean() - soft[(s == 1) & (y == 1)].mean())
        assert without[m].item() == pytest.approx((acc + f1 + auc) / 3 - (dp + eo) / 2, abs=1e-9)
        assert found[m].item() == pytest.approx(
            without[m].item() - att_jsd(attributions[m], lesson.sens).item() / 3, abs=1e-9
        )


def test_soft_auc_thinned_out_stays_near_auc():
    rng = torch.Generator().manual_seed(0)
    y = torch.randint(2, (4000,), generator=rng)
    p = (0.5 + 0.3 * (y - 0.5) + 0.2 * torch.randn(4000, generator=rng).double()).clamp(0, 1)[None]
    whole, thin = soft_utility(p, y, max_pairs=10**9), soft_utility(p, y, max_pairs=2**14)
    assert thin.item() == pytest.approx(whole.item(), abs=0.02) and thin.item() != whole.item()
    sharp = torch.sigmoid((p[:, y == 1, None] - p[:, None, y == 0]) / 1e-6).mean()
    assert sharp.item() == pytest.approx(roc_auc_score(y, p[0]), abs=1e-6)


def test_a_batch_without_one_group_teaches_without_gaps(data, mixture, nodes):
    "No group, no gap: the objective stays finite, as the experts' losses do."
    some = nodes[data.sens[nodes] == 0]
    lesson = make_lesson(mixture.experts, data, some)
    value = soft_objective(
        mixture.probabilities(data.x, None, some),
        mixture.attributions(data.x, None, some),
        lesson.y,
        GroupWeights.of(lesson.sens, lesson.y),
    )
    torch.testing.assert_close(
        value, soft_utility(mixture.probabilities(data.x, None, some), lesson.y)
    )


def test_entropy_and_balance_are_scipys():
    g = torch.rand(
        4, 50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.double
    ).softmax(-1)
    h, kl = gate_terms(g)
    for m in range(4):
        assert h[m].item() == pytest.approx(entropy(g[m].numpy(), axis=1).mean(), abs=1e-9)
        assert kl[m].item() == pytest.approx(entropy(g[m].mean(0).numpy(), [1 / 3] * 3), abs=1e-7)
    only = torch.zeros(1, 5, 3, dtype=torch.double)
    only[..., 1] = 1
    assert [t.item() for t in gate_terms(only)] == pytest.approx([0, np.log(3)], abs=1e-6)


def test_the_coefficients_do_what_they_say(trained, data):
    "A large entropy bonus keeps the gate undecided, a large balance keeps its mean usage even."
    lesson = make_lesson(trained, data, data.train_mask.nonzero()[:, 0])
    configs = [GateConfig(0.03, *c) for c in ((0.0, 0.0), (10.0, 0.0), (0.0, 10.0))]
    settings, nodes = GateSettings(epochs=100, val_every=100), data.train_mask.nonzero()[:, 0]
    terms = [
        [t.item() for t in gate_terms(m.population.weights(data.x, None, nodes))]
        for m in train_gates(trained, lesson, configs, Evaluator(data), settings=settings)
    ]
    (h, kl), (h_open, _), (_, kl_even) = terms
    assert h < h_open and h_open == pytest.approx(np.log(3), abs=0.01)
    assert kl_even < kl and kl_even < 0.01 and kl > 0.02


# --- training side by side ------------------------------------------------------------------------


@pytest.fixture(scope='module')
def lesson(trained, data):
    return make_lesson(trained, data, data.train_mask.nonzero()[:, 0])


CONFIGS = [
    GateConfig(10 ** -(2 + k / 10), 10 ** -(2 + k / 5), 10 ** -(4 - k / 5), seed=k)
    for k in range(10)
]


def test_a_gate_does_not_depend_on_its_batch(trained, data, lesson):
    evaluator = Evaluator(data)
    few = CONFIGS[: FEWEST - 1]  # nobody of so few stops for being behind the others
    together = train_gates(trained, lesson, few, evaluator, settings=QUICK)
    for k in (0, len(few) - 1):
        (alone,) = train_gates(trained, lesson, CONFIGS[k : k + 1], evaluator, settings=QUICK)
        assert (alone.epoch, alone.epochs_run) == (together[k].epoch, together[k].epochs_run)
        for name in alone.population.gates:
            torch.testing.assert_close(
                alone.population.gates[name], together[k].population.gates[name], rtol=0, atol=1e-5
            )
        assert alone.score == pytest.approx(together[k].score, abs=1e-5)
    assert len({m.score for m in together}) == len(few)


def test_what_is_selected_is_the_measured_best_validation(trained, data, lesson):
    """The checkpoint's score is the mixture's own, measured anew; no earlier or later validation
    was better."""
    evaluator = Evaluator(data)
    (model,) = train_gates(
        trained,
        lesson,
        [GateConfig(3e-2)],
        evaluator,
        settings=GateSettings(epochs=40, val_every=10, patience=100),
    )
    assert evaluator.scores(model.population)['final_score'].item() == pytest.approx(
        model.score, abs=1e-12
    )
    scores = [
        train_gates(
            trained,
            lesson,
            [GateConfig(3e-2)],
            evaluator,
            settings=GateSettings(epochs=e, val_every=e),
        )[0].score
        for e in range(10, 50, 10)
    ]
    assert model.score == pytest.approx(max(scores), abs=1e-9) and model.epoch == 10 * (
        1 + int(np.argmax(scores))
    )
    assert len(set(scores)) == 4


def test_training_improves_the_objective_of_the_nodes_that_teach(trained, data, lesson):
    weights = GroupWeights.of(lesson.sens, lesson.y)

    def value(m):
        g = gate_weights(m.gates, lesson.x @ m.gates['gate.features'].mT, lesson.p1)
        return soft_objective(
            (g * lesson.p1).sum(-1),
            mixture_attributions(m.gates, lesson.x, lesson.path),
            lesson.y,
            weights,
        ).item()

    (model,) = train_gates(
        trained,
        lesson,
        [GateConfig(1e-2, 0.0, 0.0)],
        Evaluator(data),
        settings=GateSettings(epochs=100, val_every=100),
    )
    assert value(model.population) > value(uniform_mixture(trained, 8)) + 0.02


def test_screening_changes_neither_winner_nor_history(trained, data, lesson, monkeypatch):
    """final_score ≤ utility − fair_result: where that is not better than what is kept, no
    explanation is made; the result is the same."""
    evaluator, explained = Evaluator(data), []
    original = evaluator.scores
    monkeypatch.setattr(
        evaluator,
        'scores',
        lambda pop, procedure=True: (
            procedure and explained.append(len(pop)),
            original(pop, procedure),
        )[1],
    )
    settings = GateSettings(epochs=60, val_every=6, patience=3)
    screened = train_gates(trained, lesson, CONFIGS, evaluator, settings=settings)
    few = sum(explained)
    explained.clear()
    everything = lambda ev, pop, cheap, objective, kept: (ev.scores(pop)[objective].tolist(), {})
    monkeypatch.setattr(experts_training, 'objectives', everything)
    plain = train_gates(trained, lesson, CONFIGS, evaluator, settings=settings)
    assert few < sum(explained)  # there was something to save
    for a, b in zip(screened, plain):
        assert (a.epoch, a.epochs_run) == (b.epoch, b.epochs_run)
        seen = [{k: row[k] for k in kept} for kept, row in zip(a.history, b.history, strict=True)]
        assert a.history == seen  # what was not computed is not in it
        assert a.score == pytest.approx(b.score, abs=1e-12)
        for k in a.population.gates:
            torch.testing.assert_close(
                a.population.gates[k], b.population.gates[k], rtol=0, atol=1e-12
            )


def test_a_constant_mixture_cannot_be_selected(data):
    """Experts that say the same of everybody make a mixture that is perfectly fair and below the
    floor."""
    blind = init_population([0, 1, 2], 8)
    blind = replace(
        blind, params={k: v * (0 if k == 'hidden.weight' else 1) for k, v in blind.params.items()}
    )
    lesson = make_lesson(blind, data, data.train_mask.nonzero()[:, 0])
    floor = Floor(0.7, 0.75)
    (model,) = train_gates(blind, lesson, [GateConfig()], Evaluator(data), floor, QUICK)
    assert model.metrics['fair_result'] == 0 and model.metrics['fair_procedure'] == pytest.approx(
        0, abs=1e-12
    )
    assert model.metrics['final_score'] > 0.4
    assert not model.feasible and model.constraints[1] > 0 and model.constraints[2] > 0
    assert not any(h['feasible'] for h in model.history)


def test_floor_excludes_the_degenerate_checkpoint_of_a_good_gate(trained, data, lesson):
    "With a floor between the checkpoints' utilities the selected one is above it."
    (free,) = train_gates(
        trained,
        lesson,
        [GateConfig(3e-2)],
        Evaluator(data),
        settings=GateSettings(epochs=100, val_every=10, patience=100),
    )
    utilities = sorted(h['utility'] for h in free.history)
    assert utilities[0] < utilities[-1]
    floor = Floor((utilities[0] + utilities[-1]) / 2, 0.5, 1.0, 1.0)
    (model,) = train_gates(
        trained,
        lesson,
        [GateConfig(3e-2)],
        Evaluator(data),
        floor,
        GateSettings(epochs=100, val_every=10, patience=100),
    )
    assert (
        model.feasible
        and model.metrics['utility'] >= floor.utility
        and not all(h['feasible'] for h in model.history)
    )


def test_a_part_of_a_lesson_is_what_its_nodes_say(lesson):
    nodes = torch.tensor([5, 0, 40])
    part = lesson.part(nodes)
    for name in ('x', 'y', 'sens', 'margins'):
        assert torch.equal(getattr(part, name), getattr(lesson, name)[nodes])
    assert torch.equal(part.path.slopes, lesson.path.slopes[:, nodes]) and torch.equal(
        part.path.margins, lesson.path.margins[:, nodes]
    )
    torch.testing.assert_close(
        part.group_weights.group, GroupWeights.of(lesson.sens[nodes], lesson.y[nodes]).group
    )


@pytest.mark.parametrize('size', [3, 40])
def test_steps_are_whole_and_lack_no_class(trained, lesson, size, monkeypatch):
    trainer, seen = (
        GateTrainer(trained, lesson, [GateConfig(1e-2)], replace(QUICK, batch_size=size), 0),
        [],
    )
    original = trainer.loss
    monkeypatch.setattr(
        trainer, 'loss', lambda params, part, warm: (seen.append(part), original(params, part))[1]
    )
    trainer.epoch(False)
    assert all(len(part.y) == size and 0 < part.y.sum() < size for part in seen)
    rows = torch.cat([part.x for part in seen]).tolist()
    assert len({tuple(row) for row in rows}) == len(rows)
    if size == 40:
        assert len(seen) == len(lesson.y) // 40


def test_errors(trained, data, lesson):
    with pytest.raises(MoEExpertError, match='no configuration'):
        train_gates(trained, lesson, [], Evaluator(data))
    with pytest.raises(MoEExpertError, match='temperature'):
        GateSettings(temperature=0.0)
    for name in ('epochs', 'val_every', 'patience', 'hidden', 'n_steps', 'batch_size'):
        with pytest.raises(MoEExpertError, match=name):
            GateSettings(**{name: 0})
    (small,) = train_gates(
        trained, lesson, [GateConfig(1e-2)], Evaluator(data), settings=replace(QUICK, batch_size=40)
    )
    assert small.error is None
    model, other = train_gates(
        trained, lesson, [GateConfig(1e35), GateConfig(1e-3)], Evaluator(data), settings=QUICK
    )
    assert (
        'NaN' in model.error and model.population is None and other.error is None
    )  # a gate that diverges takes nobody along
    empty = data.clone()
    empty.val_mask = data.val_mask & (data.sens == 0)
    with pytest.raises(UndefinedScoreError):
        train_gates(trained, lesson, [GateConfig()], Evaluator(empty), settings=QUICK)


def test_gat_paths_are_finite_differences(data, nodes):
    experts, x, some = some_experts(8, 'gat', 1.0), data.x.double(), nodes[:10]
    path = expert_path(experts, data.x, data.edge_index, some, 3)
    assert path.slopes.shape == (3, 10, 3, 8)
    for s, a in enumerate(path.points):
        torch.testing.assert_close(
            path.margins[s], experts.margins(a * x, data.edge_index, some).T, rtol=0, atol=1e-12
        )
        for j in range(8):
            step = torch.zeros_like(x)
            step[:, j] = 1e-6 * x[:, j]
            numeric = (
                experts.margins(a * x + step, data.edge_index, some)
                - experts.margins(a * x - step, data.edge_index, some)
            ).T / 2e-6
            torch.testing.assert_close(path.slopes[s, :, :, j], numeric, rtol=0, atol=1e-7)


def test_a_path_takes_what_the_graph_made_of_the_features(data, nodes, monkeypatch):
    "The graph is propagated once, however often gate and experts are integrated over it."
    calls = []
    original = populations.propagate
    monkeypatch.setattr(populations, 'propagate', lambda *a: calls.append(a) or original(*a))
    experts, x = some_experts(8, 'gcn', 1.0), data.x.clone()
    for _ in range(3):
        experts.margins(x, data.edge_index, nodes)
        expert_path(experts, x, data.edge_index, nodes, 3)
    assert len(calls) == 1


def test_a_lesson_holds_what_the_nodes_are(data, trained):
    nodes = data.train_mask.nonzero()[:, 0].flip(0)
    lesson = make_lesson(trained, data, nodes)
    assert (
        isinstance(lesson, Lesson)
        and torch.equal(lesson.y, data.y[nodes])
        and torch.equal(lesson.sens, data.sens[nodes])
    )
    torch.testing.assert_close(lesson.p1.T, trained.probabilities(data.x, None, nodes))


# --- how much work it is --------------------------------------------------------------------------


@pytest.mark.parametrize('backbone', ['mlp', 'sage', 'gat'])
def test_the_written_gradient_is_that_of_the_followed_one_and_of_differences(data, nodes, backbone):
    experts, some = some_experts(8, backbone, 1.0), nodes[:40]
    frozen = make_lesson(experts, data, some, 3)
    learning = replace(
        frozen, path=replace(frozen.path, margins=frozen.path.margins.clone().requires_grad_())
    )
    gates = {k: v.requires_grad_() for k, v in some_gates(8, 2).items()}
    rng = torch.Generator().manual_seed(2)
    size = torch.randn(2, 40, 8, generator=rng, dtype=torch.double)

    def value(gates, lesson):
        return (mixture_attributions(gates, lesson.x, lesson.path, 1.5) * size).sum()

    written, followed = (
        torch.autograd.grad(value(gates, lesson), list(gates.values()))
        for lesson in (frozen, learning)
    )
    for name, a, b in zip(gates, written, followed):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)
        direction = torch.randn(a.shape, generator=rng, dtype=torch.double)

        def at(step, name=name, direction=direction):
            moved = {k: v.detach() for k, v in gates.items()}
            return value(moved | {name: moved[name] + step * direction}, frozen).item()

        numeric = (at(1e-7) - at(-1e-7)) / 2e-7
        assert (a * direction).sum().item() == pytest.approx(numeric, abs=2e-5, rel=1e-4), name


def test_a_step_over_frozen_experts_is_not_followed_through_the_path(trained, lesson):
    "The backward pass of the attributions is one operation, not one for each of the forward pass."
    gates = {k: v.requires_grad_() for k, v in some_gates(8, 2).items()}
    a = mixture_attributions(gates, lesson.x, lesson.path)
    assert {type(f).__name__ for f, _ in a.grad_fn.next_functions if f} == {'AccumulateGrad'}


@pytest.fixture(scope='module')
def crowd():
    "More nodes than a step may see."
    data = make_synthetic(5000, 8, avg_degree=2, seed=0)
    data.train_mask[:] = True
    return data


@pytest.mark.parametrize('epochs', [1000, 7])
def test_many_nodes_teach_in_a_limited_number_of_small_steps(crowd, epochs):
    settings = GateSettings(epochs=epochs, val_every=1)
    n, y = len(crowd.y), crowd.y
    rows = settings.rows(n)
    assert rows == 1000 and n % rows == 0  # equal parts of at most 1,024
    steps = steps_of_epochs(settings, y, torch.Generator().manual_seed(0))
    per_epoch = [next(steps) for _ in range(epochs)]
    assert sum(map(len, per_epoch)) == min(epochs * 5, MOST_STEPS)
    assert max(map(len, per_epoch)) - min(map(len, per_epoch)) <= 1
    first_pass = torch.cat([s for e in per_epoch for s in e][:5])
    assert torch.equal(first_pass.sort().values, torch.arange(n))
    assert settings.record(n) == asdict(settings) | {'steps': MOST_STEPS}


def test_few_nodes_teach_as_ever(lesson):
    "All at once, without a limit, and recorded as before there was one."
    settings, n = GateSettings(epochs=3), len(lesson.y)
    steps = steps_of_epochs(settings, lesson.y, torch.Generator())
    assert [[len(s) for s in next(steps)] for _ in range(3)] == [[n]] * 3
    assert settings.record(n) == asdict(settings) and settings.explained(n) is None
    assert settings.rows(2048) == 2048 and settings.steps_until(3, 2048) == 3


@pytest.mark.parametrize('kind', ['gate', 'mixture'])
def test_a_step_of_many_nodes_explains_some_of_them(crowd, trained, kind, monkeypatch):
    seen, module = [], gate_training if kind == 'gate' else integration
    original = mixture_attributions

    def note(params, x, path, temperature):
        seen.append((len(x), path.slopes.numel()))
        return original(params, x, path, temperature)

    monkeypatch.setattr(module, 'mixture_attributions', note)
    nodes = torch.arange(5000)
    if kind == 'gate':
        lesson = make_lesson(trained, crowd, nodes)
        trainer = GateTrainer(trained, lesson, [GateConfig(), GateConfig(1e-2)], GateSettings(), 0)
    else:
        mixture = Mixture(trained, some_gates(8, 1))
        trainer = FineTuner(mixture, crowd, nodes, FineTuneSettings(), 0)
    before = trainer.adam.flat.clone()
    for _ in range(2):
        trainer.epoch(False)
    assert set(seen) == {(EXPLAINED, EXPLAINED * 3 * 8)} and len(seen) <= 10
    assert not torch.equal(before, trainer.adam.flat)


def test_a_part_that_explains_less_has_the_weights_of_what_it_explains(lesson):
    nodes = torch.tensor([5, 0, 40, 7, 9])
    part = lesson.part(nodes, 3)
    assert len(part.y) == 5 and part.path.margins.shape[1] == 3
    expected = GroupWeights.of(lesson.sens[nodes[:3]], lesson.y[nodes[:3]])
    assert torch.equal(part.explained_weights.group, expected.group)
    assert lesson.explained_weights is lesson.group_weights


def test_no_mixture_is_explained_twice(trained, data, lesson, monkeypatch):
    "Six gates share their start, which was scored before; the chosen checkpoints are known, too."
    evaluator, explained = Evaluator(data), []
    original = evaluator.scores

    def note(population, procedure=True):
        if procedure:
            explained.append(len(population))
        return original(population, procedure)

    monkeypatch.setattr(evaluator, 'scores', note)
    once = ScoredOnce(evaluator)
    start, _ = best_start(trained, 8, once)
    assert explained == [4]
    models = train_gates(trained, lesson, CONFIGS[:6], once, settings=QUICK, start=start)
    assert len(explained) <= 1 + 60 // 20 and sum(explained) <= 4 + 6 * 3
    for model in models:
        again = original(model.population)
        for name, value in model.metrics.items():
            assert value == pytest.approx(again[name].item(), abs=1e-12), name


def test_gates_are_told_apart(trained, data):
    "Other experts, temperature or biases, or a hidden unit that is heard: not the same."
    once, gates = ScoredOnce(Evaluator(data)), init_gates([0, 1], 8)
    fresh = Mixture(trained, gates)
    biased = Mixture(trained, gates | {'gate.out_bias': gates['gate.out_bias'] + torch.arange(3)})
    heard = Mixture(trained, gates | {'gate.out': gates['gate.out'] + torch.arange(3)[:, None]})
    others = Mixture(some_experts(8), gates)
    for mixture, distinct in (
        (fresh, 1), (fresh, 1), (biased, 2), (heard, 4), (replace(heard, temperature=2.0), 6),
        (others, 7),
    ):  # fmt: skip
        found = once.scores(mixture)
        expected = Evaluator(data).scores(mixture)
        assert list(found) == list(expected) and len(once.known) == distinct
        for name in found:
            torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-12)


def test_gates_are_masked_together(mixture, data, nodes, monkeypatch):
    "The experts are asked once for all gates."
    calls, original = [], type(mixture.experts).masked_probabilities
    monkeypatch.setattr(
        type(mixture.experts),
        'masked_probabilities',
        lambda *a: (calls.append(1), original(*a))[1],
    )
    features = torch.randint(-1, 8, (3, len(nodes)), generator=torch.Generator().manual_seed(1))
    together = mixture.masked_probabilities(data.x, data.edge_index, nodes, features)
    assert len(calls) == 1
    for m in range(3):
        alone = mixture.select([m]).masked_probabilities(
            data.x, data.edge_index, nodes, features[m : m + 1]
        )
        torch.testing.assert_close(together[m], alone[0], rtol=0, atol=1e-12)
