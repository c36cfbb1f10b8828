"""The doors of own data that are no files: graphs, arrays, tables in memory, new people.

What is tested is what a user sees: the `Data`, the probabilities and the messages.
"""

import datetime
import decimal
import traceback
import warnings
from fractions import Fraction

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch_geometric import EdgeIndex
from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.transforms import ToSparseTensor

from moe_expert import estimator as classifier
from moe_expert.data import doors
from moe_expert.data.assembly import feature_range, scale_features
from moe_expert.data.cards import Card, make_card
from moe_expert.data.doors import from_data, load_own
from moe_expert.data.synthetic import make_synthetic
from moe_expert.datasets import load_dataset
from moe_expert.errors import DataError, DataWarning, MoEExpertError
from moe_expert.estimator import FairMoEClassifier
from moe_expert.experts.backbones import GNN
from moe_expert.experts.initialisation import init_population
from moe_expert.mixture.checkpoints import Known, known_people, linked_to_known, predict_proba
from moe_expert.mixture.gate import uniform_mixture
from moe_expert.mixture.gate_training import GateSettings
from moe_expert.trainer import MoESettings, MoETrainer

N = 80
GNNS = ('gcn', 'sage', 'gin', 'gat')


def graph_of(**fields):
    "A graph of 80 people that can be loaded, with other fields."
    torch.manual_seed(0)
    made = dict(
        x=torch.randn(N, 3),
        y=torch.arange(N) % 2,
        sens=torch.arange(N) // 2 % 2,
        edge_index=torch.stack([torch.arange(N), (torch.arange(N) + 1) % N]),
    )
    data = Data()
    for name, value in (made | fields).items():
        if value is not None:
            setattr(data, name, value)
    return data


def same(one, other):
    return one.fingerprint == other.fingerprint and torch.equal(one.x, other.x)


# ---- graphs in memory: what is taken

WHOLE = torch.arange(3 * N).reshape(N, 3) % 7
SPLIT = torch.arange(N) // 4 % 4  # each quarter holds both classes and both groups
MASKS = {'train_mask': SPLIT < 2, 'val_mask': SPLIT == 2, 'test_mask': SPLIT == 3}


@pytest.mark.parametrize(
    'form',
    [
        WHOLE.double(),
        WHOLE.bfloat16(),
        WHOLE.half(),
        WHOLE.int(),
        WHOLE.float().requires_grad_(),
        WHOLE.float().to_sparse(),
        WHOLE.float().to_sparse_csr(),
        WHOLE.numpy(),
        WHOLE.tolist(),
        scipy.sparse.csr_array(WHOLE.numpy()),
        pd.DataFrame(WHOLE.numpy()),
        np.asfortranarray(WHOLE.numpy().astype(float)),
    ],
    ids=lambda form: f'{type(form).__name__} {getattr(form, "dtype", "")}',
)
def test_features_in_every_form_are_the_same_data(form):
    assert same(from_data(graph_of(x=form)), from_data(graph_of(x=WHOLE)))


def test_true_and_false_are_numbers():
    flags = WHOLE > 3
    assert same(from_data(graph_of(x=flags)), from_data(graph_of(x=flags.long())))


Y = torch.arange(N) % 2


@pytest.mark.parametrize('field', ['y', 'sens'])
@pytest.mark.parametrize(
    'form',
    [
        lambda v: v.tolist(),
        lambda v: tuple(v.tolist()),
        lambda v: v.numpy(),
        lambda v: v[:, None],
        lambda v: v.float(),
        lambda v: v.bool(),
        lambda v: v.bfloat16(),
        lambda v: pd.Series(v.numpy(), index=range(N, 0, -1)),
        lambda v: pl.Series(v.numpy()),
        lambda v: pa.array(v.numpy()),
        lambda v: np.ma.masked_array(v.numpy(), mask=False),
        lambda v: v.numpy().astype(object),
    ],
)
def test_labels_and_groups_in_every_form_are_the_same_data(field, form):
    values = {'y': Y, 'sens': torch.arange(N) // 2 % 2}[field]
    assert same(from_data(graph_of(**{field: form(values)})), from_data(graph_of()))


def test_labels_by_a_rule_are_those_of_a_table():
    "One rule for tensors and tables: `positive`, `privileged`, names, range."
    data = graph_of(y=Y + 1, sens=10 * (torch.arange(N) // 2 % 2))
    loaded = from_data(data, positive=2, privileged=10, group_names=['ours', 'theirs'])
    assert torch.equal(loaded.y, Y) and loaded.group_names == ['ours', 'theirs']
    other = from_data(data, positive=1, privileged=0)
    assert torch.equal(other.y, 1 - Y) and torch.equal(other.sens, 1 - loaded.sens)
    words = np.where(Y == 1, 'paid', 'lost')
    assert torch.equal(from_data(graph_of(y=words), positive='paid').y, Y)
    assert torch.equal(from_data(graph_of(y=2 * Y - 1), positive=1).y, Y)
    shares = from_data(graph_of(y=0.2 + 0.5 * Y.double()), positive={'min': 0.5})
    assert torch.equal(shares.y, Y)


def test_masks_in_every_form():
    whole = from_data(graph_of(**MASKS))
    numbers = {k: m.nonzero()[:, 0] for k, m in MASKS.items()}
    for form in (
        numbers,
        {k: v.tolist() for k, v in numbers.items()},
        {k: m.numpy() for k, m in MASKS.items()},
        {k: m[:, None] for k, m in MASKS.items()},
        {k: m.long() for k, m in MASKS.items()},
    ):
        assert same(from_data(graph_of(**form)), whole)
    assert all(torch.equal(whole[k], m) for k, m in MASKS.items()) and whole.split_seed == 'given'


def captured(monkeypatch, data, **own):
    "The table and the entries of a card that a graph becomes."
    seen = {}
    monkeypatch.setattr(doors, 'from_frame', lambda frame, **more: seen.update(more, frame=frame))
    from_data(data, **own)
    return seen


def test_two_masks_take_the_validation_from_training(monkeypatch):
    two = {k: m for k, m in MASKS.items() if k != 'val_mask'}
    seen = captured(monkeypatch, graph_of(**two), split={'validation': 0.4, 'seed': 3})
    assert seen['split'] == {'validation': 0.4, 'seed': 3, 'column': 'split'}
    parts = np.select([SPLIT < 2, SPLIT == 3], ['train', 'test'], 'none')
    assert seen['frame']['split'].tolist() == parts.tolist()
    seen = captured(monkeypatch, graph_of(x=torch.rand(N, 1), feature_names=['split'], **two))
    assert seen['split'] == {'column': 'split_'} and list(seen['frame']) == [
        *('split', 'y', 'sens', 'split_')
    ]


def test_nodes_without_mask_are_in_no_part_and_two_masks_suffice():
    "The graph keeps all; validation is a share of the training nodes, of each class."
    two = {k: m for k, m in MASKS.items() if k != 'val_mask'}
    data = from_data(graph_of(**two), split={'validation': 0.5})
    assert torch.equal(data.test_mask, MASKS['test_mask']) and data.num_edges == 2 * N
    used = data.train_mask | data.val_mask
    assert torch.equal(used, MASKS['train_mask']) and not (data.train_mask & data.val_mask).any()
    for c in (0, 1):
        assert data.val_mask[data.y == c].sum() == data.train_mask[data.y == c].sum()
    assert any('20' in note for note in data.notes.values())  # in no mask
    assert same(data, from_data(graph_of(**two), split={'validation': 0.5}))
    other = from_data(graph_of(**two), split={'validation': 0.5, 'seed': 1})
    assert not torch.equal(other.val_mask, data.val_mask)


def test_people_without_a_label_stay_nodes_and_never_count():
    y = torch.where(torch.arange(N) % 10 == 9, -1, Y)
    data = from_data(graph_of(y=y), unlabelled=[-1])
    assert torch.equal(data.y, y) and data.num_nodes == N and data.num_edges == 2 * N
    parts = data.train_mask.long() + data.val_mask.long() + data.test_mask.long()
    assert torch.equal(parts, (y >= 0).long())


@pytest.mark.parametrize('change', [lambda s: s, lambda s: 1 - s, lambda s: 5 * s - 7.5])
def test_a_column_that_equals_the_group_is_said(change):
    sens = torch.arange(N) // 2 % 2
    x = torch.cat([torch.randn(N, 3), change(sens)[:, None]], 1)
    data = from_data(graph_of(x=x, sens=sens))
    assert 'x3' in data.notes['group is a feature']
    assert data.notes['group is a feature'].startswith('yes')
    without = from_data(graph_of(x=x, sens=sens), drop='x3')
    assert without.notes['group is a feature'].startswith('no')


def test_directions_of_a_graph_warn_unless_they_are_named():
    edges = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 3]])
    with pytest.warns(DataWarning, match='edges: 1 edges stand in both directions and 2'):
        mixed = from_data(graph_of(edge_index=edges))
    with warnings.catch_warnings():
        warnings.simplefilter('error', DataWarning)
        named = from_data(graph_of(edge_index=edges), directed='both')
    assert torch.equal(named.edge_index, mixed.edge_index)
    assert 'in one direction only: 2' in named.notes['graph from']
    both = from_data(graph_of(edge_index=torch.cat([edges, edges.flip(0)], 1)))
    assert 'edges: 3' in both.notes['graph from'] and 'direction' not in both.notes['graph from']
    matrix = torch.sparse_coo_tensor(edges[:, 1:], torch.ones(3), (N, N))
    with pytest.raises(DataError, match='adj_t: the matrix is not symmetric.*directed'):
        from_data(graph_of(edge_index=None, adj_t=matrix))
    weights = torch.sparse_coo_tensor(edges[:, :2], torch.tensor([0.5, 2]), (N, N))
    with pytest.raises(DataError, match='adj_t: the entries of the matrix differ'):
        from_data(graph_of(edge_index=None, adj_t=weights))


def test_names_that_collide_and_columns_that_are_left_out():
    gap = torch.randn(N, 3)
    gap[5, 2] = float('nan')
    data = graph_of(x=gap, feature_names=['y', 'sens', 'z'])
    loaded = load_dataset(data, drop='z')
    assert loaded.feature_names == ['y', 'sens']
    assert load_dataset(data, drop=('z', 'sens')).feature_names == ['y']
    filled = load_dataset(data, missing='impute')
    assert filled.x.isfinite().all() and filled.feature_names == ['y', 'sens', 'z']
    fewer = load_dataset(data, missing='drop')
    assert fewer.num_nodes == N - 1 and fewer.num_edges == 2 * (N - 2)


def test_graphs_in_every_form_are_the_same_data():
    whole = from_data(graph_of())
    edges = graph_of().edge_index
    both = torch.cat([edges, edges.flip(0)], 1)
    matrix = torch.sparse_coo_tensor(both, torch.ones(2 * N), (N, N))
    adjacency = scipy.sparse.coo_array((np.ones(2 * N), both.numpy()), (N, N))
    forms = [{'edge_index': e} for e in (both, edges.int(), edges.numpy(), edges.tolist())]
    forms += [{'edge_index': EdgeIndex(both, sparse_size=(N, N))}, {'edge_index': matrix}]
    forms += [{'edge_index': None, 'adj_t': a} for a in (matrix, matrix.to_sparse_csr(), adjacency)]
    forms += [{'edge_index': both, 'adj_t': matrix}, {'edge_index': edges, 'edge_attr': None}]
    forms += [{'edge_weight': torch.ones(N)}, {'edge_attr': torch.full((N, 2), 3.0)}]
    for form in forms:
        assert same(from_data(graph_of(**form)), whole), form
    for layout in (torch.sparse_csr, torch.sparse_coo):
        made = ToSparseTensor(layout=layout)(graph_of(edge_index=both))
        assert made.edge_index is None and same(from_data(made), whole)


# ---- graphs in memory: what is refused


@pytest.mark.parametrize(
    'fields, message',
    [
        (dict(x=torch.randn(N)), r'x has shape \[80\].*x\[:, None\]'),
        (dict(x=torch.randn(N, 2, 2)), r'x has shape \[80, 2, 2\].*flatten\(1\)'),
        (dict(x=torch.empty(N, 0)), r'x has shape \[80, 0\]'),
        (dict(x=torch.randn(N, 2) * 1j), 'x holds complex numbers'),
        (dict(x=np.full((N, 2), 'a')), "x, column 0, row 0 holds 'a'"),
        (dict(x=[[1, 2]] * (N - 1) + [[1]]), 'x'),
        (dict(x='table'), 'x has shape'),
        (dict(x=torch.where(WHOLE == 6, torch.nan, 1.0)), "column 'x0', row 2 is missing .*impute"),
        (dict(x=torch.where(WHOLE == 6, torch.inf, 1.0)), "column 'x0', row 2 holds inf"),
        (dict(x=torch.empty(N, 3, device='meta')), 'cannot be read as an array'),
        (dict(feature_names=['a', 'b']), '2 feature_names and the 3 columns of x'),
        (dict(feature_names=['a', 'b', 'a']), "feature_names holds 'a' more than once"),
        (dict(feature_names='abc'), 'must be a list of 3 names'),
        (dict(y=None), 'has no y.*it has x, sens, edge_index'),
        (dict(y=torch.eye(2)[Y]), r'y has shape \[80, 2\].*y.argmax\(1\)'),
        (dict(y=torch.tensor(1)), r'y has shape \[\]'),
        (dict(y=Y[:-1]), 'y has 79 values and x has 80 rows'),
        (dict(y=2 * Y - 1), r'y holds 2 values, -1 \(40 rows\), 1 \(40 rows\).*positive='),
        (dict(y=Y + 1), 'nothing says which count as 1: give positive='),
        (dict(y=torch.arange(N) % 3 - 1), r'no label, give unlabelled=\[-1\]'),
        (dict(y=torch.where(torch.arange(N) == 7, torch.nan, Y)), 'y, row 7 is missing .1 such'),
        (dict(y=[None, *Y.tolist()[1:]]), 'y, row 0 is missing'),
        (dict(y=Y * 1j), 'y holds complex numbers'),
        (dict(sens=torch.where(torch.arange(N) < 5, torch.nan, Y)), 'sens, row 0 is missing .5'),
        (dict(sens=np.ma.masked_array(Y.numpy(), SPLIT.numpy() == 3)), 'sens, row 12 is missing'),
        (dict(sens=pl.Series([None, 1] * 40)), 'sens, row 0 is missing'),
        (dict(sens=Y * 0), "sens' is '0' in every row"),
        (dict(train_mask=SPLIT < 2), 'must all be there.*only train_mask is'),
        (dict(train_mask=(SPLIT < 2)[:, None].repeat(1, 10)), r'10 splits.*train_mask\[:, 0\]'),
        (MASKS | dict(val_mask=SPLIT > 1), 'node 12 is in more than one .*20 such nodes'),
        (MASKS | dict(test_mask=torch.tensor([3, 80])), 'test_mask names node 80'),
        (MASKS | dict(test_mask=torch.rand(N)), r'must be \[80\] truth values'),
        (MASKS | dict(test_mask=torch.ones(N - 1).bool()), r'must be \[80\] truth values'),
        (dict(edge_index=torch.tensor([[0], [N]])), 'numbered 0 to 79'),
        (dict(edge_index=torch.zeros(N, 2).long()), 'transpose it'),
        (dict(edge_index=torch.eye(N + 1).to_sparse()), 'edge_index'),
        (dict(edge_weight=torch.rand(N)), 'edge_weight tells edges apart.*data.edge_weight = None'),
        (dict(edge_attr=torch.rand(N, 3)), 'data.edge_attr = None'),
        (dict(adj_t=torch.eye(N).to_sparse()), 'edge_index and adj_t are different graphs'),
        (dict(name='../x'), 'name'),
    ],
)
def test_fields_that_are_refused(fields, message):
    with pytest.raises(DataError, match=message):
        from_data(graph_of(**fields))


def test_a_large_sparse_matrix_is_not_written_out():
    wide = torch.sparse_coo_tensor(torch.zeros(2, 1).long(), torch.ones(1), (N, 10_000_000))
    with pytest.raises(DataError, match='800,000,000 numbers when written out'):
        from_data(graph_of(x=wide))


@pytest.mark.parametrize(
    'own, message',
    [
        (dict(label='x0'), 'label: of a PyG Data it is data.y'),
        (dict(sensitive='x0'), 'sensitive: of a PyG Data it is data.sens'),
        (dict(test_table='a.csv'), 'test_table: is for files'),
        (dict(edges=[[0, 1]]), 'has a graph already'),
        (dict(positiv=1), "Did you mean 'positive'"),
        (dict(split={'train': 0.5}), 'split'),
        (dict(split=3), 'split must be a mapping'),
        (dict(drop=3), 'drop'),
    ],
)
def test_entries_that_a_graph_cannot_have(own, message):
    with pytest.raises(DataError, match=message):
        from_data(graph_of(**MASKS), **own)


@pytest.mark.parametrize(
    'source, message',
    [
        ([graph_of()], r'a list of 1 PyG graphs.*graphs\[0\]'),
        ((graph_of(), graph_of()), 'a tuple of 2 PyG graphs'),
        (Batch.from_data_list([graph_of()] * 2), 'a Batch of 2 PyG graphs'),
        (HeteroData(), 'HeteroData has several kinds of nodes'),
        (torch.zeros(3, 2), 'a Tensor is not the name of a data set'),
        (np.zeros((3, 2)), 'a ndarray is not'),
        ({'x': [1]}, 'a dict is not'),
        (None, 'a NoneType is not'),
        (3.5, 'a float is not'),
        ([], 'a list is not'),
        ([1, 2], 'a list is not'),
        (pd.Series([1]), 'a Series is not'),
        (b'people.csv', 'a bytes is not'),
        (type, 'a type is not'),
    ],
)
def test_what_is_no_data_set(source, message):
    with pytest.raises(DataError, match=message):
        load_dataset(source, label='y', sensitive='s')


def test_a_loaded_data_set_is_not_read_otherwise():
    data = from_data(graph_of())
    assert load_dataset(data) is data
    with pytest.raises(DataError, match='positive cannot be applied to own, which is loaded'):
        load_dataset(data, positive=1)


# ---- tables in memory

SAID = dict(label='paid', positive='yes', sensitive='sex', privileged='m', dataset_name='loans')


def make_loans(n=160):
    rng = np.random.default_rng(2)
    loans = pd.DataFrame(
        {'income': rng.lognormal(3, 0.5, n).round(1), 'age': rng.integers(18, 70, n)}
    )
    loans['job'] = rng.choice(['clerk', 'cook'], n)
    loans['sex'] = rng.choice(['f', 'm'], n)
    loans['paid'] = np.where(loans.income + rng.normal(0, 8, n) > 20, 'yes', 'no')
    return loans


def test_tables_in_every_container_are_the_same_data(tmp_path):
    loans = make_loans()
    whole = load_dataset(loans, **SAID)
    loans.to_csv(tmp_path / 'loans.csv', index=False)
    forms = [
        pl.from_pandas(loans),
        pl.from_pandas(loans).lazy(),
        pa.Table.from_pandas(loans),
        loans.to_dict('records'),
        loans.set_index(np.arange(len(loans))[::-1]),
        loans.astype({'job': 'category', 'age': 'Int64', 'sex': 'string'}),
        tmp_path / 'loans.csv',
    ]
    for form in forms:
        assert same(load_dataset(form, **SAID), whole), type(form)


@pytest.mark.parametrize('where', ['file', 'memory'])
def test_two_tables_are_one_with_its_test_part(tmp_path, where):
    loans = make_loans()
    first, second = loans[:120], loans[120:]
    first.to_csv(tmp_path / 'train.csv', index=False)
    second[second.columns[::-1]].to_csv(tmp_path / 'test.csv', index=False)
    if where == 'file':
        data = load_dataset(tmp_path / 'train.csv', test_table='test.csv', **SAID)
    else:
        data = load_dataset(first, test_table=second, **SAID)
    assert data.test_mask.nonzero()[:, 0].tolist() == list(range(120, 160))
    assert data.train_mask.sum() + data.val_mask.sum() == 120 and data.val_mask.sum() > 20
    assert data.feature_names == load_dataset(loans, **SAID).feature_names
    lacking = second.drop(columns='age').assign(wage=1)
    with pytest.raises(DataError, match='test_table.*differ in their columns: age, wage'):
        load_dataset(first, test_table=lacking, **SAID)
    as_texts = load_dataset(first, test_table=second.astype({'age': str}), **SAID)
    assert same(as_texts, load_dataset(first, test_table=second, **SAID))
    with pytest.raises(DataError, match='a column or test_table, not both'):
        load_dataset(first, test_table=second, split={'column': 'job'}, **SAID)
    with pytest.raises(DataError, match='a table is a file or a table in memory, not a int'):
        load_dataset(first, test_table=3, **SAID)


ODD = (
    *(None, 0, -1, 20, 3.5, float('nan'), True, '', 'a', b'x', [], [1], [[1], [2]], (), {}, {1: 2}),
    *({'min': 'x'}, {'seed': -1}, {'column': 3}, np.array(3), np.arange(2), np.float64(0.5)),
    *(torch.tensor(1), torch.ones(3), pd.Series([1, 2]), pd.NA, object(), {'a'}, 10**400, 1j),
)


@pytest.mark.parametrize('entry', Card.__dataclass_fields__)
def test_entries_of_a_wrong_kind_are_refused_or_harmless(entry):
    loans = make_loans(60)
    for value in ODD:
        for load in (
            lambda entries: make_card(entries),
            lambda entries: load_own(loans, **SAID | entries),
        ):
            try:
                load({'label': 'paid', 'sensitive': 'sex', entry: value})
            except MoEExpertError as error:
                assert '\n' not in str(error).strip() and len(str(error)) > 20


# ---- scaling


def exact_scale(v, low, high):
    ratio = 2 * (Fraction(v) - Fraction(low)) / (Fraction(high) - Fraction(low)) - 1
    return float(max(-1, min(1, ratio)))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-1.7e308, 1.7e308), min_size=3, max_size=12))
def test_scaling_is_exact_up_to_the_largest_floats(values):
    raw = np.array(values)[:, None]
    low, high = feature_range(raw, np.arange(2), 'train')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        x, clipped = scale_features(raw, low, high)
    assert np.isfinite(x).all() and clipped == sum(not low[0] <= v <= high[0] for v in values)
    for v, found in zip(values, x[:, 0]):
        expected = -1 if low == high else exact_scale(v, low[0], high[0])
        assert found == pytest.approx(expected, abs=1e-6)


def test_scaling_of_ordinary_columns_is_as_it_was():
    rng = np.random.default_rng(0)
    raw = rng.normal(size=(500, 6)) * 10.0 ** rng.integers(-300, 300, 6)
    raw[:, 5] = 3
    low, high = raw[:250].min(0), raw[:250].max(0)
    x = 2 * (raw - low) / np.where(high > low, high - low, 1) - 1
    x[:, 5] = -1
    assert np.array_equal(scale_features(raw, low, high)[0], np.clip(x, -1, 1).astype(np.float32))
    huge = np.column_stack([raw, 1.7e308 * np.sign(raw[:, 0])])
    beside = scale_features(huge, huge[:250].min(0), huge[:250].max(0))[0]
    assert np.array_equal(beside[:, :6], scale_features(raw, low, high)[0])
    assert set(beside[:, 6]) == {-1, 1}


# ---- new people


def by_pyg(backbone, population, known, new, near):
    "p1 of new people: PyG's layers on all known people and the new ones, all edges."
    n, m = len(known.x), len(new)
    links = torch.stack([near.flatten(), torch.arange(n, n + m).repeat_interleave(near.shape[1])])
    x, edges = torch.cat([known.x, new]).double(), torch.cat([known.edge_index, links], 1)
    models = [population.module(i).double() for i in range(len(population))]
    answers = [model(x, edges).softmax(-1)[:, 1].detach() for model in models]
    alone = [model(known.x.double(), known.edge_index).softmax(-1)[:, 1] for model in models]
    for whole, before in zip(answers, alone):  # nobody among the known is touched
        torch.testing.assert_close(whole[:n], before.detach(), rtol=0, atol=1e-12)
    return torch.stack(answers)[:, n:]


@pytest.mark.parametrize('backbone', GNNS)
def test_new_people_are_linked_to_their_nearest_training_people(backbone):
    data = make_synthetic(150, 6, seed=1)
    data.neighbours = 5
    known = known_people(data)
    assert known.nodes.tolist() == data.train_mask.nonzero()[:, 0].tolist()
    new = make_synthetic(100, 6, seed=2).x[:23]
    distance = torch.cdist(new.double(), data.x[known.nodes].double())
    near = known.nodes[distance.argsort(dim=1, stable=True)[:, :5]]
    population = init_population([3, 4], in_features=data.num_features, backbone=backbone)
    x, edges, nodes = linked_to_known(new, known)
    found = population.probabilities(x, edges, nodes)
    assert len(x) < len(data.x) + len(new) and torch.equal(x[nodes], new)
    expected = by_pyg(backbone, population, known, new, near)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert isinstance(population.module(), GNN)


@pytest.mark.parametrize('backbone', GNNS)
def test_one_person_alone_gets_the_answer_of_the_batch(backbone):
    data = make_synthetic(150, 6, seed=1)
    data.neighbours = 4
    mixture = uniform_mixture(
        init_population([1, 2, 3], in_features=data.num_features, backbone=backbone),
        data.num_features,
    )
    new, known = make_synthetic(100, 6, seed=2).x, known_people(data)
    whole = predict_proba(mixture, new, known=known)
    order = torch.randperm(len(new), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        predict_proba(mixture, new[order], known=known), whole[order], rtol=0, atol=1e-12
    )
    for i in range(0, 100, 7):
        alone = predict_proba(mixture, new[i : i + 1], known=known)
        torch.testing.assert_close(alone[0], whole[i], rtol=0, atol=1e-12)
    more = Known(data.x, data.edge_index, known.nodes, 10**6)  # k beyond all of them
    assert predict_proba(mixture, new[:3], known=more).isfinite().all()
    assert whole.std(0).max() > 1e-4


QUICK = MoESettings(GateSettings(epochs=20, val_every=10))


def test_a_trainer_links_new_people_and_a_given_list_needs_edges(tmp_path):
    made = make_synthetic(200, 6, group_bias=2.0)
    raw = Data(x=3 * made.x + 5, y=made.y, sens=made.sens)
    options = dict(n_trials=1, backbone='gcn', epochs=20, settings=QUICK)
    one = MoETrainer(raw, False, tmp_path / 'rule', **options)
    one.train_gate()
    assert one.data.neighbours == 10
    new = pd.DataFrame(raw.x[:9].double().numpy() + 0.1, columns=one.data.feature_names)
    whole = one.predict_proba(new)
    for i in range(9):
        alone = one.predict_proba(new[i : i + 1])
        torch.testing.assert_close(alone[0], whole[i], rtol=0, atol=1e-12)
    for form in (pl.from_pandas(new), new[new.columns[::-1]], new.to_dict('records')):
        assert torch.equal(one.predict_proba(form), whole)
    fitted = one.mixture.probabilities(one.data.x, one.data.edge_index)[0]
    found = one.predict_proba(one.data.x, one.data.edge_index)
    assert torch.equal(found[:, 1], fitted)  # the data set itself, with its graph
    raw.edge_index = made.edge_index
    other = MoETrainer(raw, False, tmp_path / 'list', **options)
    other.train_gate()
    with pytest.raises(DataError, match='backbone gcn.*give edge_index.*made by a rule and not'):
        other.predict_proba(new)
    for opened in (one, other):
        opened.storage.engine.dispose()


@pytest.mark.parametrize(
    'backbone, options',
    [*((name, {}) for name in GNNS), ('gcn', {'threshold': 0.8}), ('gin', {'neighbours': 3})],
)
def test_the_classifier_links_new_rows_to_those_of_fit(backbone, options):
    data = make_synthetic(200, 6, seed=3)
    X, y = data.x.numpy().astype(float), data.y.numpy()
    model = FairMoEClassifier(
        backbone=backbone, epochs=20, on_missing_groups='ignore', random_state=0, **options
    ).fit(X[:150], y[:150])
    whole = model.predict_proba(X[150:])
    assert model.known_.k == options.get('neighbours', 10)
    for i in range(0, 50, 9):
        alone = model.predict_proba(X[150 + i : 151 + i])
        np.testing.assert_allclose(alone[0], whole[i], rtol=0, atol=1e-12)
    assert np.array_equal(model.predict(X[150:]), model.classes_[(whole[:, 1] >= 0.5).astype(int)])
    with_edges = model.predict_proba(X[150:], edge_index=[[0], [1]])
    assert not np.allclose(with_edges, whole)


@pytest.mark.parametrize(
    'people, message',
    [
        (torch.zeros(3, 4).to_sparse(), r'6 features per person, .*\(3, 4\)'),
        (torch.zeros(6), r'shape \(6,\)'),
        (torch.zeros(2, 6) * 1j, 'complex'),
        (np.full((2, 6), 'a'), 'array of numbers'),
        ([[None] * 6], 'array of numbers'),
        ([[1.0] * 6, [1.0]], 'array'),
        (torch.full((2, 6), torch.nan), 'finite'),
        (pd.DataFrame(np.zeros((2, 6))), 'needs the recipe'),
        ([{'a': 1}], 'needs the recipe'),
        ('people.csv', 'array of numbers'),
        (None, 'array'),
        ({'a': 1}, 'a list of one dict each'),
        (torch.zeros(0, 6), 'no new people'),
    ],
)
def test_new_people_who_do_not_fit(people, message):
    mixture = uniform_mixture(init_population([1], in_features=6), 6)
    with pytest.raises(DataError, match=message):
        predict_proba(mixture, people)


# ---- anything at all: a data set of finite numbers, or an error of the package

HUGE = [1.7e308, -1.7e308, 1e308, -1e308, 5e-324, 0.0, -0.0]
DATES = [
    pd.Timestamp('2020-03-01'),
    pd.Timestamp('1677-09-22', tz='UTC'),
    pd.NaT,
    datetime.date(1, 1, 1),
    datetime.datetime(9999, 12, 31, 23),
    np.datetime64('2020-01-01'),
    datetime.timedelta(days=3),
]
NUMBERS = st.one_of(
    st.floats(),
    st.sampled_from(HUGE),
    st.integers(-(2**63), 2**64),
    st.sampled_from([10**400, -(10**400), 2**53 + 1, True, np.float32(3), np.int8(-1)]),
)
TEXTS = st.one_of(
    st.text(max_size=4),
    st.sampled_from(
        ['', ' ', 'nan', 'None', '?', '1', '1.0', '007', '1e400', '1,4', '14%', 'é', 'Ж']
    ),
)
OTHERS = st.sampled_from(
    [
        *(None, pd.NA, np.nan, b'x', 1j, decimal.Decimal('1.50'), decimal.Decimal('NaN')),
        *(Fraction(1, 3), [1], [[1], [2]], [], (), {'a': 1}, {1}, np.arange(2), torch.ones(2)),
        *(object, pd.Interval(0, 1), pd.Period('2020'), Card('y', 's')),
    ]
)
CELLS = st.one_of(NUMBERS, TEXTS, OTHERS, st.sampled_from(DATES))
POOLS = st.one_of(
    *(st.lists(kind, min_size=1, max_size=6) for kind in (NUMBERS, TEXTS, st.sampled_from(DATES))),
    st.lists(st.sampled_from(HUGE), min_size=2, max_size=6),
    st.lists(CELLS, min_size=1, max_size=6),
)
NAMES = st.one_of(
    st.text(max_size=6), st.sampled_from(['y', 's', 'split', 'Größe', 'a=b', '\n', '𝛼'])
)


@st.composite
def columns_of_people(draw, n):
    "Columns of n cells, of a few values each, and a good label, group and feature."
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    columns = {'a': rng.normal(size=n), 'y': rng.integers(0, 2, n), 's': rng.integers(0, 2, n)}
    for name in draw(st.lists(NAMES, max_size=3)):
        pool = draw(POOLS)
        column = np.empty(n, dtype=object)
        for k, i in enumerate(rng.integers(0, len(pool), n)):
            column[k] = pool[i]
        if draw(st.booleans()):  # only a few odd cells in a column that was good
            usual = columns['a'] if name not in columns else columns[name]
            column = [c if k < 3 else v for k, (c, v) in enumerate(zip(column, usual))]
        columns[name] = list(column)
    return columns


def as_frame(columns):
    frame = pd.DataFrame({k: pd.Series(v, dtype=object) for k, v in columns.items()})
    return frame.infer_objects()


def as_tensor(values):
    "A tensor where PyTorch can make one, else what it was."
    try:
        return torch.tensor(values)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return values


def as_graph(columns):
    x = {k: v for k, v in columns.items() if k not in ('y', 's')}
    rows = [list(row) for row in zip(*x.values())]
    return Data(
        x=as_tensor(rows), y=as_tensor(list(columns['y'])), sens=as_tensor(list(columns['s']))
    )


def is_sound(load):
    "Loads finite features with labels and groups, or raises an error of the package."
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            data = load()
        except MoEExpertError as error:
            assert len(str(error)) > 20
            return False
    assert data.x.isfinite().all() and (data.x.abs() <= 1).all() and data.x.shape[1]
    assert set(data.y.unique().tolist()) <= {-1, 0, 1}
    groups = set(data.sens.unique().tolist()) - {-1}
    assert groups == set(range(len(data.group_names))) and len(groups) >= 2
    return True


CHECKS = dict(deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


def check_loading(columns, form, missing, drop):
    make = {'frame': as_frame, 'graph': as_graph, 'rows': lambda c: as_frame(c).to_dict('records')}
    said = {} if form == 'graph' else {'label': 'y', 'sensitive': 's', 'privileged': 1}
    is_sound(lambda: load_dataset(make[form](columns), missing=missing, drop=drop, **said))


LOADING = dict(
    columns=st.sampled_from([0, 1, 2, 60, 60, 60, 60, 60]).flatmap(columns_of_people),
    form=st.sampled_from(['frame', 'graph', 'rows']),
    missing=st.sampled_from(['error', 'drop', 'impute']),
    drop=st.sampled_from([(), ('a',), 'a', [3], None]),
)


@settings(max_examples=120, **CHECKS)
@given(**LOADING)
def test_anything_that_is_loaded(columns, form, missing, drop):
    check_loading(columns, form, missing, drop)


@pytest.mark.slow
@settings(max_examples=1500, **CHECKS)
@given(**LOADING)
def test_anything_that_is_loaded_many_times(columns, form, missing, drop):
    check_loading(columns, form, missing, drop)


FIELDS = st.sampled_from(
    [
        *(torch.rand(60), torch.rand(60, 2), torch.rand(60, 2, 2), torch.rand(0, 2), torch.eye(60)),
        *(
            torch.eye(60).to_sparse(),
            torch.eye(60).to_sparse_csr(),
            torch.tensor(3),
            torch.rand(60) * 1j,
        ),
        *(
            torch.arange(60),
            torch.arange(60) % 2,
            torch.arange(60) % 3 - 1,
            torch.randint(60, (2, 9)),
        ),
        *(torch.randint(60, (9, 2)), torch.zeros(2, 0), [0, 1] * 30, [[0, 1]] * 60, [[0], [1, 2]]),
        *('text', 3, 2.5, b'x', object(), {'a': 1}, None, [], np.array(['a', 'b'] * 30), pd.NA),
        *(np.ma.masked_array([0, 1] * 30, [True, False] * 30), pd.Series([0.0, 1] * 30), 10**400),
        *(scipy.sparse.eye_array(60), pl.Series([0, None] * 30), pa.array([1, 0] * 30), range(60)),
        *(torch.empty(60, 2, device='meta'), torch.full((60, 2), 1e308, dtype=torch.double)),
    ]
)
GRAPH_FIELDS = ('x', 'y', 'sens', 'edge_index', 'adj_t', 'edge_weight', 'edge_attr', 'name')
GRAPH_FIELDS += ('train_mask', 'val_mask', 'test_mask', 'feature_names')


def check_fields(fields):
    torch.manual_seed(0)
    made = dict(x=torch.randn(60, 2), y=torch.arange(60) % 2, sens=torch.arange(60) // 2 % 2)
    data = Data()
    for name, value in (made | fields).items():
        if value is not None:
            data[name] = value
    is_sound(lambda: load_dataset(data))


SOME_FIELDS = st.dictionaries(st.sampled_from(GRAPH_FIELDS), FIELDS, min_size=1, max_size=3)


@settings(max_examples=100, **CHECKS)
@given(SOME_FIELDS)
def test_any_fields_of_a_graph(fields):
    check_fields(fields)


@pytest.mark.slow
@settings(max_examples=1000, **CHECKS)
@given(SOME_FIELDS)
def test_any_fields_of_a_graph_many_times(fields):
    check_fields(fields)


class Checked(Exception):
    "The rows passed every check of `fit`."


def by_scikit_learn(error):
    "Is it scikit-learn's own word on X and y?"
    frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, TypeError | ValueError) and any(
        'sklearn' in f.filename for f in frames
    )


def check_fitting(monkeypatch, X, y, groups, options):
    "`fit` raises an error of the package or of scikit-learn, or would train on finite features."

    def stop(estimator, given, data, seed):
        assert data.x.isfinite().all() and set(data.y.tolist()) == {0, 1} == set(data.sens.tolist())
        raise Checked

    monkeypatch.setattr(classifier, '_fit_mixture', stop)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            FairMoEClassifier(random_state=0, **options).fit(X, y, sensitive_features=groups)
        except (MoEExpertError, Checked):
            return
        except (TypeError, ValueError) as error:
            if not by_scikit_learn(error):
                raise


CONTAINERS = st.sampled_from(
    [
        list,
        tuple,
        lambda v: np.array(v, dtype=object),
        lambda v: pd.Series(list(v), dtype=object).infer_objects(),
        lambda v: pd.DataFrame({'v': pd.Series(list(v), dtype=object)}),
        as_tensor,
    ]
)
FITTING = dict(
    columns=columns_of_people(40),
    boxes=st.tuples(CONTAINERS, CONTAINERS),
    options=st.sampled_from(
        [{}, {'pos_label': 1}, {'privileged': 1}, {'privileged': [1, 'a']}, {'threshold': 0.8}]
    ),
    plain=st.booleans(),
)


@settings(max_examples=80, **CHECKS)
@given(**FITTING)
def test_anything_that_is_fitted(columns, boxes, options, plain):
    fit_columns(columns, boxes, options, plain)


@pytest.mark.slow
@settings(max_examples=1000, **CHECKS)
@given(**FITTING)
def test_anything_that_is_fitted_many_times(columns, boxes, options, plain):
    fit_columns(columns, boxes, options, plain)


def fit_columns(columns, boxes, options, plain):
    columns = dict(columns)
    y, groups = (box(columns.pop(name)) for box, name in zip(boxes, ('y', 's')))
    X = as_frame(columns)
    X = as_tensor(X.to_numpy().tolist()) if plain else X
    with pytest.MonkeyPatch.context() as patch:
        check_fitting(patch, X, y, groups, options)
