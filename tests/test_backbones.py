"""Backbones that look at the graph: against PyG, brute force, captum and finite differences.

Alone and among others; saved and loaded."""

from dataclasses import replace

import pytest
import torch
from captum.attr import IntegratedGradients

from moe_expert import run_expert_tuning
from moe_expert.data.synthetic import make_synthetic
from moe_expert.errors import MoEExpertError, ParameterError
from moe_expert.experts import graph_attention as experts_graph_attention
from moe_expert.experts import populations as experts_populations
from moe_expert.experts import trainers as experts_trainers
from moe_expert.experts.backbones import GNN
from moe_expert.experts.graph_attention import incoming
from moe_expert.experts.initialisation import init_population, stack_models
from moe_expert.experts.losses import (
    GroupWeights,
    adversary_shapes,
    divergence_of,
    expert_loss,
    graph_attention_loss,
)
from moe_expert.experts.populations import graph_inputs
from moe_expert.experts.specs import EXPERTS
from moe_expert.experts.trainers import TrainConfig, TrainSettings
from moe_expert.experts.training import train_population
from moe_expert.parameters import check
from moe_expert.report.winners import winners_table
from moe_expert.scores.evaluation import Evaluator
from moe_expert.scores.procedure import att_jsd
from moe_expert.tune_experts import ExpertTuner
from moe_expert.tuning.records import load_expert

GRAPHS = ('gcn', 'sage', 'gin', 'gat')


def world():
    "12 nodes, 4 features: a hub, a lonely node, a double edge, a self-loop, a one-way edge."
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.rand(12, 4, generator=generator, dtype=torch.float64) - 1
    pairs = torch.tensor(
        [[0, i] for i in range(1, 8)] + [[1, 2], [1, 2], [3, 9], [9, 10], [4, 5]]
    ).T
    edges = torch.cat(
        [pairs, pairs.flip(0), torch.tensor([[6, 8], [6, 2]])], 1
    )  # 6→6, 8→2; nobody is linked with 11
    return x, edges


def population(backbone, seeds=(0, 1), scale=2.0):
    pop = init_population(seeds, 4, 6, backbone=backbone, dropout=0.2)
    return replace(pop, params={k: scale * v for k, v in pop.params.items()}, negative_slope=0.1)


@pytest.fixture(params=GRAPHS)
def backbone(request):
    return request.param


def test_probabilities_and_margins_are_those_of_pygs_modules(backbone):
    x, edges = world()
    pop, nodes = population(backbone), torch.tensor([11, 0, 0, 5])
    for m in range(2):
        logits = pop.module(m)(x, edges)
        torch.testing.assert_close(
            pop.probabilities(x, edges)[m], logits.softmax(-1)[:, 1].detach(), rtol=0, atol=1e-12
        )
        torch.testing.assert_close(
            pop.probabilities(x, edges, nodes)[m],
            logits.softmax(-1)[nodes, 1].detach(),
            rtol=0,
            atol=1e-12,
        )
        torch.testing.assert_close(
            pop.margins(x, edges, nodes)[m], logits[nodes, 1] - logits[nodes, 0], rtol=0, atol=1e-12
        )
        hidden = torch.nn.functional.leaky_relu(pop.module(m).conv(x, edges), 0.1).detach()
        torch.testing.assert_close(
            pop.hidden(x, edges, nodes)[m], hidden[nodes], rtol=0, atol=1e-12
        )
    leaf = x.clone().requires_grad_()
    (by_hand,) = torch.autograd.grad(pop.margins(leaf, edges)[1].sum(), leaf)
    (by_module,) = torch.autograd.grad(pop.module(1)(leaf, edges).diff(dim=1).sum(), leaf)
    torch.testing.assert_close(by_hand, by_module, rtol=0, atol=1e-11)


def test_masking_is_the_whole_graph_anew(backbone):
    "Node by node, feature by feature: x[i, k] = 0, everything else as it was."
    x, edges = world()
    pop, nodes = population(backbone), torch.arange(12)
    for k in range(-1, 4):
        found = pop.masked_probabilities(x, edges, nodes, torch.full((2, 12), k))
        for m in range(2):
            model = pop.module(m)
            for i in range(12):
                masked = x.clone()
                if k >= 0:
                    masked[i, k] = 0
                torch.testing.assert_close(
                    found[m, i], model(masked, edges).softmax(-1)[i, 1].detach(), rtol=0, atol=1e-12
                )
        assert k < 0 or (found - pop.probabilities(x, edges)).abs().max() > 1e-3  # it matters


def test_attributions_against_captum_node_by_node(backbone):
    x, edges = world()
    pop, nodes = (
        replace(population(backbone), negative_slope=0.7),
        torch.tensor([0, 11, 2, 6]),
    )  # small kinks: captum's points are few
    found = pop.attributions(x, edges, nodes, **({'tolerance': 1e-7} if backbone == 'gat' else {}))
    model = pop.module(1)
    for place, i in enumerate(nodes.tolist()):
        captum = IntegratedGradients(
            lambda flat, i=i: torch.stack(
                [model(z.view(12, 4), edges).softmax(-1)[i, 1] for z in flat]
            )
        )
        whole = captum.attribute(
            x.flatten()[None],
            torch.zeros(1, 48, dtype=torch.float64),
            n_steps=64,
            method='gausslegendre',
        ).view(12, 4)
        torch.testing.assert_close(
            found[1, place], whole.sum(0), rtol=0, atol=1e-3 if backbone == 'gat' else 1e-6
        )
    torch.testing.assert_close(
        found.sum(-1), pop.probabilities(x, edges, nodes) - 0.5, rtol=0, atol=1e-6
    )


def test_completeness_errors_are_true_and_below_the_promise():
    x, edges = world()
    pop = population('gat', range(6), scale=4.0)
    a, error = pop.attributions(x, edges, torch.arange(12), return_completeness=True)
    torch.testing.assert_close(
        error, (a.sum(-1) - pop.probabilities(x, edges) + 0.5).abs(), rtol=0, atol=1e-12
    )
    rough = pop.attributions(
        x, edges, torch.arange(12), return_completeness=True, n_steps=2, max_cuts=0
    )[1]
    assert error.max() < 1e-4 < 1e-3 < rough.max()


@pytest.mark.parametrize('kind', ['mlp', *GRAPHS])
def test_margins_and_slopes_along_the_path(kind):
    x, edges = world()
    pop, nodes, points = (
        population(kind),
        torch.tensor([0, 3, 11]),
        torch.tensor([0.2, 1.0], dtype=torch.float64),
    )
    margins, slopes = pop.along(x, edges, nodes, points)
    slopes = slopes.expand(2, -1, -1, -1)
    for s, alpha in enumerate(points):
        torch.testing.assert_close(
            margins[s], pop.margins(alpha * x, edges, nodes), rtol=0, atol=1e-12
        )
        for k in range(4):
            step = 1e-6 * x * (torch.arange(4) == k)
            numeric = (
                pop.margins(alpha * x + step, edges, nodes)
                - pop.margins(alpha * x - step, edges, nodes)
            ) / 2e-6
            torch.testing.assert_close(slopes[s, :, :, k], numeric, rtol=0, atol=1e-6)


def test_the_order_of_nodes_and_edges_does_not_matter(backbone):
    x, edges = world()
    generator = torch.Generator().manual_seed(3)
    order, pop = torch.randperm(12, generator=generator), population(backbone)
    place = order.argsort()  # node i of old is node place[i] of new
    there = place[edges][:, torch.randperm(edges.shape[1], generator=generator)]
    features = torch.arange(24).view(2, 12) % 5 - 1
    everyone = torch.arange(12)
    masked = pop.masked_probabilities(x[order], there, everyone, features[:, order])
    for old, new in (
        (pop.probabilities(x, edges), pop.probabilities(x[order], there)),
        (pop.masked_probabilities(x, edges, everyone, features), masked),
        (pop.attributions(x, edges, everyone), pop.attributions(x[order], there, everyone)),
    ):
        torch.testing.assert_close(new, old[:, order], rtol=0, atol=1e-9)


@pytest.mark.parametrize('chunk', [1, 37])
def test_chunks_change_nothing(backbone, monkeypatch, chunk):
    x, edges = world()
    pop, nodes, features = (
        population(backbone),
        torch.tensor([5, 0, 0, 11, 2]),
        torch.arange(10).view(2, 5) % 5 - 1,
    )
    ask = lambda: (
        pop.probabilities(x, edges),
        pop.masked_probabilities(x, edges, nodes, features),
        pop.attributions(x, edges, nodes),
    )
    whole = ask()
    monkeypatch.setattr(experts_populations, 'NUMBERS_AT_ONCE', chunk)
    experts_populations._MADE.clear()
    for a, b in zip(whole, ask()):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_what_was_made_from_other_tensors_is_not_used():
    x, edges = world()
    first = graph_inputs('gcn', x, edges)[0]
    assert graph_inputs('gcn', x, edges)[0] is first
    x[0, 0] += 1
    assert not torch.equal(graph_inputs('gcn', x, edges)[0], first)  # changed in place
    assert torch.equal(graph_inputs('gcn', x.clone(), edges)[0], graph_inputs('gcn', x, edges)[0])
    x, edges = world()
    assert torch.equal(graph_inputs('gcn', x, edges)[0], first)


def test_seeds_stacks_and_errors(backbone):
    state = torch.random.get_rng_state()
    pop = init_population([3, 4, 3], 4, 6, backbone=backbone)
    assert torch.equal(state, torch.random.get_rng_state())  # the caller's stream is left alone
    for v in pop.params.values():
        assert torch.equal(v[0], v[2]) and not torch.equal(v[0], v[1])
    again = stack_models([pop.module(0), pop.module(1)])
    assert (
        again.backbone == backbone
        and type(again) is type(pop)
        and f'{backbone}' in repr(again)
        and '4 features' in repr(again)
    )
    for k, v in again.params.items():
        assert torch.equal(v, pop.params[k][:2])
    x, edges = world()
    torch.testing.assert_close(
        pop.select([1]).probabilities(x, edges),
        pop.probabilities(x, edges)[[1]],
        rtol=0,
        atol=1e-14,
    )
    with pytest.raises(MoEExpertError, match='needs the graph'):
        pop.probabilities(x)
    with pytest.raises(MoEExpertError, match='one backbone'):
        stack_models([pop.module(0), GNN('gin' if backbone != 'gin' else 'gcn', 4, 6)])
    with pytest.raises(MoEExpertError, match='gnc'):
        init_population([0], 4, backbone='gnc')
    with pytest.raises(MoEExpertError, match='gnc'):
        TrainSettings(backbone='gnc')
    with pytest.raises(MoEExpertError, match='neighbours'):
        TrainSettings(neighbours=0)


def test_the_trained_divergence_is_the_score(backbone):
    x, edges = world()
    pop, sens = population(backbone), torch.arange(12) % 2
    weights, nodes = GroupWeights.of(sens, sens), torch.arange(12)
    exact = att_jsd(pop.attributions(x, edges, nodes), sens)
    if backbone == 'gat':
        found = divergence_of(
            experts_graph_attention.GraphAttention(
                pop.params, x, incoming(edges, nodes, 12), 0.1
            ).attributions(200),
            weights,
        )
    else:
        zero = torch.zeros(2, dtype=torch.float64)
        seen, parts = graph_inputs(backbone, x, edges)[0], 2 if backbone == 'sage' else 1
        loss = lambda lam: expert_loss(
            pop.params,
            seen,
            sens,
            sens,
            weights,
            {'lambda_attention': zero + lam},
            negative_slope=0.1,
            inputs_per_feature=parts,
        )
        found = loss(1.0) - loss(0.0)
    torch.testing.assert_close(found, exact, rtol=0, atol=2e-3 if backbone == 'gat' else 1e-10)


def test_gradients_of_gat_against_finite_differences():
    x, edges = world()
    pop, sens = population('gat'), torch.arange(12) % 2
    y, weights = (torch.arange(12) < 5).long(), GroupWeights.of(sens, (torch.arange(12) < 5).long())
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    params = {**pop.params, **{k: draw(2, *s) for k, s in adversary_shapes(6).items()}}
    params = {k: v.clone().requires_grad_() for k, v in params.items()}
    lambdas = {
        k: torch.tensor([0.5, 2.0], dtype=torch.float64)
        for k in ('lambda_rep', 'lambda_fair', 'lambda_attention')
    }
    loss = lambda p: graph_attention_loss(
        p, x, incoming(edges, torch.arange(12), 12), y, sens, weights, lambdas, negative_slope=0.1
    ).sum()
    grads = dict(
        zip(pop.params, torch.autograd.grad(loss(params), [params[k] for k in pop.params]))
    )
    for k, g in grads.items():
        direction = draw(*g.shape)
        ends = [loss(params | {k: params[k].detach() + t * direction}) for t in (1e-6, -1e-6)]
        torch.testing.assert_close(
            (ends[0] - ends[1]) / 2e-6, (g * direction).sum(), rtol=1e-5, atol=1e-6
        )
        assert g.abs().max() > 1e-3


# --- messages -------------------------------------------------------------------------------------


def test_messages_and_samples_against_a_loop():
    _, edges = world()
    nodes = torch.tensor([2, 11, 0, 2])
    found = incoming(edges, nodes, 12)
    by_loop = [sorted(s for s, t in edges.T.tolist() if t == i and s != t) for i in nodes.tolist()]
    assert [sorted(found.source[found.rows == r].tolist()) for r in range(4)] == by_loop
    assert found.starts.tolist() == [0, *torch.tensor([len(b) for b in by_loop]).cumsum(0).tolist()]
    few = found.sample(2, torch.Generator().manual_seed(0))
    for r in range(4):
        kept = few.source[few.rows == r].tolist()
        assert len(kept) == min(2, len(by_loop[r])) == few.starts[r + 1] - few.starts[r]
        for s in set(kept):
            assert kept.count(s) <= by_loop[r].count(s)
    small, used = few.compact()
    assert (
        torch.equal(used[small.source], few.source)
        and torch.equal(used[small.nodes], nodes)
        and len(used) <= len(nodes) + len(few.source)
    )


def test_samples_are_uniform_without_replacement():
    hub = torch.stack([torch.arange(1, 9), torch.zeros(8, dtype=torch.long)])
    edges, generator, seen = (
        incoming(hub, torch.tensor([0]), 9),
        torch.Generator().manual_seed(0),
        torch.zeros(9),
    )
    for _ in range(2000):
        drawn = edges.sample(3, generator).source
        assert len(drawn.unique()) == 3
        seen[drawn] += 1
    assert ((seen[1:] / 2000 - 3 / 8).abs() < 0.05).all()  # 4.6 standard deviations


# --- training and tuning --------------------------------------------------------------------------


@pytest.fixture(scope='module')
def data():
    return make_synthetic(150, n_features=6, seed=2, group_bias=3.0)


CONFIGS = [
    TrainConfig(
        lr=lr,
        weight_decay=1e-4,
        lambda_attention=a,
        lambda_adv=0.1 * a,
        lambda_rep=r,
        lambda_fair=r,
    )
    for lr, a, r in (
        (1e-2, 0.5, 0.0),
        (3e-3, 1.0, 0.1),
        (1e-3, 0.0, 1.0),
        (5e-3, 0.1, 0.0),
        (1e-2, 0.0, 0.0),
    )
]


def test_a_model_trains_the_same_alone_and_among_five(backbone, data):
    settings = TrainSettings(epochs=60, val_every=20, patience=99, backbone=backbone, hidden=5)
    spec = replace(EXPERTS['expert3'], several=True)  # nobody stops for being behind the others
    five = train_population(data, CONFIGS, spec, settings=settings)
    (alone,) = train_population(data, [CONFIGS[1]], spec, settings=settings)
    assert (five[1].epoch, five[1].feasible) == (alone.epoch, alone.feasible)
    for k, v in alone.population.params.items():
        torch.testing.assert_close(v, five[1].population.params[k], rtol=0, atol=1e-9)
    for k, v in alone.metrics.items():
        assert v == pytest.approx(five[1].metrics[k], abs=1e-6)
    start = init_population([0], 6, 5, backbone=backbone).params  # every parameter has moved
    for k, v in five[1].population.params.items():
        assert (v - start[k]).abs().max() > 1e-3, k


def test_training_is_plain_adam_on_pygs_module(backbone, data):
    settings = TrainSettings(epochs=25, val_every=25, backbone=backbone, dropout=0.0, clip=1e9)
    (model,) = train_population(data, [TrainConfig(lr=1e-2, weight_decay=1e-3)], settings=settings)
    gnn = init_population([0], 6, backbone=backbone, dropout=0.0).module(0).train()
    adam, train = torch.optim.Adam(gnn.parameters(), lr=1e-2, weight_decay=1e-3), data.train_mask
    for _ in range(25):
        adam.zero_grad()
        torch.nn.functional.cross_entropy(
            gnn(data.x.double(), data.edge_index)[train], data.y[train]
        ).backward()
        adam.step()
    for k, v in gnn.tensors().items():
        torch.testing.assert_close(model.population.params[k][0], v.detach(), rtol=0, atol=1e-7)


def test_all_messages_sampled_is_the_same_as_none_sampled(data):
    run = lambda **kw: (
        train_population(
            data, [TrainConfig(lr=1e-2)], settings=TrainSettings(epochs=20, backbone='gat', **kw)
        )[0].population.params
    )
    plain, everything, few = run(), run(neighbours=10**6), run(neighbours=2)
    for k, v in plain.items():
        torch.testing.assert_close(everything[k], v, rtol=0, atol=1e-9)
        assert not torch.allclose(few[k], v, atol=1e-4)


def test_large_steps_are_sampled_by_themselves(data, monkeypatch):
    monkeypatch.setattr(experts_trainers, 'MANY_MESSAGES', 10)
    trainer = experts_trainers.GraphAttentionTrainer(
        data, [TrainConfig(lr=1e-2)], TrainSettings(backbone='gat'), torch.device('cpu'), 0
    )
    assert trainer.sampled == 25 and trainer.whole is None
    (batch,) = trainer.batches()
    assert batch.edges.starts.diff().max() <= 25 and len(batch.x) <= data.num_nodes


@pytest.mark.parametrize('expert', ['expert1', 'expert2', 'expert3'])
def test_a_tuned_checkpoint_gives_its_score_again(backbone, expert, data, tmp_path):
    result = ExpertTuner(data, cache_dir=tmp_path, epochs=60, backbone=backbone).tune_expert(
        expert, n_trials=2
    )
    pop, payload = load_expert(tmp_path, data.name, expert)
    assert (
        pop.backbone
        == payload['backbone']['name']
        == result['settings']['backbone']['name']
        == backbone
    )
    scores = Evaluator(data, 'val').scores(pop)
    assert scores[result['objective']].item() == pytest.approx(result['best_score'], abs=1e-6)
    if backbone == 'gat':
        assert result['best_metrics']['completeness'] == pytest.approx(
            scores['completeness'].item(), abs=1e-9
        )
        assert scores['completeness'] < 1e-3
    assert ('completeness error' in winners_table({expert: result}).columns) == (backbone == 'gat')


def test_settings_of_the_default_backbone_are_as_before(data, tmp_path):
    record = ExpertTuner(data, cache_dir=tmp_path).record
    assert (
        record['backbone'] == {'name': 'mlp', 'hidden': 8, 'dropout': 0.3}
        and not {'backbone', 'neighbours'} & record['training'].keys()
    )
    with pytest.raises(MoEExpertError, match='backbone'):
        ExpertTuner(data, cache_dir=tmp_path, backbone='gat')


def test_backbone_from_the_command_line_and_in_the_notebook(tmp_path, capsys):
    asked = [
        '--dataset',
        'synthetic-150',
        '--expert',
        'expert1',
        '--n_trials',
        '1',
        '--epochs',
        '20',
        '--cache_dir',
        str(tmp_path),
    ]
    assert run_expert_tuning.main([*asked, '--backbone', 'sage']) == 0
    assert load_expert(tmp_path, 'synthetic-150', 'expert1')[0].backbone == 'sage'
    assert (
        run_expert_tuning.main(asked) == 1 and 'sage' in capsys.readouterr().err
    )  # the mlp's files need another folder
    assert check('tune.ipynb', dict(backbone='gat')).backbone == 'gat'
    with pytest.raises(ParameterError, match="backbone must be 'mlp', 'gcn'"):
        check('tune.ipynb', dict(backbone='gnc'))
