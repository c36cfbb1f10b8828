"Cross-fitted integration: who taught whom, exact scores out of fold, prices, any data."

import warnings
from copy import copy
from dataclasses import replace

import pytest
import torch

from moe_expert.data.assembly import scale_features
from moe_expert.data.synthetic import make_synthetic
from moe_expert.errors import ArgumentError, UsefulnessWarning
from moe_expert.estimator import FairMoEClassifier
from moe_expert.experts.floor import Floor
from moe_expert.experts.initialisation import init_population
from moe_expert.experts.losses import GroupWeights, soft_gaps, spread_within_classes
from moe_expert.experts.populations import joined
from moe_expert.experts.trainers import WHOLE_ROWS
from moe_expert.mixture.comparison import out_of_fold_words
from moe_expert.mixture.crossfit import (
    CrossfitSettings,
    OutOfFold,
    best_ways,
    choose_model,
    crossfit,
    crossfitted,
    restored,
    train_ways,
)
from moe_expert.mixture.ensemble import Ensemble, mean_of
from moe_expert.mixture.gate_training import GateSettings
from moe_expert.mixture.teachers import equal_parts
from moe_expert.mixture.verify import verify
from moe_expert.parameters import PRICES
from moe_expert.scores.attributions import integrated_gradients
from moe_expert.scores.evaluation import Evaluator, join_records
from moe_expert.scores.metrics import demographic_parity, equal_opportunity
from moe_expert.trainer import MoESettings, MoETrainer

FEW = CrossfitSettings(steps=24, parts=3)
NO_FLOOR = Floor(0.0, 0.5)


def people(n=240, backbone='mlp', groups=2, weighted=False, seed=0):
    "Data, three untrained experts, and the parts of the validation nodes."
    data = make_synthetic(n, n_features=5, seed=seed, group_bias=1.0)
    if groups > 2:
        data.sens = (torch.arange(n) * 7) % groups
        data.group_names = [f'g{k}' for k in range(groups)]
    if weighted:
        data.weight = 1.0 + (torch.arange(n) % 3).double()
    experts = init_population([1, 2, 3], 5, backbone=backbone)
    parts = equal_parts(data.val_mask.nonzero()[:, 0], data, FEW.parts, seed=0)
    return data, experts, parts


def same(a, b):
    return all(torch.equal(a.params[k], b.params[k]) for k in a.params)


def flipped(data, nodes):
    other = copy(data)
    other.y = data.y.clone()
    other.y[nodes] = 1 - other.y[nodes]
    return other


def test_networks_of_a_part_do_not_know_its_labels():
    data, experts, parts = people()
    before = crossfit(experts, data, parts, FEW, seed=0)
    after = crossfit(experts, flipped(data, parts[1]), parts, FEW, seed=0)
    ways = list(before.ways)
    for k, unchanged in enumerate((False, True, False)):
        a, b = (c.means([ways], part=k).networks for c in (before, after))
        assert same(a, b) is unchanged


def test_labels_of_the_test_nodes_change_nothing():
    data, experts, _ = people()
    found = []
    for d in (data, flipped(data, data.test_mask)):
        found.append(crossfitted(experts, d, Evaluator(d, 'val'), NO_FLOOR, FEW))
    first, second = found
    assert same(first.ensemble.networks, second.ensemble.networks)
    assert torch.equal(first.ensemble.shares, second.ensemble.shares)
    assert first.chosen == second.chosen and first.ways == second.ways
    assert torch.equal(first.nested.p1, second.nested.p1)


def test_every_validation_node_is_judged_by_its_own_part():
    data, experts, parts = people()
    made = crossfit(experts, data, parts, FEW, seed=0)
    record = OutOfFold(made, Evaluator(data, 'val')).everywhere([[0], [2, 5]])
    assert record.nodes.tolist() == data.val_mask.nonzero()[:, 0].tolist()
    train = data.train_mask.nonzero()[:, 0]
    for k, part in enumerate(parts):
        others = torch.cat([train, *(p for j, p in enumerate(parts) if j != k)]).sort().values
        own = train_ways(experts, data, others, FEW, seed=0)
        p = own.probabilities(data.x, data.edge_index, part).unflatten(0, (6, 9)).mean(1)
        at = torch.searchsorted(record.nodes, part)
        torch.testing.assert_close(record.p1[0, at], p[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(record.p1[1, at], (p[2] + p[5]) / 2, rtol=0, atol=1e-12)
    scores = record.scores()
    dp = demographic_parity(record.p1, data.sens[record.nodes])
    eo = equal_opportunity(record.p1, data.y[record.nodes], data.sens[record.nodes])
    torch.testing.assert_close(scores['fair_result'], (dp + eo) / 2, rtol=0, atol=1e-12)


def test_the_nested_score_never_chooses_with_the_part_it_scores():
    data, experts, parts = people()
    made = crossfit(experts, data, parts, FEW, seed=0)
    model = choose_model(made, Evaluator(data, 'val'), None, FEW)
    each = OutOfFold(made, Evaluator(data, 'val')).everywhere([[w] for w in made.ways])
    by_hand = []
    for part in parts:
        others = (~torch.isin(each.nodes, part)).nonzero()[:, 0]
        chosen = best_ways(each.at(others).scores(), None)
        at = torch.searchsorted(each.nodes, part)
        by_hand.append(replace(each.at(at), p1=each.at(at).p1[chosen].mean(0, keepdim=True)))
    p1 = torch.cat([r.p1[0] for r in by_hand])[torch.cat([r.nodes for r in by_hand]).argsort()]
    torch.testing.assert_close(model.nested.p1[0], p1, rtol=0, atol=1e-12)


def one_of_label_1(data):
    "In the validation part, only one person of group 1 has label 1."
    at = (data.val_mask & (data.sens == 1) & (data.y == 1)).nonzero()[:, 0]
    data.y[at[1:]] = 0
    return data


def test_where_one_part_has_the_only_people_of_a_kind_there_is_no_nested_score():
    data, experts, _ = people()
    model = crossfitted(experts, one_of_label_1(data), Evaluator(data, 'val'), None, FEW)
    assert model.nested is None and model.ensemble is not None
    for record in model.records.values():
        assert all(bool(s.isfinite().all()) for s in record.scores().values())


def test_the_floor_and_ways_that_diverge():
    data, experts, parts = people()
    evaluator = Evaluator(data, 'val')
    assert crossfitted(experts, data, evaluator, Floor(2.0, 1.0), FEW).ensemble is None
    wild = replace(FEW, rates=(1e-3, 1e40))
    model = crossfitted(experts, data, evaluator, None, wild)
    lost = [way['scores'] is None for way in model.ways]
    assert lost == [False, True] * 3 and not any(w['feasible'] for w in model.ways[1::2])
    assert all(set(ways) <= {0, 2, 4} for ways in model.chosen.values())
    assert model.ensemble.probabilities(data.x).isfinite().all()


def test_prices_choose_by_what_they_cost():
    scores = {
        'utility': torch.tensor([0.9, 0.8, 0.7, 0.6]),
        'fair_result': torch.tensor([0.5, 0.2, 0.1, 0.0]),
        'fair_procedure': torch.tensor([0.1, 0.1, 0.05, 0.0]),
        'auc': torch.full((4,), 0.8),
    }
    assert best_ways(scores, None, 0.0, 2) == [0, 1]
    assert best_ways(scores, None, 4.0, 2) == [3, 2]
    assert best_ways({k: v.flip(0) for k, v in scores.items()}, None, 4.0, 2) == [0, 1]


def test_the_model_is_one_convex_combination_with_exact_attributions():
    data, experts, _ = people()
    model = crossfitted(experts, data, Evaluator(data, 'val'), None, FEW)
    assert model.ensemble.prices == PRICES and set(model.records) == set(PRICES)
    shares = model.ensemble.shares
    torch.testing.assert_close(shares.sum(1), torch.ones(len(PRICES)).double())
    one, nodes = model.ensemble.at(1.0), data.test_mask.nonzero()[:5, 0]
    modules = [one.networks.module(i) for i in range(len(one.networks))]

    class Combined(torch.nn.Module):
        def forward(self, x):
            p = torch.stack([m(x).softmax(-1) for m in modules])
            return (one.shares[0][:, None, None] * p).sum(0).log()

    by_hand = integrated_gradients(Combined(), data.x[nodes].double(), n_steps=256)
    ours = one.attributions(data.x, data.edge_index, nodes)[0]
    torch.testing.assert_close(ours, by_hand, rtol=0, atol=1e-3)
    whole = one.probabilities(data.x, nodes=nodes) - one.probabilities(0 * data.x[:1])
    torch.testing.assert_close(ours.sum(-1), whole[0], rtol=0, atol=1e-9)
    for p in PRICES:  # 3 ways × parts × experts × moments, all alike
        share = model.ensemble.at(p).shares
        assert share.shape == (1, 3 * 3 * 3 * 3) and (share == share[0, 0]).all()


def test_a_checkpoint_says_enough_to_judge_again():
    data, experts, _ = people()
    model = crossfitted(experts, data, Evaluator(data, 'val'), None, FEW, seed=4)
    about = {'ways': list(model.crossfit.ways), 'parts': FEW.parts, 'seed': 4}
    again = restored(model.ensemble, about, data)
    record = OutOfFold(again, Evaluator(data, 'val')).everywhere([model.chosen[1.0]])
    assert torch.equal(record.p1, model.records[1.0].p1)


@pytest.mark.parametrize(
    'backbone', ['gcn', 'sage', 'gin', pytest.param('gat', marks=pytest.mark.slow)]
)
def test_graph_backbones(backbone):
    data, experts, parts = people(backbone=backbone)
    few = replace(FEW, steps=4, parts=2, losses=((1.0, 1.0),))
    model = crossfitted(experts, data, Evaluator(data, 'val'), None, few)
    scores = Evaluator(data, 'test').scores(model.ensemble.at(1.0))
    assert all(value.isfinite().all() for value in scores.values())
    if backbone == 'gat':
        assert scores['completeness'].item() < 1e-3


@pytest.mark.parametrize('groups, weighted', [(3, False), (2, True), (5, True)])
def test_any_groups_and_weights(groups, weighted):
    data, experts, _ = people(300, groups=groups, weighted=weighted)
    model = crossfitted(experts, data, Evaluator(data, 'val'), None, FEW)
    record = model.records[1.0]
    assert (record.weight is not None) is weighted
    decided = (record.p1[0] >= 0.5).double()
    weight = torch.ones_like(decided) if record.weight is None else record.weight
    rates = [
        ((decided * weight)[record.sens == g].sum() / weight[record.sens == g].sum()).item()
        for g in range(groups)
    ]
    assert record.scores()['dp'].item() == pytest.approx(max(rates) - min(rates), abs=1e-12)


def test_many_nodes_are_taught_in_minibatches():
    experts = init_population([0], 5)
    assert FEW.training(experts, WHOLE_ROWS).batch_size is None
    settings = CrossfitSettings().training(experts, WHOLE_ROWS + 1)
    assert settings.rows(WHOLE_ROWS + 1) == 512
    assert settings.steps_until(settings.epochs, WHOLE_ROWS + 1) == 1000
    assert settings.steps_until(settings.epochs // 2, 100_000) == 500
    whole = CrossfitSettings().training(experts, 500)
    assert [whole.steps_until(e, 500) for e in (300, 450, 600)] == [300, 450, 600]


def test_parts_have_equal_shares_of_all_cells():
    data, _, _ = people(600, groups=3)
    val = data.val_mask.nonzero()[:, 0]
    parts = equal_parts(val, data, 5, seed=1)
    assert sorted(torch.cat(parts).tolist()) == val.tolist()
    sizes = [len(p) for p in parts]
    assert max(sizes) - min(sizes) <= 1
    for g in range(3):
        for y in (0, 1):
            counts = [int(((data.sens[p] == g) & (data.y[p] == y)).sum()) for p in parts]
            assert max(counts) - min(counts) <= 1


def test_the_losses_are_those_of_the_recipe():
    "Brute force: sharp gaps, and hidden means compared within each class."
    draw = torch.Generator().manual_seed(0)
    p1, hidden = torch.rand(2, 60, generator=draw).double(), torch.rand(2, 60, 4, generator=draw)
    y, sens = torch.arange(60) % 2, (torch.arange(60) // 2) % 2
    weights = replace(GroupWeights.of(sens, y), spread=spread_within_classes(sens, y), width=0.1)
    q = torch.sigmoid((p1 - 0.5) / 0.1)
    dp = (q[:, sens == 0].mean(1) - q[:, sens == 1].mean(1)).abs()
    of = lambda g: q[:, (sens == g) & (y == 1)].mean(1)
    torch.testing.assert_close(soft_gaps(p1, weights), (dp + (of(0) - of(1)).abs()) / 2)
    mean = lambda g, c: hidden.double()[:, (sens == g) & (y == c)].mean(1)
    pull = sum((mean(0, c) - mean(1, c)).square().mean(-1) for c in (0, 1))
    found = (weights.spread @ hidden.double()).square().sum(-2).mean(-1)
    torch.testing.assert_close(found, pull)


def test_ensembles_refuse_and_move():
    networks = init_population([0, 1, 2], 4)
    ensemble = Ensemble(networks, torch.eye(3).double()[:2], (0.0, 1.0))
    with pytest.raises(ArgumentError, match='0, 1, not 2'):
        ensemble.at(2.0)
    assert len(ensemble.at(0.0).networks) == 1 and ensemble.to('cpu').prices == (0.0, 1.0)
    x = torch.rand(7, 4)
    both = mean_of(joined([networks, networks])).probabilities(x)
    torch.testing.assert_close(both, mean_of(networks).probabilities(x))
    for wrong in ({'parts': 1}, {'best': 0}, {'moments': (0.5, 1.5)}):
        with pytest.raises(ArgumentError):
            CrossfitSettings(**wrong)


def test_records_are_joined_as_they_were_cut():
    data, experts, parts = people()
    record = Evaluator(data, 'val').record(experts)
    pieces = [record.at(torch.searchsorted(record.nodes, p)) for p in parts]
    again = join_records(pieces[::-1])
    assert torch.equal(again.p1, record.p1) and torch.equal(again.nodes, record.nodes)
    for name, value in record.select([2, 0]).scores().items():
        torch.testing.assert_close(value, record.scores()[name][[2, 0]])


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    "A trainer that ran all stages on a small data set, cross-fitted."
    data = make_synthetic(400, n_features=6, seed=0, group_bias=0.5)
    folder = tmp_path_factory.mktemp('crossfit')
    settings = MoESettings(GateSettings(epochs=40, val_every=20), replace(FEW, steps=60))
    trainer = MoETrainer(
        data, use_cached_experts=False, cache_dir=folder, n_trials=2, epochs=300, settings=settings
    )
    return trainer, trainer.run(n_trials=2), settings


def test_a_run_tells_out_of_fold_nested_and_all_prices(trained):
    trainer, done, _ = trained
    tuned, test = done['fine_tuning'], done['test']
    assert tuned['kept'] and tuned['why'] == 'above the floor out of fold'
    assert tuned['score_after'] == tuned['metrics']['final_score'] != tuned['nested']['final_score']
    assert list(test['prices']) == ['0', '0.25', '0.5', '1', '2', '4'] == list(tuned['prices'])
    assert test['methods']['moe_finetuned'] == test['prices']['1']
    assert 'all parts but one' in test['roles']['taught_final']
    told = trainer.evaluate('val')['methods']['moe_finetuned']  # not of networks taught by them
    assert told == tuned['prices']['1']['scores']
    value = Evaluator(trainer.data, 'test').scores(trainer.ensemble.at(4.0))['utility'].item()
    assert test['prices']['4']['utility']['value'] == pytest.approx(value, abs=1e-12)


def test_a_run_without_a_nested_score_says_so_and_is_verified(tmp_path):
    data = one_of_label_1(make_synthetic(400, n_features=6, seed=0, group_bias=0.5))
    settings = MoESettings(GateSettings(epochs=20, val_every=20), replace(FEW, steps=60))
    options = dict(n_trials=2, epochs=100, settings=settings)
    trainer = MoETrainer(data, use_cached_experts=False, cache_dir=tmp_path, **options)
    tuned = trainer.run(n_trials=2)['fine_tuning']
    assert tuned['kept'] and tuned['nested'] is None
    assert 'not nested, because without some part' in out_of_fold_words(tuned)
    found = verify(tmp_path, data)
    assert [f for f in found if f.state == 'differs'] == []


def test_another_price_needs_no_training_and_no_second_test(trained, monkeypatch):
    trainer, done, settings = trained
    monkeypatch.setattr('moe_expert.trainer.crossfitted', None)  # would fail if it were called
    monkeypatch.setattr('moe_expert.trainer.write_test', None)
    folder = trainer.files.cache_dir
    again = MoETrainer(trainer.data, cache_dir=folder, settings=replace(settings, price=4.0))
    other = again.run(n_trials=2)
    assert other['fine_tuning'] == done['fine_tuning']
    assert other['test']['methods']['moe_finetuned'] == done['test']['prices']['4']
    x = trainer.data.x
    assert torch.equal(again.predict_proba(x), trainer.predict_proba(x, price=4.0))
    assert torch.equal(trainer.predict_proba(x), trainer.predict_proba(x, price=1.0))
    with pytest.raises(ArgumentError, match='price must be one of'):
        trainer.predict_proba(x, price=3.0)


def test_a_saved_mixture_keeps_all_prices(trained, tmp_path):
    trainer, _, settings = trained
    trainer.save(tmp_path / 'model.pt')
    fresh = MoETrainer(trainer.data, cache_dir=trainer.files.cache_dir, settings=settings)
    with pytest.raises(ArgumentError, match='only a cross-fitted mixture has prices'):
        fresh.tune_gate(2)
        fresh.predict_proba(trainer.data.x, price=1.0)
    fresh.load(tmp_path / 'model.pt')
    for price in PRICES:
        ours, theirs = (t.predict_proba(trainer.data.x, price=price) for t in (fresh, trainer))
        assert torch.equal(ours, theirs)
    alone = MoETrainer(trainer.data, cache_dir=trainer.files.cache_dir, settings=settings)
    told = alone.load(tmp_path / 'model.pt').evaluate('val')  # without a gate
    assert told['gate_usage'] == {} and told['prices'] == trainer.evaluate('val')['prices']


def test_the_classifier_takes_ways_and_a_price():
    data = make_synthetic(400, n_features=6, seed=0, group_bias=0.5)
    options = dict(n_trials=2, epochs=300, random_state=0, fine_tune=True, ways='crossfit')
    model = FairMoEClassifier(**options)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UsefulnessWarning)
        model.fit(data.x, data.y, sensitive_features=data.sens)
    assert isinstance(model.model_, Ensemble)
    for price in (0.0, 1.0, 4.0):
        p = model.set_params(price=price).predict_proba(data.x)[:, 1]
        ours = model.model_.at(price).probabilities(
            torch.from_numpy(scale_features(data.x.numpy(), model.x_min_, model.x_max_)[0])
        )
        assert abs(p - ours[0].numpy()).max() < 1e-12
