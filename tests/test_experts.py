"Experts against single modules, brute force, captum, finite differences and the exact scores."

import pytest
import torch
import torch.nn.functional as F
from captum.attr import IntegratedGradients
from hypothesis import given, settings
from hypothesis import strategies as st
from test_explain import LiveBytes

from moe_expert.datasets import load_dataset
from moe_expert.errors import MoEExpertError
from moe_expert.experts import populations as experts_populations
from moe_expert.experts.backbones import MLP, forward, hidden_gradient
from moe_expert.experts.initialisation import init_population, stack_models
from moe_expert.experts.losses import (
    GroupWeights,
    adversary_loss,
    adversary_shapes,
    attribution_divergence,
    cross_entropy,
    expert_gradients,
    expert_loss,
    representation_gap,
    soft_gaps,
)
from moe_expert.experts.populations import Population
from moe_expert.experts.specs import EXPERTS, LAMBDAS
from moe_expert.scores.attributions import integrated_gradients
from moe_expert.scores.metrics import soft_demographic_parity, soft_equal_opportunity
from moe_expert.scores.procedure import att_jsd


def rows(n, d, seed=0):
    "[n, d] in [-1, 1], a third of the columns binary."
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.rand(n, d, generator=generator, dtype=torch.float64) - 1
    x[:, ::3] = x[:, ::3].sign()
    return x


def labels(n, seed=0):
    "y and sens [n]; every combination is there."
    generator = torch.Generator().manual_seed(seed)
    y, sens = (torch.randint(2, (n,), generator=generator) for _ in range(2))
    y[:4], sens[:4] = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    return y, sens


def leaves(params):
    return {k: v.detach().clone().requires_grad_() for k, v in params.items()}


def gradients(loss, params):
    return dict(
        zip(params, torch.autograd.grad(loss.sum(), list(params.values()), allow_unused=True))
    )


@pytest.fixture(scope='module', params=[torch.float64, torch.float32], ids=['float64', 'float32'])
def population(request):
    "Five models with large parameters, so that probabilities spread, slope and dropout unusual."
    fresh = init_population(range(5), 7, 6, dropout=0.2, dtype=request.param)
    return Population({k: 4 * v for k, v in fresh.params.items()}, 0.2, negative_slope=0.1)


# --- one model and many ---------------------------------------------------------------------------


def test_backbone_is_the_benchmarks():
    model = MLP(27, 8)
    assert [(k, tuple(v.shape)) for k, v in model.state_dict().items()] == [
        ('hidden.weight', (8, 27)),
        ('out.weight', (2, 8)),
    ]  # no biases
    x = torch.randn(50, 27)
    expected = F.leaky_relu(x @ model.hidden.weight.T, 0.01) @ model.out.weight.T
    torch.testing.assert_close(model.eval()(x, None), expected)
    model.train()
    torch.manual_seed(0)
    dropped = model(x)
    torch.manual_seed(0)
    hidden = F.leaky_relu(model.hidden(x), 0.01)
    torch.testing.assert_close(dropped, F.dropout(hidden, 0.3) @ model.out.weight.T)
    assert not torch.equal(dropped, model(x))


def test_forward_equals_the_module_for_every_model(population):
    x = rows(40, 7).to(population.params['out.weight'].dtype)
    f = forward(population.params, x, population.negative_slope)
    for m in range(len(population)):
        model = population.module(m)
        assert not model.training and model.negative_slope == 0.1 and model.dropout == 0.2
        logits = model(x)
        torch.testing.assert_close(f.margin[m], logits[:, 1] - logits[:, 0])
        torch.testing.assert_close(f.p1[m], logits.softmax(-1)[:, 1])
        torch.testing.assert_close(f.hidden[m], F.leaky_relu(model.hidden(x), 0.1))
        torch.testing.assert_close(f.z[m], model.hidden(x))
        torch.testing.assert_close(f.direction[m], model.out.weight[1] - model.out.weight[0])


def test_forward_with_dropout_masks_the_hidden_layer(population):
    x = rows(40, 7).to(population.params['out.weight'].dtype)
    keep = (torch.rand(5, 40, 6, generator=torch.Generator().manual_seed(0)) > 0.3).to(x) / 0.7
    f = forward(population.params, x, 0.1, keep)
    for m in range(5):
        model = population.module(m)
        logits = model.out(F.leaky_relu(model.hidden(x), 0.1) * keep[m])
        torch.testing.assert_close(f.margin[m], logits[:, 1] - logits[:, 0])
    shared = forward(population.params, x, 0.1, keep[0])
    torch.testing.assert_close(shared.margin[0], f.margin[0])
    assert not torch.allclose(shared.margin[1], f.margin[1])


def test_hidden_gradient_is_that_of_autograd(population):
    x = rows(40, 7).to(population.params['out.weight'].dtype).requires_grad_()
    f = forward(population.params, x, 0.1)
    by_hand = hidden_gradient(f, 0.1) @ population.params['hidden.weight']
    for m in range(5):
        torch.testing.assert_close(
            by_hand[m], torch.autograd.grad(f.margin[m].sum(), x, retain_graph=True)[0]
        )


# --- the three questions --------------------------------------------------------------------------


def test_probabilities_in_double_precision_for_all_or_some_nodes(population):
    x = rows(60, 7).float()  # data are float32
    everyone = population.probabilities(x)
    assert everyone.dtype == torch.float64 and everyone.shape == (5, 60)
    for m in range(5):
        expected = population.module(m).double()(x.double()).softmax(-1)[:, 1]
        torch.testing.assert_close(everyone[m], expected, rtol=0, atol=1e-13)
    nodes = torch.tensor([50, 3, 3, 17])
    torch.testing.assert_close(
        population.probabilities(x, nodes=nodes), everyone[:, nodes], rtol=0, atol=1e-13
    )
    assert not everyone.requires_grad


def test_margins_are_those_of_the_module_and_differentiable(population):
    x, nodes = rows(20, 7).requires_grad_(), torch.tensor([5, 0, 0])
    double = Population(
        leaves({k: v.double() for k, v in population.params.items()}),
        population.dropout,
        population.negative_slope,
    )
    margins = double.margins(x, None, nodes)
    torch.testing.assert_close(
        margins.sigmoid(), population.probabilities(x.detach(), None, nodes), rtol=0, atol=1e-13
    )
    to_x, to_hidden = torch.autograd.grad(margins[2].sum(), [x, double.params['hidden.weight']])
    assert (
        to_x[5].abs().max() > 0
        and (to_x[1] == 0).all()
        and to_hidden[2].abs().max() > 0
        and (to_hidden[1] == 0).all()
    )


def masked_by_brute_force(population, x, nodes, features):
    out = torch.empty(len(population), len(nodes), dtype=torch.float64)
    for m in range(len(population)):
        model = population.module(m).double()
        for i, node in enumerate(nodes.tolist()):
            row = x[node].double().clone()
            if features[m, i] >= 0:
                row[features[m, i]] = 0
            out[m, i] = model(row[None]).softmax(-1)[0, 1]
    return out


def test_masked_probabilities_against_brute_force(population):
    x, generator = rows(60, 7).float(), torch.Generator().manual_seed(1)
    nodes = torch.randperm(60, generator=generator)[:25]
    features = torch.randint(-1, 7, (5, 25), generator=generator)
    features[:, 0], features[:, 1], features[:, 2] = -1, 0, 6
    found = population.masked_probabilities(x, None, nodes, features)
    assert found.dtype == torch.float64
    torch.testing.assert_close(
        found, masked_by_brute_force(population, x, nodes, features), rtol=0, atol=1e-13
    )
    unmasked = (
        features == -1
    )  # nothing masked: the very probability, no rounding noise that could break a tie of 1e-9
    torch.testing.assert_close(
        found[unmasked], population.probabilities(x, nodes=nodes)[unmasked], rtol=0, atol=1e-15
    )


def test_attributions_against_captum_and_quadrature(population):
    x = rows(60, 7).float()
    nodes = torch.tensor([4, 59, 0, 31, 32])
    found = population.attributions(x, None, nodes)
    assert found.dtype == torch.float64 and found.shape == (5, 5, 7)
    for m in range(5):
        model = population.module(m).double()
        captum = IntegratedGradients(lambda r, model=model: model(r).softmax(-1)[:, 1])
        expected = captum.attribute(
            x[nodes].double(),
            torch.zeros(5, 7, dtype=torch.float64),
            n_steps=64,
            method='gausslegendre',
        )
        torch.testing.assert_close(
            found[m], expected, rtol=0, atol=1e-7
        )  # captum's quadrature weights are float32
        torch.testing.assert_close(
            found[m], integrated_gradients(model, x[nodes].double(), n_steps=64), rtol=0, atol=1e-9
        )
    torch.testing.assert_close(
        found.sum(-1), population.probabilities(x, nodes=nodes) - 0.5, rtol=0, atol=1e-12
    )  # complete: p1(0) = 1/2


@pytest.mark.parametrize('chunk', [1, 137, 2**22])
@pytest.mark.parametrize(
    'nodes', [None, torch.tensor([50, 3, 3, 17, 0, 9])], ids=['all nodes', 'some nodes']
)
def test_chunks_and_absent_nodes_change_nothing(population, monkeypatch, chunk, nodes):
    x, which = rows(60, 7).float(), torch.arange(60) if nodes is None else nodes
    features = torch.randint(-1, 7, (5, len(which)), generator=torch.Generator().manual_seed(2))
    monkeypatch.setattr(experts_populations, 'NUMBERS_AT_ONCE', chunk)
    torch.testing.assert_close(
        population.probabilities(x, None, nodes),
        torch.stack(
            [population.module(m).double()(x[which].double()).softmax(-1)[:, 1] for m in range(5)]
        ),
        rtol=0,
        atol=1e-13,
    )
    torch.testing.assert_close(
        population.masked_probabilities(x, None, nodes, features),
        masked_by_brute_force(population, x, which, features),
        rtol=0,
        atol=1e-13,
    )
    torch.testing.assert_close(
        population.attributions(x, None, nodes),
        torch.stack(
            [
                integrated_gradients(population.module(m).double(), x[which].double(), n_steps=64)
                for m in range(5)
            ]
        ),
        rtol=0,
        atol=1e-9,
    )


def test_row_of_zeros_has_no_attributions_and_an_even_probability(population):
    x = rows(6, 7)
    x[2] = 0
    assert population.attributions(x, None, torch.tensor([2])).abs().max() == 0
    assert (population.probabilities(x)[:, 2] == 0.5).all()


# --- making, stacking, choosing -------------------------------------------------------------------


def test_seeds_make_models_by_themselves():
    a, b = init_population([3, 4, 3], 20, 8), init_population([4], 20, 8)
    for k, v in a.params.items():
        assert (
            torch.equal(v[0], v[2])
            and torch.equal(v[1], b.params[k][0])
            and not torch.equal(v[0], v[1])
        )
    assert (
        init_population([0], 20, 8, dtype=torch.float32).params['out.weight'].dtype == torch.float32
    )


def test_initial_parameters_are_uniform_as_pytorchs():
    pop = init_population(range(200), 25, 16)
    for name, fan_in in (('hidden.weight', 25), ('out.weight', 16)):
        bound, values = fan_in**-0.5, pop.params[name]
        assert values.abs().max() <= bound and values.abs().max() > 0.99 * bound
        assert (
            abs(values.mean()) < 0.02 * bound and abs(values.var() - bound**2 / 3) < 0.02 * bound**2
        )
    default = MLP(25, 16)
    assert default.hidden.weight.abs().max() <= 25**-0.5 and default.out.weight.abs().max() <= 0.25


def test_stack_module_select_round_trips(population):
    again = stack_models([population.module(m) for m in range(5)])
    for k, v in population.params.items():
        assert torch.equal(again.params[k], v) and again.params[k].dtype == v.dtype
    assert (again.dropout, again.negative_slope) == (0.2, 0.1)
    x = rows(20, 7)
    for index in ([4, 0, 0], torch.tensor([4, 0, 0])):
        some = population.select(index)
        assert len(some) == 3 and (some.dropout, some.negative_slope) == (0.2, 0.1)
        torch.testing.assert_close(
            some.probabilities(x), population.probabilities(x)[[4, 0, 0]], rtol=0, atol=1e-13
        )
    assert len(population.select([])) == 0


def test_modules_and_stacks_are_copies():
    pop = init_population([0, 1], 5, 3)
    before = pop.params['out.weight'].clone()
    model = pop.module(1)
    with torch.no_grad():
        model.out.weight.zero_()
    assert torch.equal(pop.params['out.weight'], before)
    stacked = stack_models([model])
    with torch.no_grad():
        model.hidden.weight.zero_()
    assert (
        stacked.params['hidden.weight'].abs().max() > 0
        and not stacked.params['hidden.weight'].requires_grad
    )


def test_to_changes_the_precision_only(population):
    there = population.to(torch.float32)
    assert {v.dtype for v in there.params.values()} == {torch.float32}
    assert (there.dropout, there.negative_slope) == (0.2, 0.1)
    torch.testing.assert_close(
        there.probabilities(rows(20, 7)), population.probabilities(rows(20, 7)), rtol=0, atol=1e-5
    )


def test_population_says_what_it_is(population):
    assert (
        '5 models' in repr(population)
        and '7 features' in repr(population)
        and '6 hidden' in repr(population)
    )


def test_stacking_errors():
    with pytest.raises(MoEExpertError, match='at least one'):
        stack_models([])
    with pytest.raises(MoEExpertError, match='one shape'):
        stack_models([MLP(5, 8), MLP(5, 4)])
    with pytest.raises(MoEExpertError, match='one shape'):
        stack_models([MLP(5, 8), MLP(6, 8)])


# --- cross-entropy --------------------------------------------------------------------------------


def test_cross_entropy_is_pytorchs_on_logits(population):
    x, (y, _) = rows(40, 7).to(population.params['out.weight'].dtype), labels(40)
    found = cross_entropy(forward(population.params, x, 0.1).margin, y)
    for m in range(5):
        torch.testing.assert_close(found[m], F.cross_entropy(population.module(m)(x), y))


def test_perfect_confident_predictor_has_no_loss():
    "A second softmax would leave at least log(1 + 1/e) = 0.31."
    y, sens = labels(30)
    x = (2.0 * y - 1)[:, None].double()
    params = {
        'hidden.weight': torch.tensor([[[1.0], [-1.0]]]).double(),
        'out.weight': 50 * torch.tensor([[[-1.0, 1.0], [1.0, -1.0]]]).double(),
    }
    assert cross_entropy(forward(params, x).margin, y).item() < 1e-12
    assert expert_loss(params, x, y, sens, GroupWeights.of(sens, y), {}).item() < 1e-12
    assert cross_entropy(forward(params, x).margin, 1 - y).item() > 50  # certain and wrong


def test_cross_entropy_of_extreme_margins_is_finite():
    y = torch.tensor([0, 1])
    margin = torch.tensor([[1e5, -1e5]], dtype=torch.float64, requires_grad=True)
    loss = cross_entropy(margin, y)
    assert loss.item() == 1e5 and torch.autograd.grad(loss, margin)[0].isfinite().all()


# --- expert 2 -------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(st.integers(4, 60), st.integers(0, 10**6))
def test_soft_gaps_and_representation_gap_are_what_they_stand_for(n, seed):
    y, sens = labels(n, seed)
    p1 = torch.rand(3, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    weights = GroupWeights.of(sens, y)
    torch.testing.assert_close(
        soft_gaps(p1, weights),
        (soft_demographic_parity(p1, sens) + soft_equal_opportunity(p1, y, sens)) / 2,
    )
    hidden = torch.randn(
        3, n, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    for m in range(3):
        expected = F.mse_loss(hidden[m, sens == 0].mean(0), hidden[m, sens == 1].mean(0))
        torch.testing.assert_close(representation_gap(hidden, weights)[m], expected)


def test_group_weights_are_means():
    weights = GroupWeights.of(torch.tensor([0, 0, 1, 0, 1]), torch.tensor([1, 0, 0, 1, 1]))
    assert weights.group.tolist() == [[1 / 3, 1 / 3, 0, 1 / 3, 0], [0, 0, 0.5, 0, 0.5]]
    assert weights.positive.tolist() == [[0.5, 0, 0, 0.5, 0], [0, 0, 0, 0, 1]]


def test_a_minibatch_without_a_group_has_no_gap():
    "Such batches occur where a group is rare; there is nothing to compare in them."
    x, pop = rows(5, 4), init_population([0], 4, 3)
    f = forward(pop.params, x)
    nobody = GroupWeights.of(torch.zeros(5, dtype=torch.long), torch.tensor([1, 1, 0, 0, 0]))
    terms = (
        soft_gaps(f.p1, nobody),
        representation_gap(f.hidden, nobody),
        attribution_divergence(f, pop.params, x.abs(), nobody),
    )
    assert [t.item() for t in terms] == [0, 0, 0]
    sens = torch.tensor([0, 0, 0, 1, 1])  # group 1 is there, but no one of class 1: dp alone
    found = soft_gaps(f.p1, GroupWeights.of(sens, torch.tensor([1, 1, 0, 0, 0])))
    torch.testing.assert_close(found, soft_demographic_parity(f.p1, sens) / 2)


# --- expert 3: attention --------------------------------------------------------------------------


def attention(params, x, sens, y, slope=0.1, buffers=None):
    return attribution_divergence(
        forward(params, x, slope),
        params,
        x.abs(),
        GroupWeights.of(sens, y, dtype=x.dtype),
        slope,
        buffers,
    )


def test_attention_loss_is_att_jsd(population):
    x, (y, sens) = rows(50, 7), labels(50)
    x[7] = 0  # counts as uniform in both
    double = population.to(torch.float64)
    found = attention(double.params, x, sens, y)
    torch.testing.assert_close(
        found, att_jsd(double.attributions(x, None, torch.arange(50)), sens), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize('name', ['bail', 'german'])
def test_attention_loss_is_att_jsd_on_real_data(name, data_dir):
    data = load_dataset(name, data_dir=data_dir, edition='full')
    pop = init_population(range(4), data.num_features, 8)
    pop = Population(
        {
            k: torch.stack([s * v for s, v in zip((0.3, 1.0, 3.0, 30.0), p)])
            for k, p in pop.params.items()
        }
    )
    nodes = data.val_mask.nonzero().squeeze(1)
    found = attention(
        pop.params, data.x[nodes].double(), data.sens[nodes], data.y[nodes], slope=0.01
    )
    assert found.min() > 1e-5
    torch.testing.assert_close(
        found, att_jsd(pop.attributions(data.x, None, nodes), data.sens[nodes]), rtol=0, atol=1e-10
    )


def slow_divergence(params, x, sens, slope=0.1):
    "ATT_JSD of the loss's formula in plain operations, left to autograd."
    f = forward(params, x, slope)
    a = (x * (hidden_gradient(f, slope) @ params['hidden.weight'])).abs()
    total = a.sum(-1, keepdim=True)
    shares = torch.where(total == 0, 1 / x.shape[1], a / torch.where(total == 0, 1.0, total))
    q = [shares[:, sens == g].mean(1) for g in (0, 1)]
    mean = (q[0] + q[1]) / 2
    return sum((p * (p / mean).log2()).sum(-1) for p in q) / 2


def test_attention_gradient_is_autograds_and_not_zero(population):
    x, (y, sens) = rows(50, 7), labels(50)
    params = leaves(population.to(torch.float64).params)
    found = gradients(attention(params, x, sens, y), params)
    expected = gradients(slow_divergence(params, x, sens), params)
    for k in params:
        torch.testing.assert_close(found[k], expected[k], rtol=1e-8, atol=1e-10)
        assert (found[k].flatten(1).abs().amax(1) > 1e-3).all()  # for every model


@pytest.mark.parametrize('seed', range(3))
def test_attention_gradient_equals_finite_differences(seed):
    x, (y, sens) = rows(12, 5, seed), labels(12, seed)
    x[3] = 0
    params = leaves(init_population([seed, seed + 1], 5, 3).params)

    def divergence(w, v):
        p = {'hidden.weight': w, 'out.weight': v}
        return attention(p, x, sens, y)

    assert torch.autograd.gradcheck(divergence, tuple(params.values()), eps=1e-7, atol=1e-5)


def test_scratch_buffers_give_the_same_loss_and_gradient(population):
    x, (y, sens) = rows(50, 7), labels(50)
    params = leaves(population.to(torch.float64).params)
    plain_loss = attention(params, x, sens, y)
    plain = gradients(plain_loss, params)
    buffers = (
        torch.full((5, 7, 50), torch.nan, dtype=torch.float64),
        torch.full((5, 7, 50), torch.nan, dtype=torch.float64),
    )
    for _ in range(2):  # used again, with what the last step left in them
        loss = attention(params, x, sens, y, buffers=buffers)
        again = gradients(loss, params)
        assert torch.equal(loss, plain_loss) and all(
            torch.equal(again[k], plain[k]) for k in params
        )


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_nodes_without_attributions_count_as_uniform_with_finite_gradient(dtype):
    y, sens = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1])
    x = torch.tensor([[0.0, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0], [-1, 0, 0, 0]], dtype=dtype)
    params = leaves(init_population([0], 4, 3, dtype=dtype).params)
    loss = attention(params, x, sens, y)
    half = (
        torch.tensor([0.25 + 1, 0.25, 0.25, 0.25]).double() / 2
    )  # q0 uniform, q1 all on the first feature
    expected = (0.25 * (0.25 / half).log2()).sum() / 2 + (1 / half[0]).log2() / 2
    torch.testing.assert_close(loss[0].double(), expected, rtol=0, atol=1e-6)
    assert all(g.isfinite().all() for g in gradients(loss, params).values())

    x = torch.zeros(4, 4, dtype=dtype)  # nobody has attributions
    loss = attention(params, x, sens, y)
    assert loss.item() == 0 and all((g == 0).all() for g in gradients(loss, params).values())

    x = rows(4, 4).to(dtype)  # a model with a margin of 0 everywhere: v0 = v1
    params['out.weight'] = torch.ones(1, 2, 3, dtype=dtype, requires_grad=True)
    loss = attention(params, x, sens, y)
    assert loss.item() == 0 and all(g.isfinite().all() for g in gradients(loss, params).values())


def test_a_step_against_the_attention_gradient_lowers_it():
    x, (y, sens) = rows(200, 24), labels(200)
    x[sens == 1, :6] *= 0.2
    params = leaves(init_population(range(5), 24, 8).params)
    loss = attention(params, x, sens, y)
    grads = gradients(loss, params)
    after = attention({k: v - 1e-2 * grads[k] for k, v in params.items()}, x, sens, y)
    assert (after < loss).all()


# --- expert 3: adversaries ------------------------------------------------------------------------


def adversaries(m, hidden, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        k: torch.randn(m, *shape, generator=generator, dtype=torch.float64)
        for k, shape in adversary_shapes(hidden).items()
    }


def test_adversaries_learn_while_the_expert_unlearns():
    x, (_, sens) = rows(50, 7), labels(50)
    params, adversary = leaves(init_population(range(3), 7, 6).params), leaves(adversaries(3, 6))
    loss = adversary_loss(forward(params, x), adversary, sens, GroupWeights.of(sens, sens))

    def plain(m):
        hidden = F.leaky_relu(x @ params['hidden.weight'][m].T, 0.01)
        p1 = (hidden @ params['out.weight'][m].T).softmax(-1)[:, 1]
        guesses = (
            hidden @ adversary['adversary_hidden.weight'][m]
            + adversary['adversary_hidden.bias'][m],
            p1 * adversary['adversary_proba.weight'][m] + adversary['adversary_proba.bias'][m],
        )
        return sum(F.binary_cross_entropy_with_logits(g, sens.double()) for g in guesses) / 2

    straight = torch.stack([plain(m) for m in range(3)])
    torch.testing.assert_close(loss, straight)
    found = gradients(loss, params | adversary)
    expected = gradients(straight, params | adversary)
    for k in adversary:
        torch.testing.assert_close(found[k], expected[k])
    for k in params:
        torch.testing.assert_close(found[k], -expected[k])
        assert expected[k].abs().max() > 1e-3


# --- the whole loss -------------------------------------------------------------------------------


def everything(m, hidden, seed=0):
    x, (y, sens) = rows(40, 9, seed), labels(40, seed)
    return (
        x,
        y,
        sens,
        GroupWeights.of(sens, y),
        leaves(init_population(range(m), 9, hidden).params | adversaries(m, hidden)),
    )


def test_expert_loss_is_the_weighted_sum_of_its_terms():
    x, y, sens, weights, params = everything(3, 6)
    lambdas = {
        k: torch.tensor([0.3, 2.0, 0.7], dtype=torch.float64) * (i + 1)
        for i, k in enumerate(LAMBDAS)
    }
    f = forward(params, x)
    terms = (
        representation_gap(f.hidden, weights),
        soft_gaps(f.p1, weights),
        attribution_divergence(f, params, x.abs(), weights),
        adversary_loss(f, params, sens, weights),
    )
    expected = cross_entropy(f.margin, y) + sum(lambdas[k] * t for k, t in zip(LAMBDAS, terms))
    torch.testing.assert_close(expert_loss(params, x, y, sens, weights, lambdas), expected)
    for k, t in zip(LAMBDAS, terms):
        torch.testing.assert_close(
            expert_loss(params, x, y, sens, weights, {k: lambdas[k]}),
            cross_entropy(f.margin, y) + lambdas[k] * t,
        )
        assert (t > 1e-4).all()


@pytest.mark.parametrize('name', LAMBDAS)
def test_a_neighbours_coefficient_adds_an_exact_zero(name):
    x, y, sens, weights, params = everything(2, 6)
    x[5] = 0
    without = expert_loss(params, x, y, sens, weights, {})
    beside = expert_loss(
        params, x, y, sens, weights, {name: torch.tensor([0.0, 0.5], dtype=torch.float64)}
    )
    assert torch.equal(beside[0], without[0]) and not torch.equal(beside[1], without[1])
    a, b = gradients(without, params), gradients(beside, params)
    for k in ('hidden.weight', 'out.weight'):
        assert torch.equal(a[k][0], b[k][0])
        if k == 'hidden.weight' or name != 'lambda_rep':
            assert not torch.equal(a[k][1], b[k][1])  # lambda_rep ends at the hidden layer
    for k in adversary_shapes(6):
        assert b[k] is None or not b[k][0].any()


SUBSETS = [
    (),
    *[(k,) for k in LAMBDAS],
    EXPERTS['expert2'].lambdas,
    EXPERTS['expert3'].lambdas,
    LAMBDAS,
]


@pytest.mark.parametrize('dropout', [None, 'one', 'each'])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32], ids=['float64', 'float32'])
@pytest.mark.parametrize('names', SUBSETS, ids=lambda names: '+'.join(names) or 'none')
def test_gradient_by_hand_is_that_of_autograd(names, dtype, dropout):
    x, y, sens, _, params = everything(4, 6)
    x[5], x[7, :4], params['out.weight'].data[3] = (
        0,
        0,
        0,
    )  # a row without attributions, zeros, a constant model
    params = leaves({k: v.to(dtype) for k, v in params.items()})
    x, weights = x.to(dtype), GroupWeights.of(sens, y, dtype=dtype)
    lambdas = {
        k: torch.tensor([0.3, 2.0, 0.0, 0.7], dtype=dtype) * (i + 1) for i, k in enumerate(names)
    }
    drawn = torch.rand(4, 40, 6, generator=torch.Generator().manual_seed(0))
    keep = (
        None
        if dropout is None
        else (drawn if dropout == 'each' else drawn[0] > 0.3).to(dtype) / 0.7
    )
    more = dict(keep=keep, negative_slope=0.1)
    expected = gradients(expert_loss(params, x, y, sens, weights, lambdas, **more), params)
    mine = expert_gradients(params, x, y, sens, weights, lambdas, **more)
    assert mine.keys() == {k for k, g in expected.items() if g is not None}
    for k, g in mine.items():
        torch.testing.assert_close(
            g,
            expected[k],
            rtol=1e-9 if dtype == torch.float64 else 1e-3,
            atol=1e-14 if dtype == torch.float64 else 1e-6,
        )
    scratch = tuple(x.new_full((4, 9, 40), torch.nan) for _ in range(2))
    for k, g in expert_gradients(
        params, x, y, sens, weights, lambdas, absx=x.abs(), buffers=scratch, **more
    ).items():
        torch.testing.assert_close(
            g,
            mine[k],
            rtol=1e-12 if dtype == torch.float64 else 1e-5,
            atol=0 if dtype == torch.float64 else 1e-8,
        )


@pytest.mark.parametrize('group', [0, 1])
def test_gradient_by_hand_in_a_minibatch_without_a_group(group):
    x, y, _, _, params = everything(3, 6)
    sens = torch.full_like(y, group)
    weights, lambdas = (
        GroupWeights.of(sens, y),
        {k: torch.ones(3, dtype=torch.float64) for k in LAMBDAS},
    )
    expected = gradients(expert_loss(params, x, y, sens, weights, lambdas), params)
    for k, g in expert_gradients(params, x, y, sens, weights, lambdas).items():
        assert g.isfinite().all()
        torch.testing.assert_close(g, expected[k], rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize('name', LAMBDAS)
def test_a_neighbours_coefficient_leaves_the_gradient_by_hand_alone(name):
    x, y, sens, weights, params = everything(2, 6)
    x[5] = 0
    without = expert_gradients(params, x, y, sens, weights, {})
    beside = expert_gradients(
        params, x, y, sens, weights, {name: torch.tensor([0.0, 0.5], dtype=torch.float64)}
    )
    for k in ('hidden.weight', 'out.weight'):
        assert torch.equal(beside[k][0], without[k][0])
    assert not torch.equal(beside['hidden.weight'][1], without['hidden.weight'][1])
    for k in adversary_shapes(6):
        assert k not in beside or not beside[k][0].any()


@pytest.mark.parametrize('strange', [0.0, torch.nan])
def test_a_model_without_attributions_leaves_its_neighbour_alone(strange):
    x, y, sens, weights, params = everything(2, 6)
    lambdas = {k: torch.ones(2, dtype=torch.float64) for k in EXPERTS['expert3'].lambdas}
    before = expert_gradients(params, x, y, sens, weights, lambdas)
    params['out.weight'].data[1] = strange
    after = expert_gradients(params, x, y, sens, weights, lambdas)
    for k, g in after.items():
        assert torch.equal(g[0], before[k][0])
    assert not torch.equal(after['hidden.weight'][1], before['hidden.weight'][1])


@pytest.mark.parametrize(
    'names, arrays',
    [
        ((), 2),  # the hidden layer, its slopes
        (('lambda_fair',), 2),
        (('lambda_adv',), 3),  # and what the adversary sends back
        (('lambda_attention',), 4),  # two, both buffers, and what is as small as a row
    ],
)
def test_a_step_reuses_the_memory_of_its_hidden_layer(names, arrays):
    x, y, sens, weights, params = everything(5, 16)
    keep = torch.ones(40, 16, dtype=torch.float64)
    lambdas = {name: torch.ones(5, dtype=torch.float64) for name in names}
    options = dict(keep=keep, absx=x.abs(), buffers=[x.new_empty(5, 9, 40) for _ in range(2)])
    with LiveBytes() as seen:
        expert_gradients(params, x, y, sens, weights, lambdas, **options)
    assert seen.peak // (5 * 16 * 40 * 8) == arrays


def test_dropout_reaches_every_term():
    x, y, sens, weights, params = everything(2, 6)
    keep = (torch.rand(40, 6, generator=torch.Generator().manual_seed(0)) > 0.3).double() / 0.7
    for name in ('lambda_rep', 'lambda_fair', 'lambda_adv'):
        lambdas = {name: torch.ones(2, dtype=torch.float64)}
        term = [
            (
                expert_loss(params, x, y, sens, weights, lambdas, keep=k)
                - expert_loss(params, x, y, sens, weights, {}, keep=k)
            )
            for k in (None, keep)
        ]
        assert (term[0] - term[1]).abs().min() > 1e-6


def test_the_three_experts():
    assert {k: (s.objective, s.maximize, s.lambdas) for k, s in EXPERTS.items()} == {
        'expert1': ('utility', True, ()),
        'expert2': ('fair_result', False, ('lambda_rep', 'lambda_fair')),
        'expert3': ('fair_procedure', False, ('lambda_attention', 'lambda_adv')),
    }
    assert all(0 <= s.warmup <= 0.25 for s in EXPERTS.values()) and EXPERTS['expert2'].warmup > 0
    assert all(k == s.name for k, s in EXPERTS.items())
