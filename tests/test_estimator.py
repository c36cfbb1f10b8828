"scikit-learn's checks, groups by keyword, routing, pipelines, Fairlearn, pickles, graphs, errors."

import pickle

import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from fairlearn.metrics import MetricFrame, demographic_parity_difference
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
from sklearn.utils.estimator_checks import parametrize_with_checks

from moe_expert.data.assembly import scale_features
from moe_expert.data.synthetic import make_synthetic
from moe_expert.errors import DataError, FairnessWarning
from moe_expert.estimator import FairMoEClassifier
from moe_expert.mixture.gate import Mixture

QUICK = dict(epochs=300, on_missing_groups='ignore', random_state=0)


@parametrize_with_checks([FairMoEClassifier(**QUICK)])
def test_scikit_learns_checks(estimator, check):
    "The checks fit without groups, so they test the utility model; a mixture differs in `fit`."
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
    with pytest.raises(DataError, match='edge_index: line 1 .*numbered 0 to 299'):
        clone(fitted).fit(X, y, sensitive_features=s, edge_index=[[300], [0]])
    graph = FairMoEClassifier(backbone='gcn', **QUICK).fit(X, y, edge_index=edges)
    with_edges, by_similarity = graph.predict_proba(X, edges), graph.predict_proba(X)
    assert not np.allclose(with_edges, by_similarity)
    assert np.allclose(with_edges, graph.predict_proba(X, edge_index=edges.numpy()))


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
        ({}, dict(sensitive_features=np.arange(300) % 3), 'which groups to compare'),
        ({}, dict(sensitive_features=np.arange(299) % 2), '299 values for 300 rows'),
        ({}, dict(sensitive_features=np.ones((300, 2))), 'one value per person'),
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
