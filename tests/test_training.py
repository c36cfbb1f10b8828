"""The training engine against torch.optim and a plain PyTorch loop; the choice of a checkpoint.

Neighbours and luck do not matter."""

import dataclasses
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from moe_expert.data.synthetic import make_synthetic
from moe_expert.errors import MoEExpertError
from moe_expert.experts import trainers as experts_trainers
from moe_expert.experts.floor import CONSTRAINTS, Floor, Linear, Selection
from moe_expert.experts.initialisation import init_population
from moe_expert.experts.optimizer import (
    DropoutMasks,
    StackedAdam,
    minibatches,
    resolve_device,
    using_threads,
)
from moe_expert.experts.populations import PARAMETERS, Population
from moe_expert.experts.specs import EXPERTS, GATE, LAMBDAS
from moe_expert.experts.trainers import PopulationTrainer, TrainConfig, Trainer, TrainSettings
from moe_expert.experts.training import (
    FEWEST,
    TRIES,
    TrainingRun,
    reference_floor,
    run_training,
    train_population,
)
from moe_expert.scores import evaluation as scores_evaluation
from moe_expert.scores import metrics as scores_metrics
from moe_expert.scores.evaluation import Evaluator
from moe_expert.scores.graphlime import GraphLIME


@pytest.fixture(scope='module')
def data():
    return make_synthetic(400, 12, group_bias=2.0)


@pytest.fixture(scope='module')
def evaluator(data):
    return Evaluator(data, 'val')


def same_bits(a, b):
    return all(torch.equal(a.population.params[k], b.population.params[k]) for k in PARAMETERS)


def assert_close(a, b, tolerance=1e-5):
    "Two trained models: what was selected, when, its scores and its parameters."
    assert (a.epoch, a.epochs_run, a.feasible) == (b.epoch, b.epochs_run, b.feasible)
    assert a.metrics.keys() == b.metrics.keys()
    for k, v in a.metrics.items():
        assert v == pytest.approx(b.metrics[k], abs=tolerance), k
    for k in PARAMETERS:
        torch.testing.assert_close(
            a.population.params[k], b.population.params[k], rtol=0, atol=tolerance
        )


# --- Adam -----------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 4),
    st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=2), min_size=1, max_size=3),
    st.integers(0, 10**6),
    st.data(),
)
def test_stacked_adam_is_torchs_adam_after_torchs_clipping(m, shapes, seed, draw):
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    start = {f'p{i}': normal(m, *shape) for i, shape in enumerate(shapes)}
    lr, decay = 10 ** -(4 * torch.rand(2, m, generator=generator, dtype=torch.float64))
    clip, scale = (
        draw.draw(st.sampled_from([0.01, 1.0, 100.0])),
        draw.draw(st.sampled_from([1e-3, 1.0, 1e3])),
    )
    left = sorted(draw.draw(st.sets(st.integers(0, m - 1), min_size=1)))  # who goes on after step 7

    single = [[v[i].clone().requires_grad_() for v in start.values()] for i in range(m)]
    optimizers = [
        torch.optim.Adam(p, lr=lr[i].item(), weight_decay=decay[i].item())
        for i, p in enumerate(single)
    ]
    ours, running = StackedAdam(start, lr, decay, clip), list(range(m))
    for step in range(12):
        grads = [scale * normal(m, *shape) for shape in shapes]
        if step == 3:
            grads = [torch.zeros_like(g) for g in grads]
        ours.step([g[running] for g in grads])
        for i in running:
            for p, g in zip(single[i], grads):
                p.grad = g[i].clone()
            torch.nn.utils.clip_grad_norm_(single[i], clip)
            optimizers[i].step()
        if step == 6:
            ours.keep(torch.tensor([running.index(i) for i in left]))
            running = left
    for k, name in enumerate(start):
        found = ours.params[name].detach()
        torch.testing.assert_close(
            found, torch.stack([single[i][k].detach() for i in running]), rtol=1e-9, atol=1e-11
        )


def test_stacked_adam_copies_what_it_is_given():
    start = {'w': torch.ones(2, 3, dtype=torch.float64)}
    adam = StackedAdam(start, torch.ones(2), torch.zeros(2))
    adam.step([torch.ones(2, 3, dtype=torch.float64)])
    assert (
        (start['w'] == 1).all() and (adam.params['w'] < 1).all() and adam.params['w'].requires_grad
    )


# --- dropout --------------------------------------------------------------------------------------


def test_dropout_masks_do_not_depend_on_neighbours():
    alone, among = DropoutMasks([5], 50, 8, 0.3), DropoutMasks([2, 5, 9], 50, 8, 0.3)
    for step in range(250):  # over several blocks of draws
        if step == 130:
            among.keep([1, 2])
        rows = 50 if step % 3 else 20
        a, b = alone.next(rows), among.next(rows)
        assert a.shape == (rows, 8) and b.shape == (3 if step < 130 else 2, rows, 8)
        assert torch.equal(a, b[1 if step < 130 else 0])
    assert not torch.equal(b[0], b[1])


def test_dropout_masks_do_not_depend_on_how_many_are_drawn_at_once():
    many, one = DropoutMasks([5], 324, 8, 0.3), DropoutMasks([5], 324, 8, 0.3)
    one.block = one.at = 1
    assert 1 < many.block <= 2**15 // (324 * 8)  # 256 KB of doubles: they stay in the cache
    for _ in range(3 * many.block):
        assert torch.equal(many.next(324), one.next(324))


def test_dropout_drops_the_share_it_says_anew_each_step():
    masks = DropoutMasks([0], 200, 10, 0.3)
    steps = torch.stack([masks.next(200) for _ in range(50)])
    assert set(steps.unique().tolist()) == {0.0, 1 / 0.7}
    assert abs((steps == 0).double().mean() - 0.3) < 0.01
    pairs = [(steps[i] == steps[j]).double().mean() for i in range(5) for j in range(i)]
    assert all(abs(p - 0.58) < 0.05 for p in pairs)  # 0.3² + 0.7² agree by chance
    assert DropoutMasks([0], 200, 10, 0.0).next(200) is None


@pytest.mark.parametrize('seed', [0, 3])
def test_dropout_and_initial_parameters_are_different_streams(seed):
    "A CPU generator uses the low 32 bits of its seed only, so seed + 2**32 is no other stream."
    first = DropoutMasks([seed], 100, 8, 0.5).next(100)
    uniform = torch.rand(100, 8, generator=torch.Generator().manual_seed(seed))
    agree = ((first > 0) == (uniform >= 0.5)).double().mean()
    assert 0.4 < agree < 0.6


# --- minibatches and threads ----------------------------------------------------------------------


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 60), st.integers(1, 70), st.integers(0, 10**6), st.booleans())
def test_minibatches_cut_a_random_order_into_equal_steps(n, rows, seed, both_classes):
    y = (torch.rand(n, generator=torch.Generator().manual_seed(seed)) < 0.3).long()
    generator = torch.Generator().manual_seed(seed)
    steps = list(minibatches(y, rows, generator, both_classes))
    rows, oracle = min(rows, n), torch.Generator().manual_seed(seed)
    order = torch.arange(n) if rows == n else torch.randperm(n, generator=oracle)
    expected = [order[i : i + rows] for i in range(0, n - rows + 1, rows)]
    if both_classes:
        expected = [b for b in expected if len(set(y[b].tolist())) == 2]
    assert [b.tolist() for b in steps] == [b.tolist() for b in expected]
    assert torch.equal(generator.get_state(), oracle.get_state())  # nothing else is drawn


def test_the_number_of_threads_is_restored_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), using_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise ZeroDivisionError
    assert torch.get_num_threads() == before


class Moments(PopulationTrainer):
    "Writes down what is called."

    def __init__(self, *arguments):
        self.calls = []
        super().__init__(*arguments)

    def on_epoch(self, warm):
        self.calls.append(('epoch', warm))

    def on_keep(self, which):
        super().on_keep(which)
        self.calls.append(('keep', list(which), list(self.running)))


def test_the_moments_of_a_trainer(data, evaluator):
    configs = [TrainConfig(1e-2), TrainConfig(1e308), TrainConfig(1e-2, seed=1)]
    train = TrainSettings(epochs=5, val_every=2)
    trainer = Moments(data, configs, train, torch.device('cpu'), 0)
    models = run_training(trainer, configs, EXPERTS['expert2'], evaluator, None, train)
    epochs = [('epoch', True), *[('epoch', False)] * 4]  # a warm-up of a fifth
    assert trainer.calls == [*epochs[:2], ('keep', [0, 2], [0, 2]), *epochs[2:]]
    assert (
        [m.epochs_run for m in models] == [5, 2, 5]
        and models[1].error
        and trainer.running == [0, 2]
    )


def test_written_gradients_and_automatic_ones_train_the_same_models(data, evaluator):
    class Automatic(PopulationTrainer):
        written_gradients = False

    configs = [
        TrainConfig(1e-2, lambda_rep=1.0, lambda_fair=2.0, lambda_attention=3.0, lambda_adv=0.5)
    ]
    train = TrainSettings(epochs=20)
    made = [
        kind(data, configs, train, torch.device('cpu'), 0)
        for kind in (PopulationTrainer, Automatic)
    ]
    for trainer in made:
        for _ in range(20):
            trainer.epoch(warm=False)
    torch.testing.assert_close(made[0].adam.flat, made[1].adam.flat, rtol=0, atol=1e-9)
    assert issubclass(Automatic, Trainer)


# --- the whole path against a plain loop ----------------------------------------------------------


def plain_loss(model, x, y, sens, config, warm):
    "DESIGN §4 in plain operations for one nn.Module: attributions by autograd, gaps by masks."
    x = x.clone().requires_grad_()
    hidden = F.leaky_relu(model.hidden(x), 0.01)
    logits = model.out(hidden)
    loss = F.cross_entropy(logits, y)
    if warm:
        return loss
    p1 = logits.softmax(-1)[:, 1]
    zero, one, positive = sens == 0, sens == 1, y == 1
    loss = loss + config.lambda_rep * F.mse_loss(hidden[zero].mean(0), hidden[one].mean(0))
    dp, eo = (
        (p1[zero].mean() - p1[one].mean()).abs(),
        (p1[zero & positive].mean() - p1[one & positive].mean()).abs(),
    )
    loss = loss + config.lambda_fair * (dp + eo) / 2
    if config.lambda_attention:
        (gradient,) = torch.autograd.grad((logits[:, 1] - logits[:, 0]).sum(), x, create_graph=True)
        shares = F.normalize((x * gradient).abs(), p=1, dim=-1)
        q0, q1 = shares[zero].mean(0), shares[one].mean(0)
        mean = (q0 + q1) / 2
        loss = (
            loss
            + config.lambda_attention
            * ((q0 * (q0 / mean).log2()).sum() + (q1 * (q1 / mean).log2()).sum())
            / 2
        )
    return loss


def plain_run(data, config, epochs, warm, hidden=8, clip=1.0):
    "Parameters after the last epoch."
    x, y, sens = (
        data.x[data.train_mask].double(),
        data.y[data.train_mask],
        data.sens[data.train_mask],
    )
    model = init_population([config.seed], x.shape[1], hidden, dropout=0.0).module(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    for epoch in range(1, epochs + 1):
        optimizer.zero_grad()
        plain_loss(model, x, y, sens, config, epoch <= warm).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    return {k: v.detach() for k, v in model.state_dict().items()}


@pytest.mark.parametrize('name', ['expert1', 'expert2', 'expert3'])
def test_engine_equals_a_plain_pytorch_loop(data, evaluator, name):
    base = dict(lr=3e-3, weight_decay=1e-3, seed=4)
    configs = {
        'expert1': [TrainConfig(**base), TrainConfig(lr=0.1, weight_decay=0.1, seed=1)],
        'expert2': [
            TrainConfig(**base, lambda_rep=2.0, lambda_fair=3.0),
            TrainConfig(**base, lambda_rep=9.0),
            TrainConfig(1e-2, lambda_fair=0.2),
        ],
        'expert3': [
            TrainConfig(**base, lambda_attention=5.0),
            TrainConfig(2e-2, lambda_attention=0.5, lambda_fair=1.0, lambda_rep=1.0),
        ],
    }[name]
    spec, epochs = EXPERTS[name], 60
    models = train_population(
        data,
        configs,
        spec,
        evaluator=evaluator,
        settings=TrainSettings(epochs=epochs, val_every=epochs, dropout=0.0),
    )
    for config, model in zip(configs, models):
        assert model.epoch == model.epochs_run == epochs and model.error is None
        expected = plain_run(data, config, epochs, warm=int(spec.warmup * epochs))
        for k in PARAMETERS:
            torch.testing.assert_close(
                model.population.params[k][0], expected[k], rtol=0, atol=1e-7
            )
    p1 = models[0].population.module(0).double()(data.x[data.val_mask].double()).softmax(-1)[:, 1]
    y, sens = data.y[data.val_mask], data.sens[data.val_mask]
    assert models[0].metrics['utility'] == pytest.approx(
        scores_metrics.utility(p1, y).item(), abs=1e-9
    )
    assert models[0].metrics['fair_result'] == pytest.approx(
        scores_metrics.fair_result(p1, y, sens).item(), abs=1e-9
    )


def test_clipping_bounds_the_step_of_each_model(data, evaluator):
    config = TrainConfig(1e-2, lambda_rep=1e4)
    for clip in (1e-9, 1.0):
        train = TrainSettings(epochs=30, val_every=30, dropout=0.0, clip=clip)
        (model,) = train_population(data, [config], evaluator=evaluator, settings=train)
        expected = plain_run(data, config, 30, warm=0, clip=clip)
        for k in PARAMETERS:
            torch.testing.assert_close(
                model.population.params[k][0], expected[k], rtol=0, atol=1e-7
            )


def test_dropout_acts_while_training_only(data, evaluator):
    run = lambda dropout: train_population(
        data,
        [TrainConfig(1e-2)],
        evaluator=evaluator,
        settings=TrainSettings(epochs=30, val_every=30, dropout=dropout),
    )[0]
    assert not same_bits(run(0.0), run(0.3))
    model = run(0.3)
    assert model.population.dropout == 0.3
    again = evaluator.scores(model.population)
    assert {k: v.item() for k, v in again.items()} == {
        k: pytest.approx(model.metrics[k], abs=1e-12) for k in again
    }


def test_hidden_width_and_precision_are_settings(data, evaluator):
    run = lambda dtype: train_population(
        data,
        [TrainConfig(1e-2, lambda_attention=0.1, lambda_adv=0.1, lambda_fair=0.1)],
        evaluator=evaluator,
        settings=TrainSettings(epochs=30, val_every=30, hidden=5, dtype=dtype),
    )[0]
    single, double = run('float32'), run('float64')
    assert single.population.params['hidden.weight'].shape == (1, 5, 12)
    assert (
        single.population.params['out.weight'].dtype,
        double.population.params['out.weight'].dtype,
    ) == (torch.float32, torch.float64)
    assert single.metrics['utility'] == pytest.approx(double.metrics['utility'], abs=1e-2)
    for k in PARAMETERS:
        torch.testing.assert_close(
            single.population.params[k].double(), double.population.params[k], rtol=0, atol=1e-3
        )


def test_training_leaves_the_data_alone(data):
    before = {k: v.clone() for k, v in data if isinstance(v, torch.Tensor)}
    train_population(
        data,
        [TrainConfig(1e-2, lambda_attention=1.0, lambda_adv=1.0)],
        settings=TrainSettings(epochs=3),
    )
    assert all(torch.equal(v, data[k]) for k, v in before.items())


# --- neighbours, seeds ----------------------------------------------------------------------------


def mixed_configs(n=30):
    "All sorts: rates from slow to fast, every coefficient here 0 and there not, many seeds."
    generator = torch.Generator().manual_seed(0)
    u = torch.rand(n, 7, generator=generator, dtype=torch.float64).tolist()
    coefficient = lambda a, i, k: 0.0 if (i >> k) % 2 else 10 ** (2 * a - 1.5)
    return [
        TrainConfig(
            10 ** (-3.5 + 2 * r[0]),
            10 ** (-6 + 3 * r[1]),
            *(coefficient(r[2 + k], i, k) for k in range(4)),
            seed=int(5 * r[6]),
        )
        for i, r in enumerate(u)
    ]


class Everyone:
    "Stands for a trainer whose models all run until they are left out."

    def __init__(self, n):
        self.running = list(range(n))

    def keep(self, which):
        self.running = [self.running[k] for k in which]


@pytest.mark.parametrize('name, sign', [('expert3', 1), ('gate', -1)])
def test_who_is_worse_than_the_median_after_two_scores_stops(name, sign):
    spec = EXPERTS.get(name, GATE)
    scores = [sign * v for v in (5.0, 4.0, 3.0, 2.0, 1.0, 9.0)]

    def run(n, spec=spec):
        trainer = Everyone(n)
        run = TrainingRun(trainer, [None] * n, spec, None, None, TrainSettings())
        return run, trainer, [r.selection for r in run.records]

    run_, trainer, selections = run(7)
    offer = lambda s, epoch, score: s.offer(epoch, 0.0, score, torch.zeros(1))
    for epoch in (0, 100):  # the start is not a try
        for s, score in zip(selections, scores):
            offer(s, epoch, score)
        run_.stop_behind()
        assert trainer.running == list(range(7))
    for s in selections[:5]:  # the sixth has one score only, the seventh none
        offer(s, 200, sign * 99.0)
    run_.stop_behind()  # the median of the six is 3.5
    assert TRIES == 2 and trainer.running == [2, 3, 4, 5, 6]

    few, trainer, selections = run(FEWEST - 1)
    aim, every, wanted = run(7, dataclasses.replace(spec, several=True))
    for s, score in [*zip(selections, scores), *zip(wanted, scores)]:
        for epoch in (100, 200):
            offer(s, epoch, score)
    few.stop_behind(), aim.stop_behind()
    assert len(trainer.running) == FEWEST - 1 and len(every.running) == 7


def test_equal_scores_are_not_behind_each_other(data):
    trainer = Everyone(6)
    run = TrainingRun(trainer, [None] * 6, EXPERTS['expert3'], None, None, TrainSettings())
    for epoch in (100, 200, 300):
        for record in run.records:
            record.selection.offer(epoch, 0.0, 0.25, torch.zeros(1))
    run.stop_behind()
    assert len(trainer.running) == 6


def test_explanations_of_checkpoints_that_nothing_is_chosen_among_are_not_computed(data):
    class Counting(Evaluator):
        explained = 0

        def scores(self, population, procedure=True):
            self.explained += procedure * len(population)
            return super().scores(population, procedure)

    configs = [TrainConfig(lr=lr) for lr in (1e-2, 1e-3, 1e-9, 1e-10)]
    settings = TrainSettings(epochs=150, val_every=50, patience=50)
    for floor in (Floor(0.8, 0.8, 0.9, 0.9), Floor(1.0, 1.0, 1.0, 1.0), None):
        counting = Counting(data)
        models = train_population(
            data, configs, EXPERTS['expert1'], evaluator=counting, floor=floor, settings=settings
        )
        explained = [m for m in models if 'final_score' in m.metrics]
        feasible = [m for m in models if m.feasible]
        assert counting.explained == len(explained) == max(1, len(feasible))
        assert all(m in explained for m in feasible)
        if not feasible:
            lacking = lambda m: sum(max(0.0, c) for c in m.constraints)
            assert lacking(explained[0]) == min(map(lacking, models))


@pytest.mark.parametrize('name', ['expert2', 'expert3'])
def test_alone_and_among_thirty(data, evaluator, name):
    configs, train = mixed_configs(), TrainSettings(epochs=150, val_every=10, patience=2)
    floor = Floor(0.8, 0.85, 0.85, 0.6)
    spec = dataclasses.replace(
        EXPERTS[name], several=True
    )  # nobody stops for being behind the others
    together = train_population(
        data, configs, spec, evaluator=evaluator, floor=floor, settings=train
    )
    ends = [m.epochs_run for m in together]
    assert len(set(ends)) >= 4 and any(m.feasible for m in together)  # they stop at different times
    assert {k: sum(getattr(c, k) != 0 for c in configs) for k in LAMBDAS} == {
        k: pytest.approx(15, abs=2) for k in LAMBDAS
    }
    order = sorted(range(30), key=ends.__getitem__)
    for i in [order[k] for k in (0, 4, 9, 14, 19, 24, 29)]:
        (alone,) = train_population(
            data, [configs[i]], spec, evaluator=evaluator, floor=floor, settings=train
        )
        assert_close(together[i], alone)
        assert [h['epoch'] for h in together[i].history] == [h['epoch'] for h in alone.history]
    backwards = train_population(
        data, configs[::-1], spec, evaluator=evaluator, floor=floor, settings=train
    )
    for a, b in zip(together, backwards[::-1]):
        assert a.config == b.config
        assert_close(a, b)


def test_same_seed_same_bits_other_seed_other_model(data, evaluator):
    def run(seed):
        configs = [
            TrainConfig(1e-2, lambda_attention=1.0, lambda_adv=1.0, seed=seed),
            TrainConfig(1e-3, seed=seed),
        ]
        return train_population(
            data,
            configs,
            EXPERTS['expert3'],
            evaluator=evaluator,
            settings=TrainSettings(epochs=40, val_every=20),
        )

    torch.manual_seed(1)
    first = run(7)
    torch.manual_seed(2)  # the global generator has no part in it
    again, other = run(7), run(8)
    for a, b, c in zip(first, again, other):
        assert same_bits(a, b) and a.metrics == b.metrics and a.history == b.history
        assert not any(
            torch.equal(a.population.params[k], c.population.params[k]) for k in PARAMETERS
        )
        assert a.metrics != c.metrics


# --- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'bad',
    [
        TrainConfig(math.nan),
        TrainConfig(math.inf),
        TrainConfig(1e-3, lambda_fair=math.nan),
        TrainConfig(1e-3, lambda_attention=math.inf),
        TrainConfig(1e-3, lambda_adv=math.nan),
    ],
    ids=repr,
)
def test_a_configuration_that_fails_is_reported_and_its_neighbours_go_on(data, evaluator, bad):
    good = [
        TrainConfig(1e-2, seed=1),
        TrainConfig(3e-3, lambda_fair=1.0, lambda_attention=0.5, lambda_adv=0.1, seed=2),
    ]
    train = TrainSettings(epochs=40, val_every=10)
    expected = train_population(data, good, evaluator=evaluator, settings=train)
    first, failed, second = train_population(
        data, [good[0], bad, good[1]], evaluator=evaluator, settings=train
    )
    assert_close(first, expected[0])
    assert_close(second, expected[1])
    assert 'NaN or infinite' in failed.error and 'epoch 10' in failed.error and failed.config == bad
    assert (
        failed.population,
        failed.score,
        failed.metrics,
        failed.feasible,
        failed.epochs_run,
    ) == (None, None, {}, False, 10)
    (alone,) = train_population(data, [bad], evaluator=evaluator, settings=train)
    assert alone.error == failed.error


@pytest.mark.parametrize('lr', [1e155, 1e200, 1e300])
def test_finite_parameters_that_overflow_fail_like_infinite_ones(data, evaluator, lr):
    train = TrainSettings(epochs=2, val_every=1)
    good, failed = train_population(
        data, [TrainConfig(1e-2), TrainConfig(lr)], evaluator=evaluator, settings=train
    )
    assert good.error is None and failed.error is not None


def test_wrong_settings_are_refused(data):
    for wrong in (
        dict(epochs=0),
        dict(val_every=0),
        dict(patience=0),
        dict(hidden=0),
        dict(dropout=1.0),
        dict(dropout=-0.1),
        dict(batch_size=0),
        dict(dtype='float16'),
    ):
        ((name, value),) = wrong.items()
        with pytest.raises(MoEExpertError, match=f'{name}.*{value}'):
            TrainSettings(**wrong)
    with pytest.raises(MoEExpertError, match='nothing to train'):
        train_population(data, [])
    for wrong in (dict(utility_fraction=1.1), dict(auc_fraction=-0.1)):
        with pytest.raises(MoEExpertError, match=next(iter(wrong))):
            reference_floor(data, **wrong)
    with pytest.raises(MoEExpertError, match='abacus'):
        resolve_device('abacus')
    assert (
        resolve_device('auto').type == ('cuda' if torch.cuda.is_available() else 'cpu')
        and resolve_device('cpu').type == 'cpu'
    )


# --- selection ------------------------------------------------------------------------------------


def oracle(offers, maximize, patience):
    "(epoch of the checkpoint, epoch of the stop) for offers (epoch, violation, score)."
    seen, since = [], None
    for epoch, violation, score in offers:
        seen.append((epoch, violation, score))
        feasible = [(e, s) for e, v, s in seen if v == 0]
        if not feasible:
            continue
        best = max(feasible, key=lambda o: (o[1] if maximize else -o[1], -o[0]))
        since = sum(e > best[0] for e, _, _ in seen)
        if since >= patience:
            break
    if since is not None:
        return best[0], epoch
    return min(seen, key=lambda o: (o[1], o[0]))[0], epoch


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.0, 0.1, 0.2, 0.3]), st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5])
        ),
        min_size=1,
        max_size=15,
    ),
    st.booleans(),
    st.integers(1, 4),
)
def test_selection_keeps_the_best_feasible_and_waits_from_the_first_one(offers, maximize, patience):
    offers = [(100 * (i + 1), v, s) for i, (v, s) in enumerate(offers)]
    selection = Selection(maximize)
    for epoch, violation, score in offers:
        params = torch.tensor([float(epoch)])
        selection.offer(epoch, violation, score if violation == 0 else None, params)
        params.zero_()  # what was kept is a copy
        if selection.waited >= patience:
            break
    assert (selection.epoch, epoch) == oracle(offers, maximize, patience)
    assert selection.params.item() == selection.epoch
    chosen = next(o for o in offers if o[0] == selection.epoch)
    assert selection.violation == chosen[1] and selection.score == (
        chosen[2] if chosen[1] == 0 else None
    )


def violations(model, floor, warm):
    "(epoch, violation, fair_result) after the warm-up; both classes are taken to be predicted."
    return [
        (
            h['epoch'],
            max(0.0, floor.utility - h['utility']) + max(0.0, floor.auc - h['auc']),
            h['fair_result'],
        )
        for h in model.history
        if h['epoch'] > warm
    ]


def late_floor(models):
    "A floor that most runs reach only after a while."
    middle = [m.history[len(m.history) // 2] for m in models]
    utility, auc = (sorted(h[k] for h in middle)[len(middle) // 2] for k in ('utility', 'auc'))
    return Floor(utility, auc, 1.0, 1.0)


def test_patience_counts_from_the_first_feasible_checkpoint_after_the_warm_up(data, evaluator):
    spec, train = EXPERTS['expert2'], TrainSettings(epochs=400, val_every=10, patience=10**6)
    configs = [
        TrainConfig(lr, lambda_rep=f, lambda_fair=f, seed=s)
        for s, lr in enumerate((1e-3, 2e-3, 5e-3))
        for f in (0.01, 0.1, 1.0, 4.0)
    ]
    free = train_population(data, configs, spec, evaluator=evaluator, settings=train)
    assert all(m.epochs_run == 400 for m in free)
    floor, warm = late_floor(free), int(spec.warmup * 400)
    stopped = train_population(
        data,
        configs,
        spec,
        evaluator=evaluator,
        floor=floor,
        settings=dataclasses.replace(train, patience=2),
    )
    late = 0
    for model, whole in zip(stopped, free):
        offers = violations(whole, floor, warm)
        assert (model.epoch, model.epochs_run) == oracle(offers, False, 2)
        assert model.epoch > warm and model.feasible == any(v == 0 for _, v, _ in offers)
        said = [h['feasible'] for h in model.history if h['epoch'] > warm]
        assert said == [v == 0 for _, v, _ in offers][: len(said)]
        first = next((e for e, v, _ in offers if v == 0), None)
        late += first is not None and first > warm + 2 * 10
        if first is None:
            assert model.epochs_run == 400
    assert (
        late >= 3
    )  # runs that a patience counted from the start would have ended without a feasible checkpoint
    assert len({m.epochs_run for m in stopped}) >= 3


def test_without_a_feasible_checkpoint_the_least_violating_is_kept_and_nobody_stops(
    data, evaluator
):
    floor, train = Floor(1.0, 1.0, 1.0, 1.0), TrainSettings(epochs=200, val_every=10, patience=1)
    configs = [TrainConfig(lr, lambda_fair=0.5, seed=s) for s, lr in enumerate((1e-4, 3e-3, 3e-2))]
    for model in train_population(
        data, configs, EXPERTS['expert2'], evaluator=evaluator, floor=floor, settings=train
    ):
        assert not model.feasible and model.error is None and model.epochs_run == 200
        assert model.epoch == min(violations(model, floor, 40), key=lambda o: o[1])[0]
        assert model.constraints[:2] == (
            pytest.approx(1 - model.metrics['utility']),
            pytest.approx(1 - model.metrics['auc']),
        )
        assert len(model.constraints) == len(CONSTRAINTS) == 3


def test_last_epoch_is_validated(data, evaluator):
    (model,) = train_population(
        data,
        [TrainConfig(1e-2)],
        evaluator=evaluator,
        settings=TrainSettings(epochs=25, val_every=10, patience=9),
    )
    assert [h['epoch'] for h in model.history] == [10, 20, 25] and model.epochs_run == 25
    (model,) = train_population(
        data,
        [TrainConfig(1e-2)],
        EXPERTS['expert2'],
        evaluator=evaluator,
        settings=TrainSettings(epochs=1),
    )
    assert model.epoch == model.epochs_run == 1


def test_progress_is_told_at_every_validation(data, evaluator):
    seen, train = [], TrainSettings(epochs=200, val_every=10, patience=1)
    models = train_population(
        data,
        mixed_configs(6),
        evaluator=evaluator,
        settings=train,
        progress=lambda *now: seen.append(now),
    )
    ends = [m.epochs_run for m in models]
    assert [e for e, _ in seen] == list(range(10, max(ends) + 1, 10)) and len(set(ends)) > 2
    assert [r for e, r in seen if e < 200] == [
        sum(end > e for end in ends) for e, _ in seen if e < 200
    ]


# --- the floor ------------------------------------------------------------------------------------


def test_reference_floor_is_the_plain_models(data, evaluator):
    train = TrainSettings(epochs=200, val_every=50)
    floor = reference_floor(data, seed=3, evaluator=evaluator, settings=train)
    (model,) = train_population(
        data, [TrainConfig(1e-3, 1e-5, seed=3)], evaluator=evaluator, settings=train
    )
    assert (floor.reference_utility, floor.reference_auc) == (
        model.metrics['utility'],
        model.metrics['auc'],
    )
    assert floor.utility == pytest.approx(0.9 * model.metrics['utility'])
    assert floor.auc == pytest.approx(0.5 + 0.9 * (model.metrics['auc'] - 0.5))
    other = reference_floor(
        data, seed=4, utility_fraction=0.5, auc_fraction=0.0, evaluator=evaluator, settings=train
    )
    assert other.reference_utility != floor.reference_utility
    assert (other.utility, other.auc) == (pytest.approx(other.reference_utility / 2), 0.5)


def test_a_constant_predictor_is_infeasible_for_every_positive_fraction(data, evaluator):
    constant = Population(
        {'hidden.weight': torch.randn(1, 8, 12), 'out.weight': torch.zeros(1, 2, 8)}
    )
    scores = evaluator.scores(constant)
    assert (
        max(scores['fair_result'].item(), scores['fair_procedure'].item()) < 1e-12
    )  # as fair as can be
    scores['selection_rate'] = torch.ones(1)
    for fraction in (0.0, 0.1, 0.9):
        values = Floor(0.8, 0.8, fraction, fraction).constraints(scores)[0]
        assert (values > 0).tolist() == [
            0.8 * fraction > scores['utility'].item(),
            fraction > 0,
            True,
        ]


def test_a_penalty_that_makes_constants_does_not_win(data, evaluator):
    "Under a huge penalty the fairest checkpoint is a constant; the floor refuses or marks it."
    config, train = (
        TrainConfig(1e-2, lambda_fair=300.0, lambda_rep=300.0),
        TrainSettings(epochs=200, val_every=10, patience=50),
    )
    floor = reference_floor(data, evaluator=evaluator, settings=TrainSettings(epochs=400))
    (bare,) = train_population(
        data, [config], EXPERTS['expert2'], evaluator=evaluator, settings=train
    )
    (held,) = train_population(
        data, [config], EXPERTS['expert2'], evaluator=evaluator, floor=floor, settings=train
    )
    assert (
        bare.score < 0.05 and bare.metrics['auc'] < floor.auc and bare.feasible
    )  # nothing was asked of it
    assert held.metrics['auc'] > bare.metrics['auc'] and held.score > bare.score
    assert held.feasible == (
        held.metrics['utility'] >= floor.utility and held.metrics['auc'] >= floor.auc
    )


# --- warm-up --------------------------------------------------------------------------------------


def test_fairness_terms_act_before_selection(data, evaluator):
    "In the published code early stopping ends the run inside the warm-up; penalties never act."
    spec, train = EXPERTS['expert2'], TrainSettings(epochs=100, val_every=5, patience=1)
    configs = [
        TrainConfig(1e-2, lambda_rep=f, lambda_fair=f, seed=s)
        for s in range(3)
        for f in (0.0, 1.0, 10.0)
    ]
    models = train_population(data, configs, spec, evaluator=evaluator, settings=train)
    warm = int(spec.warmup * 100)
    assert 0 < warm <= 25
    for i in range(0, 9, 3):
        none, some, much = models[i : i + 3]
        for h, g, k in zip(none.history, some.history, much.history):
            if h['epoch'] <= warm:
                assert h == g == k
        assert not (none.history[-1]['auc'] == some.history[-1]['auc'] == much.history[-1]['auc'])
        assert all(m.epoch > warm and m.epochs_run > warm for m in (none, some, much))
        assert not same_bits(none, some) and not same_bits(some, much)


def test_warm_up_is_cross_entropy_alone(data, evaluator):
    "Stopped at its end, a run is that of expert 1, whatever its coefficients."
    late = dataclasses.replace(EXPERTS['expert2'], warmup=39 / 40)
    train = TrainSettings(epochs=40, val_every=40)
    configs = [
        TrainConfig(1e-2, lambda_rep=5.0, lambda_fair=5.0, lambda_attention=5.0, lambda_adv=5.0)
    ]
    shorter = dataclasses.replace(train, epochs=39, val_every=39)
    (penalised,) = train_population(data, configs, late, evaluator=evaluator, settings=train)
    (plain,) = train_population(data, [TrainConfig(1e-2)], evaluator=evaluator, settings=train)
    (before,) = train_population(data, [TrainConfig(1e-2)], evaluator=evaluator, settings=shorter)
    for k in PARAMETERS:
        step = (penalised.population.params[k] - before.population.params[k]).abs()
        assert 0 < step.max() < 2e-2  # one epoch's step apart
        assert not torch.equal(penalised.population.params[k], plain.population.params[k])


# --- the work of a step ---------------------------------------------------------------------------


class Dispatched(TorchDispatchMode):
    "Counts the operations that PyTorch starts."

    count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += 1
        return operation(*args, **kwargs or {})


@pytest.mark.parametrize('expert,at_most', [('expert1', 52), ('expert2', 72), ('expert3', 136)])
def test_operations_of_a_step(data, expert, at_most):
    "On small data the time of a step is their number."
    lambdas = dict.fromkeys(EXPERTS[expert].lambdas, 0.1)
    configs = [TrainConfig(1e-3, **lambdas) for _ in range(10)]
    trainer = PopulationTrainer(data, configs, TrainSettings(), torch.device('cpu'), 0)
    trainer.epoch(warm=False)  # draws the masks of a hundred steps
    with Dispatched() as counter:
        trainer.epoch(warm=False)
    assert counter.count <= at_most


# --- minibatches ----------------------------------------------------------------------------------


def test_rows_of_a_step():
    rows = TrainSettings().rows
    assert [rows(n) for n in (1, 2_048, 2_049, 10_000, 500_000)] == [1, 2_048, 683, 1_000, 1_022]
    for n in range(2_049, 9_000, 97):
        assert rows(n) <= 1_024 and n % rows(n) < n // rows(n)  # fewer are left over than steps
    assert (
        TrainSettings(batch_size=100).rows(1000) == 100
        and TrainSettings(batch_size=100).rows(60) == 60
    )


@pytest.mark.parametrize(
    'n,settings,total',
    [
        (100, {}, 2_000),  # all nodes at once: no limit
        (2_048, {}, 2_000),
        (2_048, dict(epochs=5_000), 5_000),
        (2_048, dict(steps=70), 70),  # unless there is one
        (2_049, {}, 4_000),
        (2_049, dict(epochs=1_000), 3_000),  # three steps a pass
        (500_000, dict(epochs=200), 4_000),
        (500_000, dict(epochs=8), 8 * 489),
        (500_000, dict(steps=5_001), 5_001),
        (500_000, dict(epochs=200, steps=10**9), 200 * 489),
        (1_000, dict(batch_size=100), 4_000),
        (1_000, dict(batch_size=100, epochs=7), 70),
    ],
)
def test_steps_of_a_schedule(n, settings, total):
    settings = TrainSettings(**settings)
    done = [settings.steps_until(epoch, n) for epoch in range(settings.epochs + 1)]
    assert (done[0], done[-1]) == (0, total)
    steps = [b - a for a, b in zip(done, done[1:])]
    assert max(steps) - min(steps) <= 1  # all epochs alike, also where they do not divide


@pytest.fixture
def many(monkeypatch):
    "What counts as many training nodes, and what is done then, for tests on few."
    for name, value in dict(WHOLE_ROWS=90, STEP_ROWS=40, MOST_STEPS=50).items():
        monkeypatch.setattr(experts_trainers, name, value)


class Seen(PopulationTrainer):
    "Writes down what every step sees."

    def __init__(self, *arguments):
        self.steps = []
        super().__init__(*arguments)

    def gradients(self, batch, warm):
        self.steps.append((batch.x[:, 0].tolist(), warm))
        return super().gradients(batch, warm)


def numbered(n):
    "Training nodes that can be told apart by their first feature."
    data = make_synthetic(2 * n, 4, group_bias=2.0)
    data.x[:, 0] = torch.linspace(-1, 1, len(data.x)).double()
    data.train_mask = torch.arange(len(data.x)) % 2 == 0
    return data


@pytest.mark.parametrize('epochs', [3, 20, 49])
@pytest.mark.parametrize('n', [60, 90, 91, 120, 200])
def test_a_run_takes_the_steps_of_its_schedule(many, n, epochs):
    data, configs = numbered(n), [TrainConfig(1e-2)]
    settings = TrainSettings(epochs=epochs, val_every=7, patience=99)
    trainer = Seen(data, configs, settings, torch.device('cpu'), 0)
    evaluator = Evaluator(data, data.train_mask)
    (model,) = run_training(trainer, configs, EXPERTS['expert2'], evaluator, None, settings)
    per_pass = 1 if n <= 90 else math.ceil(n / 40)
    total = epochs if n <= 90 else min(50, epochs * per_pass)
    assert len(trainer.steps) == total and model.epochs_run == epochs
    warm = sum(warm for _, warm in trainer.steps)
    assert warm == int(0.2 * epochs) * total // epochs  # the warm-up is a share of the steps
    seen = [x for step, _ in trainer.steps for x in step]
    per_step = settings.rows(n)
    for start in range(0, total - per_pass + 1, per_pass):  # in each pass everybody is seen once
        once = seen[start * per_step : (start + per_pass) * per_step]
        assert len(set(once)) == len(once) == n - n % per_step
    counts = [seen.count(x) for x in trainer.x[:, 0].tolist()]
    assert n % per_step or max(counts) - min(counts) <= 1


def test_where_the_limit_does_not_bind_epochs_are_passes(data, many):
    "The same bits as a plain loop over passes."
    configs = [TrainConfig(1e-2, lambda_fair=1.0, lambda_rep=1.0), TrainConfig(1e-3, seed=1)]
    settings = TrainSettings(epochs=9)
    trainer, plain = (
        PopulationTrainer(data, configs, settings, torch.device('cpu'), 3) for _ in range(2)
    )
    order = torch.Generator().manual_seed(3)
    for _ in range(9):
        trainer.epoch(warm=False)
        for nodes in minibatches(plain.y, settings.rows(len(plain.y)), order):
            batch = plain._of_nodes(nodes)
            batch.keep = plain.masks.next(len(nodes))
            plain.adam.step(plain.gradients(batch, False))
    assert settings.rows(len(plain.y)) < len(plain.y)
    assert torch.equal(trainer.adam.flat, plain.adam.flat)


def test_graph_attention_has_the_schedule_too(many):
    data, settings = numbered(120), TrainSettings(epochs=49, backbone='gat')
    trainer = experts_trainers.GraphAttentionTrainer(
        data, [TrainConfig(1e-2)], settings, torch.device('cpu'), 0
    )
    assert trainer.sampled is None  # a step's messages count, not those of all nodes
    steps = [list(trainer.batches()) for _ in range(49)]
    assert [len(s) for s in steps] == [1] * 48 + [2]
    degree = torch.bincount(data.edge_index[1], minlength=len(data.x))
    for batch in [b for s in steps for b in s][:3]:
        own = batch.x[batch.edges.nodes][:, 0]
        nodes = torch.isin(data.x[:, 0], own).nonzero()[:, 0]
        assert len(batch.y) == len(nodes) == 40 and data.train_mask[nodes].all()
        assert len(batch.edges.rows) == degree[nodes].sum()


def test_the_floor_has_the_schedule_of_the_trials(many, monkeypatch):
    counted, step = [], StackedAdam.step
    monkeypatch.setattr(StackedAdam, 'step', lambda *a: (counted.append(1), step(*a)))
    reference_floor(numbered(200), settings=TrainSettings(epochs=40, val_every=40))
    assert len(counted) == 50


def test_a_batch_of_all_nodes_is_the_full_batch(data, evaluator):
    configs, n = (
        [TrainConfig(1e-2, lambda_attention=1.0, lambda_fair=1.0)],
        int(data.train_mask.sum()),
    )
    full, same, more = (
        train_population(data, configs, evaluator=evaluator, settings=train)[0]
        for train in (
            TrainSettings(epochs=20, val_every=20, batch_size=b) for b in (None, n, 10 * n)
        )
    )
    assert same_bits(full, same) and same_bits(full, more)


@pytest.fixture(scope='module')
def large():
    return make_synthetic(2000, 12, group_bias=2.0)


def test_minibatches_train_as_well_as_the_full_batch(large):
    evaluator = Evaluator(large, 'val')
    extras = {}, dict(lambda_fair=1.0, lambda_rep=1.0), dict(lambda_attention=1.0)
    configs = [TrainConfig(3e-3, seed=s, **extra) for s in range(3) for extra in extras]
    full = train_population(
        large, configs, evaluator=evaluator, settings=TrainSettings(epochs=300, val_every=300)
    )
    mini = train_population(
        large,
        configs,
        evaluator=evaluator,
        settings=TrainSettings(epochs=75, val_every=75, batch_size=250),
    )
    for a, b in zip(full, mini):
        assert (
            b.metrics['utility'] == pytest.approx(a.metrics['utility'], abs=0.03)
            and b.metrics['auc'] > 0.75
        )
    assert all(
        b.metrics['fair_result'] < a.metrics['fair_result'] for a, b in zip(mini[0::3], mini[1::3])
    )  # the penalties act here too
    assert all(b.metrics['att_jsd'] < a.metrics['att_jsd'] for a, b in zip(mini[0::3], mini[2::3]))


def test_minibatches_are_deterministic_and_independent_of_neighbours(data, evaluator):
    configs, train = (
        mixed_configs(8),
        TrainSettings(epochs=30, val_every=5, patience=2, batch_size=64),
    )
    run = lambda configs, **more: train_population(
        data, configs, EXPERTS['expert2'], evaluator=evaluator, settings=train, **more
    )
    together, again, other = run(configs), run(configs), run(configs, shuffle_seed=1)
    assert len({m.epochs_run for m in together}) > 1
    for a, b, c in zip(together, again, other):
        assert same_bits(a, b) and not same_bits(a, c)
    for i in (0, 3, 7):
        assert_close(together[i], run([configs[i]])[0])


def test_every_node_is_used_in_the_course_of_the_epochs(data, evaluator):
    "200 training nodes in steps of 120: the 80 left over differ from epoch to epoch."
    changed, train = data.clone(), TrainSettings(epochs=6, val_every=6, batch_size=120)
    run = lambda d: train_population(d, [TrainConfig(1e-2)], evaluator=evaluator, settings=train)[0]
    assert 0 < int(data.train_mask.sum()) % 120
    before = run(data)
    for node in data.train_mask.nonzero().squeeze(1)[:10].tolist():
        changed.x = data.x.clone()
        changed.x[node] = -changed.x[node]
        assert not same_bits(run(changed), before)  # moving one node's features moves the result


# --- effects --------------------------------------------------------------------------------------


@pytest.mark.parametrize('world', [0, 1])
def test_raising_a_coefficient_lowers_what_it_penalises(world):
    "Paired seeds on data with a strong planted bias: all but at most one of six, at each rise."
    data, strengths, seeds = (
        make_synthetic(1000, 24, seed=world, group_bias=3.0),
        (0.0, 0.3, 3.0),
        range(6),
    )
    configs = [
        TrainConfig(1e-3, seed=s, **{name: f})
        for name in ('lambda_attention', 'lambda_fair')
        for f in strengths
        for s in seeds
    ]
    models = train_population(data, configs, settings=TrainSettings(epochs=400, val_every=400))
    train = Evaluator(data, data.train_mask)

    def soft(models):
        p1 = torch.cat([m.population.probabilities(data.x, nodes=train.nodes) for m in models])
        return (
            scores_metrics.soft_demographic_parity(p1, train.sens)
            + scores_metrics.soft_equal_opportunity(p1, train.y, train.sens)
        ) / 2

    attention, fair = models[:18], models[18:]
    effects = {
        'ATT_JSD, validation': torch.tensor([m.metrics['att_jsd'] for m in attention]),
        'ATT_JSD, training': torch.cat([train.att_jsd(m.population) for m in attention]),
        'soft gaps, training': soft(fair),
        'fair_result, validation, from none to much': torch.tensor(
            [m.metrics['fair_result'] for m in fair]
        ),
    }
    for name, values in effects.items():
        none, some, much = values.view(3, 6)
        assert (much < none).sum() >= 5, name
        if 'from none' not in name:
            assert (some < none).sum() >= 5 and (much < some).sum() >= 5, name
        assert (none - much).mean() > 0.3 * none.mean(), name  # not by a hair


def test_adversaries_make_the_group_harder_to_guess():
    data = make_synthetic(1000, 24, group_bias=3.0)
    configs = [TrainConfig(3e-3, seed=s, lambda_adv=f) for f in (0.0, 3.0) for s in range(6)]
    models = train_population(
        data, configs, settings=TrainSettings(epochs=400, val_every=400, dropout=0.0)
    )
    p1 = torch.cat(
        [
            m.population.probabilities(data.x, nodes=data.val_mask.nonzero().squeeze(1))
            for m in models
        ]
    )
    guess = (
        scores_metrics.roc_auc(p1, data.sens[data.val_mask]) - 0.5
    ).abs()  # how well the probabilities tell the group
    none, much = guess.view(2, 6)
    assert (much < none).sum() >= 5


# --- what explanations are made for ---------------------------------------------------------------


class Listening(Evaluator):
    "Keeps what it says about procedural fairness."

    def __init__(self, data):
        super().__init__(data, 'val')
        self.heard = []

    def scores(self, population, procedure=True):
        scores = super().scores(population, procedure)
        if procedure:
            self.heard.append(scores)
        return scores


def test_expert_3_takes_the_best_of_its_feasible_checkpoints_and_explains_no_other():
    data = make_synthetic(400, 16, group_bias=3.0)
    train, floor = TrainSettings(epochs=300, val_every=10, patience=4), Floor(0.7, 0.75)
    for config in (
        TrainConfig(1e-2, lambda_attention=0.1, lambda_adv=0.1),
        TrainConfig(3e-3, lambda_attention=5.0, seed=1),
    ):
        evaluator = Listening(data)
        (model,) = train_population(
            data, [config], EXPERTS['expert3'], evaluator=evaluator, floor=floor, settings=train
        )
        during = [h['fair_procedure'].item() for h in evaluator.heard]
        epochs = [h['epoch'] for h in model.history if h['feasible']]
        assert len(during) == len(epochs) > 4 and all(
            h['utility'] >= floor.utility for h in evaluator.heard
        )
        best = during.index(min(during))
        assert model.score == during[best] and model.epoch == epochs[best]
        assert model.metrics == {k: v.item() for k, v in evaluator.heard[best].items()}


def test_of_many_nodes_a_sample_selects_and_all_are_explained_once(monkeypatch):
    "The small version of a million people: what is explained, node by node and model by model."
    for name, value in (('ALL_EXPLAINED', 900), ('SAMPLE', 200), ('RARE', 10)):
        monkeypatch.setattr(scores_evaluation, name, value)
    data = make_synthetic(4000, 16, group_bias=3.0)
    work, made = [], []
    explain, make = GraphLIME.top_features, GraphLIME.__init__
    monkeypatch.setattr(
        GraphLIME,
        'top_features',
        lambda self, p1: work.append((len(p1), len(self.nodes))) or explain(self, p1),
    )
    monkeypatch.setattr(
        GraphLIME, '__init__', lambda self, *a, **k: made.append(1) or make(self, *a, **k)
    )
    evaluator, train = Evaluator(data), TrainSettings(epochs=60, val_every=10)
    floor = reference_floor(data, evaluator=evaluator, settings=train)
    assert work == []  # a floor needs no explanations
    configs = [TrainConfig(1e-2, lambda_attention=0.1, seed=s) for s in range(2)]
    models = train_population(
        data, configs, EXPERTS['expert3'], evaluator=evaluator, floor=floor, settings=train
    )
    *during, end = work
    assert len(during) > 1 and {nodes for _, nodes in during} == {200}
    assert end == (2, 1000) and len(made) == 1
    for model in models:  # what is reported is exact
        exact = Evaluator(data).scores(model.population)
        for name, value in model.metrics.items():
            assert value == pytest.approx(exact[name].item(), abs=1e-9), name


def test_sample_has_the_shares_of_the_nodes_and_is_missing_where_it_would_be_too_small(monkeypatch):
    for name, value in (('ALL_EXPLAINED', 400), ('SAMPLE', 250), ('RARE', 20)):
        monkeypatch.setattr(scores_evaluation, name, value)
    evaluator = Evaluator(make_synthetic(4000, 8))
    sample = evaluator.sample
    assert sample is evaluator.sample and sample.sample is None and len(sample.nodes) == 250
    share = lambda e, y, sens: ((e.y == y) & (e.sens == sens)).double().mean().item()
    for kind in itertools.product((0, 1), repeat=2):
        assert abs(share(evaluator, *kind) - share(sample, *kind)) <= 1 / 250
    weight = torch.randn(2, 8, generator=torch.Generator().manual_seed(0)).double()
    population = Linear(weight, torch.zeros(2).double())
    again = Evaluator(evaluator.data, sample.nodes).scores(population)
    for name, value in sample.scores(population).items():
        torch.testing.assert_close(value, again[name], atol=1e-9, rtol=0)
    monkeypatch.setattr(scores_evaluation, 'RARE', 100)
    assert Evaluator(evaluator.data).sample is None
    monkeypatch.setattr(scores_evaluation, 'ALL_EXPLAINED', 1000)
    assert Evaluator(evaluator.data).sample is None
