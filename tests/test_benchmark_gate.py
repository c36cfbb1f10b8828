"The study of how a gate is taught measures what it says."

import sys
from dataclasses import replace

import pytest
import torch
from conftest import ROOT

sys.path.append(str(ROOT / 'benchmarks'))  # last: its coverage.py must hide no package
import gate as bench

from moe_expert.data.synthetic import make_synthetic
from moe_expert.experts.initialisation import init_population
from moe_expert.experts.specs import GATE
from moe_expert.experts.training import run_training
from moe_expert.mixture.gate_training import GateConfig, GateSettings, GateTrainer, make_lesson
from moe_expert.scores.evaluation import Evaluator

CONFIGS = [GateConfig(1e-2, 1e-3, 1e-3, seed=s) for s in (0, 1)]


@pytest.fixture(scope='module')
def taught():
    data = make_synthetic(300, n_features=6, seed=0, group_bias=2.0)
    experts = init_population([0, 1, 2], 6, 8).to(torch.float64)
    experts = replace(experts, params={k: 3 * v for k, v in experts.params.items()})
    return data, experts, make_lesson(experts, data, data.train_mask.nonzero()[:, 0])


def trainer(kind, taught, variants, settings=None):
    trials = [bench.Trial(v, c, settings or bench.Setting()) for v in variants for c in CONFIGS]
    return kind(taught[1], taught[2], trials, GateSettings(epochs=20, val_every=10), 0, 1), trials


def test_default_settings_are_those_of_the_package(taught):
    own, _ = trainer(bench.Direct, taught, ['direct'])
    package = GateTrainer(taught[1], taught[2], CONFIGS, GateSettings(), 0)
    for _ in range(5):
        own.epoch(False)
        package.epoch(False)
    assert torch.allclose(own.adam.flat, package.adam.flat, atol=1e-12)
    assert not torch.equal(own.adam.flat[0], own.adam.flat[1])


def test_temperature_of_a_setting_is_that_of_a_mixture(taught):
    own, _ = trainer(bench.Direct, taught, ['direct'], bench.Setting(temperature=2.0))
    own.epoch(False)
    plain = replace(own.population(), gates=own.adam.params, temperature=2.0)
    x, edges = taught[0].x, taught[0].edge_index
    assert torch.allclose(
        own.population().probabilities(x, edges), plain.probabilities(x, edges), atol=1e-12
    )


def test_a_head_start_favours_the_best_expert(taught):
    own, _ = trainer(bench.Direct, taught, ['direct'], bench.Setting(start=2.0))
    weights = own.population().weights(taught[0].x, taught[0].edge_index)
    assert bool((weights.argmax(-1) == 1).all())


def test_reward_of_a_node_is_the_slope_of_the_objective_towards_its_choice(taught):
    lesson = taught[2]
    own, _ = trainer(bench.Reinforce, taught, ['reinforce_node'])
    n = len(lesson.y)
    drawn = torch.randint(3, (2, n), generator=torch.Generator().manual_seed(0))
    reward = bench.rewards(drawn, lesson, own.coefficients)
    parts, at = bench.expert_attributions(lesson), torch.arange(n)
    for i in (drawn[0] > 0).nonzero()[:3, 0].tolist():

        def value(share, i=i):  # node i goes this share of the way from expert1 to its choice
            p, a = lesson.p1[at, drawn].clone(), parts[at, drawn].clone()
            p[0, i] = lesson.p1[i, 0] + share * (p[0, i] - lesson.p1[i, 0])
            a[0, i] = parts[i, 0] + share * (a[0, i] - parts[i, 0])
            return bench.objective(p, a, lesson, own.coefficients)[0].item()

        assert (value(1 + 1e-5) - value(1 - 1e-5)) / 2e-5 == pytest.approx(
            reward[0, i].item(), rel=1e-3, abs=1e-8
        )
    assert bool((reward[drawn == 0] == 0).all())


def test_reward_of_a_batch_is_its_gain_over_the_first_expert(taught):
    lesson = taught[2]
    own, _ = trainer(bench.Reinforce, taught, ['reinforce'])
    drawn = torch.zeros(2, len(lesson.y), dtype=torch.long)
    reward = bench.rewards(drawn, lesson, own.coefficients)
    assert bool((reward == 0).all())  # expert1 gains nothing over itself
    reward = bench.rewards(drawn + 1, lesson, own.coefficients)
    assert bool((reward == reward[:, :1]).all()) and reward[0, 0].item() != 0


def test_reinforce_learns(taught):
    "An expert that is always right is found by drawing."
    data, experts, lesson = taught
    margins = lesson.margins.clone()
    margins[:, 2] = torch.where(lesson.y == 1, 6.0, -6.0)
    lesson = replace(lesson, margins=margins)
    trials = [bench.Trial('reinforce_node', c) for c in CONFIGS]
    own = bench.Reinforce(experts, lesson, trials, GateSettings(), 0, 0)
    for _ in range(150):
        own.epoch(False)
    g = bench.gate_weights(
        own.adam.params, lesson.x @ own.adam.params['gate.features'].mT, lesson.p1
    )
    assert g[..., 2].mean().item() > 0.6


def test_all_variants_run_in_the_engine(taught):
    for kind, variants in (
        (bench.Direct, ['direct']),
        (bench.Reinforce, ['reinforce', 'reinforce_node']),
    ):
        own, trials = trainer(kind, taught, variants)
        models = run_training(
            own,
            trials,
            GATE,
            Evaluator(taught[0], 'val'),
            None,
            GateSettings(epochs=20, val_every=10),
        )
        assert [m.error for m in models] == [None] * len(trials) and all(
            m.epoch in (10, 20) for m in models
        )


def test_differences_are_paired():
    cells = [
        {
            'dataset': 'a',
            'k': k,
            'variants': {
                'direct': {'val': 0.0, 'test': 10.0 * k},
                'other': {'val': 0.0, 'test': 10.0 * k + 1 + 0.1 * k},
            },
            'references': {'uniform': {'val': 1.0, 'test': 10.0 * k}},
            'single': [],
        }
        for k in range(3)
    ]
    rows = {(r['dataset'], r['what']): r for r in bench.summary(cells)}
    test = rows['a', 'other']['test']
    assert (test['n'], test['mean']) == (3, 1.1)
    assert test['high'] == pytest.approx(1.1 + 4.3027 * 0.1 / 3**0.5, abs=1e-3)
    assert rows['all', 'uniform']['test']['mean'] == 0
