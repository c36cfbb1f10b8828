"""Hundreds of generated bad inputs: names, tables, scores, arguments.

Each ends in an error of this package with a message, never in one from a library below it.
"""

import os

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moe_expert import errors
from moe_expert.data.synthetic import make_synthetic
from moe_expert.datasets import load_dataset
from moe_expert.errors import ArtifactError, DataError, MoEExpertError
from moe_expert.run_expert_tuning import main
from moe_expert.scores import metrics as scores_metrics
from moe_expert.tuning.folder import ExpertFiles, check_expert, claim
from moe_expert.tuning.records import load_expert
from moe_expert.tuning.storage import open_storage


def many(n):
    return settings(
        max_examples=n,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


# --- scores -----

N = 12
SCORES = {
    'accuracy': 'py',
    'f1': 'py',
    'roc_auc': 'py',
    'utility': 'py',
    'demographic_parity': 'ps',
    'equal_opportunity': 'pys',
    'fair_result': 'pys',
    'equalized_odds': 'pys',
}
binary = st.lists(st.integers(0, 1), min_size=N, max_size=N).map(torch.tensor)
good_p1 = st.lists(st.floats(0, 1), min_size=N, max_size=N).map(
    lambda v: torch.tensor(v, dtype=torch.float64)
)
no_tensor = st.one_of(
    st.none(),
    st.text(max_size=3),
    st.floats(),
    st.lists(st.floats(0, 1), max_size=4),
    st.just(np.zeros(N)),
)


@st.composite
def broken_tensor(draw, letter):
    "A tensor with one thing wrong: a value, its length, its shape, its kind."
    t = draw(good_p1 if letter == 'p' else binary).double()
    how = draw(st.sampled_from(['value', 'length', 'shape', 'complex', 'scalar']))
    bad = {
        'p': [float('nan'), float('inf'), -1.0, 1.5, 2.0, -1e-9],
        'y': [float('nan'), 2.0, -1.0, 0.5, 1e9],
        's': [float('nan'), float('inf'), -2.0, 0.5],  # 2 is a third group, −1 is not compared
    }
    bad = st.sampled_from(bad[letter])
    if how == 'value':
        t[draw(st.integers(0, N - 1))] = draw(bad)
    elif how == 'length':
        t = t[: draw(st.integers(1, N - 1))] if draw(st.booleans()) else torch.cat([t, t])
    elif how == 'shape':
        t = t[:, None].expand(N, 3)
    elif how == 'complex':
        t = t.to(torch.complex64) + 1j
    else:
        t = t[0]
    return t


@many(150)
@given(st.data(), st.sampled_from(list(SCORES)))
def test_scores_of_bad_tensors(data, name):
    letters = SCORES[name]
    wrong = data.draw(st.integers(0, len(letters) - 1))
    args = []
    for i, letter in enumerate(letters):
        good = good_p1 if letter == 'p' else binary
        args.append(data.draw(st.one_of(no_tensor, broken_tensor(letter)) if i == wrong else good))
    with pytest.raises((errors.ScoreInputError, errors.UndefinedScoreError)) as caught:
        getattr(scores_metrics, name)(*args)
    assert str(caught.value) and isinstance(caught.value, MoEExpertError)


@many(60)
@given(st.data(), st.sampled_from(list(SCORES)))
def test_scores_are_defined_or_say_that_they_are_not(data, name):
    "With tensors that are right: a finite number in [0, 1], or `UndefinedScoreError`."
    args = [data.draw(good_p1 if letter == 'p' else binary) for letter in SCORES[name]]
    try:
        score = getattr(scores_metrics, name)(*args)
    except errors.UndefinedScoreError:
        return
    assert 0 <= score.item() <= 1


# --- names -----

TRICKS = [
    '../x',
    '/etc/passwd',
    'a/../b',
    '..',
    '.',
    '',
    'x/y',
    'x\\y',
    'C:\\x',
    '~root',
    '\0',
    'a\nb',
    '-rf',
    'ａ',
    'x' * 300,
    'file:///x',
    '%2e%2e',
    None,
    3,
    b'x',
    ['x'],
]
odd = st.one_of(
    st.sampled_from(TRICKS),
    st.text(max_size=12),
    st.binary(max_size=4),
    st.integers(),
    st.lists(st.text(max_size=3), max_size=2),
)


@many(120)
@given(odd, odd)
def test_names_that_become_file_names(tmp_path, dataset, expert):
    "Refused, or a file inside the folder: no name leads elsewhere."
    outside = set(tmp_path.iterdir())
    folder = tmp_path / 'cache'
    for call in (
        lambda: ExpertFiles(folder, dataset).checkpoint(expert),
        lambda: load_expert(folder, dataset, expert),
        lambda: load_expert(folder, dataset, 'expert1'),
        lambda: claim(folder, dataset, {}),
    ):
        try:
            made = call()
        except ArtifactError:
            continue
        for path in (made.settings,) if isinstance(made, ExpertFiles) else (made,):
            assert path.resolve().parent == folder.resolve()
    assert set(tmp_path.iterdir()) <= outside | {folder}
    with pytest.raises(ArtifactError):
        check_expert(expert if expert not in ('expert1', 'expert2', 'expert3') else 'expert4')


@many(120)
@given(
    st.one_of(
        st.sampled_from([t for t in TRICKS if isinstance(t, str)]),
        st.text(max_size=20),
        st.from_regex(r'(synthetic|bail|math)[-./\w]{1,9}', fullmatch=True),
    )
)
def test_names_of_data_sets(name):
    "A name that nobody knows, or a path to something that is no table, is a `DataError`."
    if name.strip().lower().replace('_', '-') in ('bail', 'math') or name.startswith('synthetic'):
        name = f'{name}/'
    with pytest.raises(DataError) as caught:
        load_dataset(name)
    assert str(caught.value)


# --- tables -----


def people(n=80):
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            'age': rng.normal(40, 9, n).round(1),
            'job': rng.choice(['a', 'b', 'c'], n),
            'sex': rng.choice(['f', 'm'], n),
            'paid': rng.integers(0, 2, n),
        }
    )


def load(frame, **more):
    return load_dataset(
        frame, **dict(label='paid', sensitive='sex', privileged='m', dataset_name='people') | more
    )


def test_the_table_that_is_harmed_below_is_good():
    assert load(people()).num_nodes == 80


@st.composite
def harmed(draw):
    "A table and its description with one thing wrong."
    frame, more = people(), {}
    how = draw(
        st.sampled_from(
            [
                'label',
                'sensitive',
                'one label',
                'one group',
                'few',
                'none',
                'label kinds',
                'empty column',
                'infinite',
                'drop',
                'seed',
                'split',
                'twice',
                'card',
                'label is sensitive',
            ]
        )
    )
    text = draw(st.text(max_size=8))
    if how == 'label':
        more['label'] = draw(
            st.one_of(st.just(text), st.none(), st.integers(), st.just(['paid', 'sex']))
        )
    elif how == 'sensitive':
        more['sensitive'] = draw(st.one_of(st.just(text), st.none(), st.integers()))
    elif how == 'one label':
        frame['paid'] = draw(st.sampled_from([0, 1, 'yes', None]))
    elif how == 'one group':
        frame['sex'] = draw(st.sampled_from(['f', 1, None, float('nan')]))
    elif how == 'few':
        frame = frame.iloc[: draw(st.integers(0, 5))]
    elif how == 'none':
        frame = draw(st.sampled_from([pd.DataFrame(), frame[['paid', 'sex']], frame.iloc[:0]]))
    elif how == 'label kinds':
        frame['paid'] = draw(
            st.sampled_from([list(range(80)), [0, 1, 2, 3] * 20, ['x', 'y', 'z', 'w'] * 20])
        )
    elif how == 'empty column':
        frame = frame.assign(age=None, job=None)[['age', 'job', 'sex', 'paid']]
        more['sensitive_as_feature'] = False  # nothing is left to learn from
    elif how == 'infinite':
        frame.loc[3, 'age'] = draw(st.sampled_from([np.inf, -np.inf]))
    elif how == 'drop':
        more['drop'] = [text, 'nothing of that name']
    elif how == 'seed':
        more['split_seed'] = draw(st.sampled_from(['x', [1], 'ten']))
    elif how == 'split':
        more['split'] = draw(
            st.sampled_from(
                [
                    {'column': 'no'},
                    {'train': 2.0},
                    {'train': -1, 'val': 0.2},
                    {'seed': 'x'},
                    {'odd': 1},
                ]
            )
        )
    elif how == 'twice':
        frame = pd.concat([frame, frame[['age']]], axis=1)
    elif how == 'card':
        more[draw(st.sampled_from(['labels', 'positiv', 'grph', 'feature', 'x']))] = text
    else:
        more['sensitive'] = 'paid'
    return how, frame, more


@many(160)
@given(harmed())
def test_tables_with_one_thing_wrong(case):
    how, frame, more = case
    with pytest.raises(DataError) as caught:
        load(frame, **more)
    assert str(caught.value)


@many(80)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.text(alphabet='paid,sex\n01"\'x;\t ', max_size=200).map(str.encode),
    ),
    st.sampled_from(['csv', 'parquet', 'yaml', 'json']),
)
def test_files_of_rubbish(tmp_path, content, ending):
    path = tmp_path / f'rubbish.{ending}'
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_dataset(
            path, **{} if ending in ('yaml', 'json') else dict(label='paid', sensitive='sex')
        )
    assert str(caught.value)


@many(40)
@given(
    st.dictionaries(
        st.sampled_from(['n_nodes', 'n_features', 'avg_degree', 'minority', 'homophily']),
        st.sampled_from([-1, 0, -0.5, 1e9]),
        min_size=1,
    )
)
def test_generators_out_of_range(kwargs):
    kwargs = {
        k: int(v) if k[0] == 'n' and v < 1e9 else -3 if v == 1e9 and k[0] == 'n' else v
        for k, v in kwargs.items()
    }
    if set(kwargs.items()) <= {('homophily', 0)}:
        kwargs['homophily'] = 2
    with pytest.raises(DataError):
        make_synthetic(**kwargs)


# --- arguments -----

WRONG = {
    '--n_trials': ['0', '-1', 'x', '1.5', '', '1e3', '99999999999999999999'],
    '--seed': ['-1', 'x', '4294967296', '0.5'],
    '--epochs': ['0', 'x', '-5', 'nan'],
    '--expert': ['4', 'expert4', '../x', ''],
    '--edition': ['half', ''],
    '--keep': ['2', '-1', 'x', 'nan'],
    '--dataset': [
        'bial',
        '../x',
        '/etc/passwd',
        '',
        'synthetic-0',
        'synthetic-x',
        'bail/../math',
        '\0',
    ],
    '--device': ['abacus', 'cuda:99', ''],
    '--storage': ['nothing', 'mongo://x', 'postgresql://u:secret@127.0.0.1:1/x', 'sqlite://'],
    '--drop': ['no_such_column', ',', 'c99'],
    '--n_trial': ['3'],
    '--no-such': ['x'],
    '--cache_dir': ['/dev/null/x', '/proc/x'],
}


@many(120)
@given(st.data())
def test_arguments(tmp_path, capsys, data):
    "One wrong argument among right ones: exit code 1 or 2 and a line that says what is wrong."
    option = data.draw(st.sampled_from(list(WRONG)))
    value = data.draw(st.sampled_from(WRONG[option]))
    argv = [
        '--dataset',
        'synthetic-60',
        '--n_trials',
        '1',
        '--epochs',
        '1',
        '--expert',
        'expert1',
        '--cache_dir',
        str(tmp_path / 'cache'),
    ]
    argv = argv[:2] * (option != '--dataset') + argv[2:] + [option, value]
    if option == '--drop' and value == ',':
        argv[-1] = 'no,such'
    try:
        code = main(argv)
    except SystemExit as end:
        code = end.code
    err = capsys.readouterr().err
    assert (
        code in (1, 2)
        and 'error: ' in err.splitlines()[-1]
        and 'Traceback' not in err
        and 'secret' not in err
    ), (argv, err)
    assert not list(tmp_path.glob('cache/*.pt'))


@many(60)
@given(
    st.one_of(st.text(max_size=20), st.from_regex(r'[a-z+]{1,12}://[^\s]{0,12}', fullmatch=True))
)
def test_storage_addresses(tmp_path, url):
    if url.split('+')[0].split(':')[0] in (
        'sqlite',
        'mysql',
        'postgresql',
        'mariadb',
        'oracle',
        'mssql',
    ):
        url = f'x{url}'
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        with pytest.raises(ArtifactError):
            open_storage(url, None)
    finally:
        os.chdir(here)
    assert not list(tmp_path.iterdir())
