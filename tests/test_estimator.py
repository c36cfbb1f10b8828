"scikit-learn's checks, groups by keyword, routing, pipelines, Fairlearn, pickles, graphs, errors."

import pickle
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse
import sklearn
import torch
from conftest import same_edges
from fairlearn.metrics import (
    MetricFrame,
    demographic_parity_difference,
    equal_opportunity_difference,
    selection_rate,
    true_positive_rate,
)
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
from sklearn.utils import check_random_state
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch_geometric.utils import to_undirected

from moe_expert.data.assembly import scale_features
from moe_expert.data.graph import similarity_graph
from moe_expert.data.split import standard_split
from moe_expert.data.synthetic import make_synthetic
from moe_expert.errors import (
    ArgumentError,
    DataError,
    DataWarning,
    FairnessWarning,
    UsefulnessWarning,
)
from moe_expert.estimator import FairMoEClassifier
from moe_expert.mixture.gate import Mixture

QUICK = dict(epochs=300, on_missing_groups='ignore', random_state=0)


SPLITS = 'fit draws rows that select: a row twice is two rows to draw, a row of weight 2 is one'
EXPECTED = {'check_sample_weight_equivalence_on_dense_data': SPLITS}


@parametrize_with_checks(
    [FairMoEClassifier(**QUICK)], expected_failed_checks=lambda estimator: EXPECTED
)
def test_scikit_learns_checks(estimator, check):
    "All but one. They fit without groups; a mixture differs in `fit`."
    check(estimator)


@pytest.fixture(scope='module')
def people():
    data = make_synthetic(300, 10, seed=3)
    names = [n for n in data.feature_names if n != 'group']
    return (
        pd.DataFrame(data.x.numpy()[:, : len(names)], columns=names),
        data.y.numpy(),
        data.sens.numpy(),
        data.edge_index,
    )


@pytest.fixture(scope='module')
def fitted(people):
    X, y, s, _ = people
    return FairMoEClassifier(n_trials=1, epochs=200, random_state=0).fit(X, y, sensitive_features=s)


def test_groups_are_needed_to_fit_and_not_to_predict(people, fitted):
    X, y, s, _ = people
    assert (
        isinstance(fitted.model_, Mixture)
        and len(fitted.model_.experts) == 3
        and fitted.results_['expert_type'] == 'gate'
    )
    proba = fitted.predict_proba(X)
    x = torch.from_numpy(scale_features(X.to_numpy(), fitted.x_min_, fitted.x_max_)[0])
    assert np.allclose(proba[:, 1], fitted.model_.probabilities(x)[0]) and np.allclose(
        proba.sum(1), 1
    )
    assert np.array_equal(fitted.predict(X), (proba[:, 1] >= 0.5).astype(int)) and fitted.score(
        X, y
    ) == accuracy_score(y, fitted.predict(X))
    frame = MetricFrame(
        metrics=accuracy_score, y_true=y, y_pred=fitted.predict(X), sensitive_features=s
    )
    assert (
        frame.by_group.notna().all()
        and 0 <= demographic_parity_difference(y, fitted.predict(X), sensitive_features=s) <= 1
    )
    with pytest.raises(ValueError, match='feature names'):
        fitted.predict(X[X.columns[::-1]])


def test_pickles_clones_and_repeats(people, fitted):
    X, y, s, _ = people
    loaded = pickle.loads(pickle.dumps(fitted))
    assert (
        np.array_equal(loaded.predict_proba(X), fitted.predict_proba(X))
        and loaded.get_params() == fitted.get_params()
    )
    again = clone(fitted).fit(
        X, y, sensitive_features=pd.Series(np.where(s == 1, 'm', 'f'))
    )  # the same groups under other names
    assert np.array_equal(
        again.predict_proba(X), fitted.predict_proba(X)
    ) and again.group_names_ == ('f', 'm')


def test_the_graph_matters_to_fair_procedure_and_backbones_predict_with_one(people, fitted):
    X, y, s, edges = people
    given = clone(fitted).fit(X, y, sensitive_features=s, edge_index=edges)
    assert given.results_['settings']['fingerprint'] != fitted.results_['settings']['fingerprint']
    with pytest.raises(DataError, match=r'edge_index: column 0 is \[300, 0\].*numbered 0 to 299'):
        clone(fitted).fit(X, y, sensitive_features=s, edge_index=[[300], [0]])
    graph = FairMoEClassifier(backbone='gcn', **QUICK).fit(X, y, edge_index=edges)
    with_edges = graph.predict_proba(X, edges)
    assert np.allclose(with_edges, graph.predict_proba(X, edge_index=edges.numpy()))
    with pytest.raises(DataError, match='backbone gcn.*fit was given edge_index: give edge_index'):
        graph.predict_proba(X)
    linked = clone(graph).fit(X, y)
    assert not np.allclose(linked.predict_proba(X), linked.predict_proba(X, edges))


def test_the_default_graph_is_of_nearest_rows_and_the_rule_comes_on_request(people, monkeypatch):
    "Which rows are near does not depend on a unit, unless the rule is asked for."
    X, y, s, _ = people
    seen = []
    monkeypatch.setattr(
        'moe_expert.estimator._fit_mixture', lambda estimator, given, data, seed: seen.append(data)
    )
    larger = X * [1000, *[1] * (X.shape[1] - 1)]
    for table in (X, larger):
        for options in ({}, {'neighbours': 4}, {'threshold': 0.9}):
            model = FairMoEClassifier(random_state=0, **options)
            model.fit(table, y, sensitive_features=s)
    edges = [data.edge_index for data in seen]
    assert all(torch.equal(edges[k], edges[k + 3]) for k in (0, 1))
    assert not torch.equal(edges[2], edges[5]) and seen[1].neighbours == 4
    degrees = [torch.bincount(e[0], minlength=len(X)) for e in edges]
    assert degrees[0].min() >= 10 > degrees[1].min() >= 4
    scaled = scale_features(X.to_numpy(), seen[0].x_min.numpy(), seen[0].x_max.numpy())[0]
    distance = torch.cdist(*2 * [torch.from_numpy(scaled).double()]).fill_diagonal_(torch.inf)
    nearest = torch.stack([torch.arange(len(X)), distance.argmin(1)])
    assert set(map(tuple, nearest.T.tolist())) <= set(map(tuple, edges[1].T.tolist()))
    assert torch.equal(edges[5], similarity_graph(larger.to_numpy(), 0.9))


@pytest.mark.parametrize('backbone', ['gcn', 'sage', 'gin', 'gat'])
@pytest.mark.parametrize('with_groups', [True, False])
def test_fit_and_predict_see_one_graph(people, backbone, with_groups):
    X, y, s, edges = people
    graphs = same_edges(edges)
    options = QUICK | dict(backbone=backbone, n_trials=1, epochs=30)
    groups = dict(sensitive_features=s) if with_groups else {}
    model = FairMoEClassifier(**options).fit(X, y, edge_index=graphs['one way'], **groups)
    x = torch.from_numpy(scale_features(X.to_numpy(), model.x_min_, model.x_max_)[0])
    fitted = model.model_.probabilities(x, to_undirected(graphs['one way']))[0].numpy()
    one_way = model.model_.probabilities(x, graphs['one way'])[0].numpy()
    assert np.abs(fitted - one_way).max() > 1e-3  # the form would matter
    for form, given in graphs.items():
        assert np.array_equal(model.predict_proba(X, given)[:, 1], fitted), form
        assert np.array_equal(model.predict(X, given), (fitted >= 0.5).astype(int)), form
    if not with_groups:
        again = clone(model).fit(X, y, edge_index=graphs['repeated, with self-loops'])
        assert np.array_equal(again.predict_proba(X, edges)[:, 1], fitted)


def test_edges_are_checked_even_where_nothing_looks_at_them(people, fitted):
    X, y, _, edges = people
    assert np.array_equal(fitted.predict_proba(X, edges), fitted.predict_proba(X))  # an mlp
    for wrong, says in (([[0], [300]], 'column 0'), (np.zeros((2, 4)), 'whole numbers')):
        with pytest.raises(DataError, match=f'edge_index.*{says}'):
            fitted.predict_proba(X, wrong)
        with pytest.raises(DataError, match=f'edge_index.*{says}'):
            FairMoEClassifier(**QUICK).fit(X, y, edge_index=wrong)


@pytest.mark.parametrize('positive', ['bad', 'good'])
def test_scores_are_about_the_named_class(people, positive):
    "Naming a class is fitting on 1[y = class]; columns stay in scikit-learn's order."
    X, y, s, _ = people
    named = np.where(y == 1, 'good', 'bad')
    options = dict(n_trials=1, epochs=60, random_state=0)
    model = FairMoEClassifier(pos_label=positive, **options)
    model.fit(X, named, sensitive_features=s)
    is_positive = (named == positive).astype(int)
    plain = FairMoEClassifier(**options).fit(X, is_positive, sensitive_features=s)
    assert model.classes_.tolist() == ['bad', 'good'] and model.pos_label_ == positive
    proba, column = model.predict_proba(X), ['bad', 'good'].index(positive)
    assert np.array_equal(proba[:, column], plain.predict_proba(X)[:, 1])
    assert np.array_equal(proba[:, 1 - column], plain.predict_proba(X)[:, 0])
    other = model.classes_[1 - column]
    assert model.predict(X).tolist() == np.where(plain.predict(X) == 1, positive, other).tolist()
    assert model.results_['best_metrics'] == plain.results_['best_metrics']
    assert model.score(X, named) == accuracy_score(named, model.predict(X))

    seed = int(check_random_state(0).randint(2**31))
    _, val, _ = standard_split(is_positive, 2 * len(y), seed, (0.375, 0.25))
    found, metrics = model.predict(X)[val], model.results_['best_metrics']
    f1 = f1_score(named[val], found, pos_label=positive)
    eo = equal_opportunity_difference(
        is_positive[val], (found == positive).astype(int), sensitive_features=s[val]
    )
    of_the_other = equal_opportunity_difference(
        1 - is_positive[val], (found != positive).astype(int), sensitive_features=s[val]
    )
    assert metrics['f1'] == pytest.approx(f1, abs=1e-9)
    assert metrics['eo'] == pytest.approx(eo, abs=1e-9)
    assert abs(eo - of_the_other) > 1e-3  # the class matters
    loaded = pickle.loads(pickle.dumps(model))
    assert np.array_equal(loaded.predict(X), model.predict(X)) and loaded.pos_label_ == positive
    assert clone(model).get_params() == model.get_params()
    assert model.get_params()['pos_label'] == positive


@pytest.mark.parametrize(
    'labels, pos_label, positive',
    [
        ([0, 1], None, 1),
        ([-1, 1], 1, 1),
        ([-1, 1], -1, -1),
        ([False, True], None, True),
        ([0.0, 1.0], None, 1.0),
        ([0, 1], 0, 0),
        ([1, 2], 1, 1),
        (['0', '1'], '0', '0'),
    ],
)
def test_which_class_is_positive_without_a_warning(people, labels, pos_label, positive):
    X, y, _, _ = people
    model = FairMoEClassifier(**QUICK | dict(epochs=20, pos_label=pos_label))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        warnings.simplefilter('ignore', UsefulnessWarning)  # of 20 epochs
        model.fit(X, np.array(labels)[y])
    assert model.classes_.tolist() == labels and model.pos_label_ == positive
    p = model.predict_proba(X)[:, labels.index(positive)]
    assert np.array_equal(model.predict(X) == positive, p >= 0.5)


@pytest.mark.parametrize('groups', [True, False])
def test_text_warns_and_other_numbers_are_refused(people, groups):
    X, y, s, _ = people
    options = dict(sensitive_features=s) if groups else {}
    model = FairMoEClassifier(**QUICK | dict(n_trials=1, epochs=20))
    with pytest.warns(DataWarning, match="'no' and 'yes'.*'yes' is taken.*pos_label='no'") as told:
        model.fit(X, np.where(y == 1, 'no', 'yes'), **options)
    assert model.pos_label_ == 'yes' and told[0].filename == __file__
    for first, last in ((1, 2), (-1, 1)):
        numbers = np.where(y == 1, last, first)
        says = rf'y holds {first} and {last}, and nothing says .*={last}.*pos_label={first}'
        if groups:
            with pytest.raises(ArgumentError, match=says):
                model.fit(X, numbers, **options)
        else:  # fairness plays no part, and scikit-learn's checks fit such labels
            with pytest.warns(DataWarning, match=says):
                model.fit(X, numbers)


GAPS = [None, np.nan, pd.NA, pd.NaT, float('nan'), np.float32('nan'), 'nan', 'None', 'NA', '', '?']


@pytest.mark.parametrize('what', ['y', 'sensitive_features'])
@pytest.mark.parametrize(
    'box',
    [
        list,
        tuple,
        pd.Series,
        lambda v: pd.Series(v, index=range(len(v), 0, -1)),
        lambda v: np.array(v, dtype=object),
        lambda v: pd.DataFrame({'v': v}),
        lambda v: pd.Categorical([None if pd.isna(x) else x for x in v]),
        lambda v: np.array([str(x) for x in v]),
        lambda v: np.ma.masked_array(['a'] * 3 + v[3:], [i == 3 for i in range(len(v))]),
        lambda v: pl.Series([None if pd.isna(x) else x for x in v]),
        lambda v: pa.array([None if pd.isna(x) else x for x in v]),
        lambda v: pa.chunked_array([[None if pd.isna(x) else x for x in v]]),
    ],
)
def test_a_missing_label_or_group_is_refused_in_every_container(people, box, what):
    X, y, s, _ = people
    for gap in GAPS:
        values = np.where(y == 1, 'a', 'b').tolist()
        values[3] = gap
        given = dict(y=np.where(y == 1, 'yes', 'no'), sensitive_features=s) | {what: box(values)}
        model = FairMoEClassifier(**QUICK | dict(pos_label='yes', n_trials=1, epochs=20))
        with pytest.raises(ValueError, match='row 3 is missing') as error:
            model.fit(X, given.pop('y'), **given)
        assert isinstance(error.value, (ArgumentError, DataError)), gap


@pytest.mark.parametrize(
    'change, says',
    [
        (lambda y: [1 if v else '0' for v in y], "'0' .text.*1 .number.*use one kind|1 .number"),
        (lambda y: [True if v else 0 for v in y], 'use one kind'),
        (lambda y: np.array([None, *y[1:]], dtype=object), 'label of row 0 is missing .None'),
        (
            lambda y: pd.Series(y, dtype=float).where(np.arange(len(y)) != 7),
            'row 7 is missing .nan',
        ),
        (lambda y: y / 2, r'y holds 0.5 \(row \d+\)'),
        (lambda y: np.arange(len(y)) % 3, 'Only binary.*multiclass: y holds 0, 1, 2'),
        (lambda y: np.where(y, 'a', 'b').tolist()[:-1] + ['c'], "y holds 'a', 'b', 'c'"),
        (lambda y: np.zeros(len(y)), 'only one class: .*0.0'),
    ],
)
def test_labels_that_are_not_two_classes(people, change, says):
    X, y, s, _ = people
    for groups in ({}, dict(sensitive_features=s)):
        with pytest.raises(ArgumentError, match=says):
            FairMoEClassifier(**QUICK).fit(X, change(y), **groups)


@pytest.mark.parametrize('wrong', ['1', 2, [1], 'good'])
def test_a_positive_class_that_does_not_occur(people, wrong):
    X, y, _, _ = people
    with pytest.raises(
        ArgumentError, match=r'is no class of y, which holds 0 and 1: .*pos_label=1'
    ):
        FairMoEClassifier(pos_label=wrong, **QUICK).fit(X, y)


def test_metadata_is_routed_through_cross_validation_and_pipelines(people):
    X, y, s, _ = people
    table = X.assign(job=np.resize(['cook', 'smith', 'clerk'], len(X)))
    columns = sklearn.compose.make_column_transformer(
        (OneHotEncoder(), ['job']), remainder='passthrough'
    )
    with sklearn.config_context(enable_metadata_routing=True):
        last = FairMoEClassifier(n_trials=1, epochs=100, random_state=0).set_fit_request(
            sensitive_features=True
        )
        scores = cross_val_score(
            make_pipeline(columns, last),
            table,
            y,
            cv=2,
            params=dict(sensitive_features=s),
            error_score='raise',
        )
    assert scores.shape == (2,) and scores.min() > 0.5


def test_without_groups(people):
    X, y, _, _ = people
    with pytest.warns(FairnessWarning, match='without sensitive_features'):
        alone = FairMoEClassifier(epochs=600, random_state=0).fit(X, y)
    assert (
        alone.group_names_ is None
        and alone.score(X, y) > LogisticRegression().fit(X, y).score(X, y) - 0.05
    )
    with pytest.raises(DataError, match="or set on_missing_groups='warn'"):
        FairMoEClassifier(on_missing_groups='raise').fit(X, y)


@pytest.mark.parametrize(
    'settings, fit, message',
    [
        (dict(on_missing_groups='maybe'), {}, 'on_missing_groups must be'),
        (dict(validation_fraction=1.0), {}, 'validation_fraction'),
        ({}, dict(sensitive_features=np.zeros(300)), 'in every row'),
        ({}, dict(sensitive_features=np.arange(300)), 'too many for a group each'),
        ({}, dict(sensitive_features=np.arange(299) % 2), '299 values for 300 rows'),
        ({}, dict(sensitive_features=np.ones((300, 2))), "'attribute 0' is '1' in every row"),
        ({}, dict(sensitive_features=np.ones((300, 2, 2))), 'row 0 holds a list'),
        ({}, dict(sensitive_features=[None, *range(299)]), 'row 0 is missing'),
        (dict(privileged='x'), dict(sensitive_features=['a', 'b'] * 150), "'x' does not occur"),
        ({}, dict(sensitive_features=[1] + [0] * 299), 'has no node with sensitive_features'),
    ],
)
def test_what_cannot_be_fitted(people, settings, fit, message):
    X, y, _, _ = people
    with pytest.raises(ValueError, match=message):
        FairMoEClassifier(**(QUICK | settings)).fit(X, y, **fit)


def test_more_groups_by_a_rule(people):
    X, y, _, _ = people
    groups = np.resize(['a', 'b', 'c'], len(X))
    model = FairMoEClassifier(n_trials=1, epochs=50, privileged=['a', 'c'], random_state=0).fit(
        X, y, sensitive_features=groups
    )
    assert model.group_names_ == ('b', 'a or c')


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda X: np.full(X.shape, 'a', dtype=object), r"column 0, row 0: 'a'"),
        (
            lambda X: pd.DataFrame(X, columns=[*'abcdef'][: X.shape[1]]).replace(X[3, 1], np.inf),
            "column 'b', row 3: inf",
        ),
        (lambda X: X[:, 0], r'X.reshape\(-1, 1\) if it is one column'),
        (lambda X: scipy.sparse.csr_array(X), r'X.toarray\(\)'),
    ],
)
def test_features_that_are_no_numbers_are_named(change, message):
    X = np.random.default_rng(0).normal(size=(40, 3))
    with pytest.raises(DataError, match=message):
        FairMoEClassifier().fit(change(X), np.arange(40) % 2, sensitive_features=np.arange(40) % 3)


def selecting(y, seed=0):
    "The rows that `fit` with this random_state sets aside."
    drawn = int(check_random_state(seed).randint(2**31))
    return standard_split(y, 2 * len(y), drawn, (0.375, 0.25))[1]


def differences(model, X, y, groups, weight):
    "Fairlearn's demographic parity and equal opportunity differences, weighted."
    rates = {'dp': selection_rate, 'eo': true_positive_rate}
    frame = MetricFrame(
        metrics=rates,
        y_true=y,
        y_pred=model.predict(X),
        sensitive_features=groups,
        sample_params={rate: {'sample_weight': weight} for rate in rates},
    )
    return frame.difference()


SHORT = dict(n_trials=1, epochs=60, random_state=0)


def test_scores_of_many_weighted_groups_are_those_of_fairlearn_and_sklearn(people):
    X, y, s, _ = people
    groups = pd.DataFrame({'sex': np.where(s == 1, 'm', 'f'), 'town': np.resize([*'AAB'], len(s))})
    weight = np.random.default_rng(0).uniform(0.2, 3, len(y))
    model = FairMoEClassifier(min_group=1, **SHORT)
    model.fit(X, y, sensitive_features=groups, sample_weight=weight)
    assert model.group_names_ == ('f × A', 'f × B', 'm × A', 'm × B')
    val, scores = selecting(y), model.results_['best_metrics']
    judged, seen = (X.iloc[val], y[val]), dict(sample_weight=weight[val])
    expected = differences(model, *judged, groups.iloc[val], weight[val])
    assert expected['dp'] > 0 and expected['eo'] > 0
    assert np.allclose([scores['dp'], scores['eo']], expected, rtol=0, atol=1e-12)
    p1, decided = model.predict_proba(judged[0])[:, 1], model.predict(judged[0])
    sklearns = accuracy_score(y[val], decided, **seen), roc_auc_score(y[val], p1, **seen)
    assert np.allclose([scores['acc'], scores['auc']], sklearns, rtol=0, atol=1e-12)
    assert model.score(X, y, sample_weight=weight) == pytest.approx(
        accuracy_score(y, model.predict(X), sample_weight=weight), abs=1e-12
    )


def test_separate_attributes_are_compared_each_for_itself(people):
    X, y, s, _ = people
    columns = [np.where(s == 1, 'm', 'f'), np.resize([*'ABC', '?'], len(s))]
    model = FairMoEClassifier(groups='separate', unknown='?', **SHORT)
    model.fit(X, y, sensitive_features=columns)
    assert model.group_names_ == (('f', 'm'), ('A', 'B', 'C'))
    val, worst = selecting(y), {'dp': 0, 'eo': 0}
    for column in columns:
        some = val[column[val] != '?']
        found = differences(model, X.iloc[some], y[some], column[some], np.ones(len(some)))
        worst = {n: max(v, found[n]) for n, v in worst.items()}
    for name, value in worst.items():
        assert model.results_['best_metrics'][name] == pytest.approx(value, abs=1e-12)


@pytest.mark.slow
def test_every_container_of_several_attributes_gives_the_same_model(people):
    X, y, s, _ = people
    columns = [np.where(s == 1, 'm', 'f'), np.resize([*'ABC'], len(s))]
    table = pd.DataFrame({'sex': columns[0], 'town': columns[1]})
    made = [
        FairMoEClassifier(n_trials=1, epochs=20, min_group=3, random_state=0).fit(
            X, y, sensitive_features=given
        )
        for given in (table, columns, table.to_numpy(), pl.DataFrame(table))
    ]
    assert len(made[0].group_names_) == 6
    for model in made[1:]:
        assert model.group_names_ == made[0].group_names_
        assert np.array_equal(model.predict_proba(X), made[0].predict_proba(X))


@pytest.mark.parametrize('fair', [True, False])
def test_weights_of_one_change_no_bit_and_others_do(people, fair):
    X, y, s, _ = people
    model, groups = FairMoEClassifier(on_missing_groups='ignore', **SHORT), s if fair else None
    plain, ones, others = (
        clone(model).fit(X, y, sensitive_features=groups, sample_weight=weight)
        for weight in (None, np.ones(len(y)), pd.Series(np.resize([0.1, 5], len(y))))
    )
    assert np.array_equal(plain.predict_proba(X), ones.predict_proba(X))
    scores = [m.results_['best_metrics'] if fair else m.results_ for m in (plain, ones)]
    assert scores[0] == scores[1]
    assert not np.allclose(plain.predict_proba(X), others.predict_proba(X))


def test_rows_of_weight_zero_are_as_good_as_absent(people):
    X, y, s, _ = people
    weight = np.resize([1.0, 0.0, 2.0], len(y))
    keep, groups = weight > 0, np.resize([*'ABCD'], len(y))
    model = FairMoEClassifier(**SHORT)
    whole = clone(model).fit(X, y, sensitive_features=groups, sample_weight=weight)
    part = model.fit(X[keep], y[keep], sensitive_features=groups[keep], sample_weight=weight[keep])
    assert np.array_equal(whole.predict_proba(X), part.predict_proba(X))
    with pytest.raises(DataError, match='leave these rows out'):
        clone(model).fit(
            X, y, sensitive_features=groups, sample_weight=weight, edge_index=[[0], [1]]
        )


@pytest.mark.parametrize(
    'weight, message',
    [
        ([-1.0], 'row 0 is -1.0'),
        ([np.nan], 'row 0 is nan'),
        (np.ones((300, 2)), r'not \(300, 2\)'),
        (['heavy'], 'must be numbers'),
    ],
)
def test_what_is_no_weight(people, weight, message):
    X, y, s, _ = people
    weight = weight * 300 if isinstance(weight, list) else weight
    with pytest.raises(DataError, match=message):
        FairMoEClassifier(**SHORT).fit(X, y, sensitive_features=s, sample_weight=weight)


def test_leaderboard_time_limit_and_metric_frame(people, fitted):
    from fairlearn.metrics import MetricFrame, selection_rate, true_positive_rate
    from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

    X, y, s, _ = people
    hurried = FairMoEClassifier(n_trials=3, epochs=30, time_limit=0, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        hurried.fit(X, y, sensitive_features=s)
    board = hurried.leaderboard_.set_index('model')
    assert board.loc['expert1', 'trials'] == 1 and board.loc['moe', 'trials'] == 1
    assert not [n for n in board if n.startswith('test_')]
    assert any('after 1 of 3 trials' in sentence for sentence in hurried.notices_)
    scores = hurried.results_['best_metrics']
    assert board.loc['moe', 'final_score'] == scores['final_score']

    weight = np.resize([1.0, 2.0, 0.5], len(y))
    named = np.where(s == 1, 'here', 'elsewhere')
    own = fitted.metric_frame(X, y, sensitive_features=named, sample_weight=weight)
    decided, p1 = fitted.predict(X), fitted.predict_proba(X)[:, 1]
    oracles = dict(
        accuracy=(accuracy_score, decided),
        f1=(f1_score, decided),
        auc=(roc_auc_score, p1),
        selection_rate=(selection_rate, decided),
        true_positive_rate=(true_positive_rate, decided),
    )
    for name, (metric, told) in oracles.items():
        said = dict(sensitive_features=named, sample_params=dict(sample_weight=weight))
        frame = MetricFrame(metrics=metric, y_true=y, y_pred=told, **said)
        np.testing.assert_allclose(own.by_group[name], frame.by_group, atol=1e-12)
        np.testing.assert_allclose(own.overall[name], frame.overall, atol=1e-12)
    with pytest.raises(ValueError, match='no class of this model'):
        fitted.metric_frame(X, np.full(len(y), 7), sensitive_features=named)


def test_groups_and_weights_are_routed_through_a_pipeline_and_a_grid(people, monkeypatch):
    import sklearn
    from sklearn.metrics import accuracy_score, make_scorer
    from sklearn.model_selection import GridSearchCV, cross_validate
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from moe_expert import estimator

    X, y, s, _ = people
    weight, seen = np.arange(1.0, len(y) + 1), []

    def noted(model, X, y, groups, edge_index, weight):
        seen.append((len(X), len(groups), len(weight), set(np.unique(groups)) == set(np.unique(s))))
        model.classes_, model.n_features_in_ = np.array([0, 1]), X.shape[1]
        return model

    monkeypatch.setattr(estimator, '_fit', noted)
    monkeypatch.setattr(FairMoEClassifier, 'predict', lambda self, X: np.zeros(len(X), int))
    params = dict(sensitive_features=s, sample_weight=weight)
    with sklearn.config_context(enable_metadata_routing=True):
        model = FairMoEClassifier().set_fit_request(sensitive_features=True, sample_weight=True)
        scaler = StandardScaler().set_fit_request(sample_weight=False)
        model.set_score_request(sample_weight=False)
        pipeline = make_pipeline(scaler, model).set_output(transform='pandas')
        grid = dict(fairmoeclassifier__n_trials=[1, 2])
        scorer = make_scorer(accuracy_score).set_score_request(sample_weight=False)
        GridSearchCV(pipeline, grid, cv=2, scoring=scorer).fit(X, y, **params)
        cross_validate(pipeline, X, y, cv=3, scoring=scorer, params=params)
    assert len(seen) == 2 * 2 + 1 + 3
    assert all(n == groups == weights and all_groups for n, groups, weights, all_groups in seen)
