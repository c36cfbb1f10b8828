"""The front against a double loop.

A search that goes on; choices by rule; what is refused; the script.
"""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_expert.data.synthetic import make_synthetic
from moe_expert.errors import ArtifactError, MoEExpertError
from moe_expert.run_expert_tuning import main
from moe_expert.tune_experts import ExpertTuner
from moe_expert.tuning.artifacts import read_json
from moe_expert.tuning.trade_off import AIMS, choose, front, load_pareto, search_pareto


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 30),
    k=st.integers(1, 3),
    levels=st.sampled_from([2, 4, 100]),
)
def test_front_against_a_double_loop(seed, n, k, levels):
    values = np.random.default_rng(seed).integers(0, levels, (n, k))
    dominated = {
        j
        for i, j in itertools.permutations(range(n), 2)
        if (values[i] >= values[j]).all() and (values[i] > values[j]).any()
    }
    assert np.flatnonzero(~front(values)).tolist() == sorted(dominated)


def test_rule_never_gives_up_more_utility_than_it_may():
    rng = np.random.default_rng(0)
    records = [
        dict(number=i, metrics=dict(zip(AIMS, row))) for i, row in enumerate(rng.random((40, 3)))
    ]
    for keep in (0, 0.5, 0.9, 1):
        chosen = choose(records, keep)['metrics']
        gap = chosen['fair_result'] + chosen['fair_procedure']
        enough = [
            r['metrics']
            for r in records
            if r['metrics']['utility'] >= keep * max(r['metrics']['utility'] for r in records)
        ]
        assert chosen in enough and gap == min(
            m['fair_result'] + m['fair_procedure'] for m in enough
        )


@pytest.fixture(scope='module')
def data():
    return make_synthetic(400, 20, seed=1)


def test_a_search_goes_on_where_it_was(data, tmp_path):
    first = search_pareto(ExpertTuner(data, cache_dir=tmp_path / 'a', epochs=400), 4)
    more = search_pareto(ExpertTuner(data, cache_dir=tmp_path / 'a', epochs=400), 6, keep=0.5)
    once = search_pareto(ExpertTuner(data, cache_dir=tmp_path / 'b', epochs=400), 6, keep=0.5)
    assert [t['params'] for t in more['trials']] == [t['params'] for t in once['trials']]
    assert more['trials'][:4] != [] and [t['metrics'] for t in more['trials'][:4]] == [
        t['metrics'] for t in first['trials']
    ]
    assert (
        more['best_trial'] == once['best_trial']
        and read_json(tmp_path / 'a' / f'{data.name}_pareto_results.json') == more
    )
    (tmp_path / 'a' / f'{data.name}_pareto_best.pt').write_bytes(b'no')
    with pytest.raises(ArtifactError, match='pareto_best'):
        load_pareto(tmp_path / 'a', data.name)
    search_pareto(
        ExpertTuner(data, cache_dir=tmp_path / 'a', epochs=400), 6, keep=0.5
    )  # mended from the study
    assert load_pareto(tmp_path / 'a', data.name)[1]['trial'] == more['best_trial']
    ExpertTuner(data, cache_dir=tmp_path / 'a', epochs=400, overwrite=True)
    assert not list((tmp_path / 'a').glob('*pareto*'))


def test_what_is_refused(data, tmp_path):
    tuner = ExpertTuner(data, cache_dir=tmp_path, epochs=1)
    for wrong in (dict(n_trials=0), dict(n_trials=2.0), dict(keep=1.5)):
        with pytest.raises(MoEExpertError):
            search_pareto(tuner, **wrong)
    tuner.study('expert1').set_user_attr(
        'floor',
        dict(reference_utility=1.0, reference_auc=1.0, utility_fraction=1.0, auc_fraction=1.0),
    )  # out of reach
    with pytest.raises(MoEExpertError, match='none of the 1 trials reached the floor'):
        search_pareto(tuner, 1)


def test_the_script(tmp_path, capsys):
    folder = str(tmp_path)
    assert (
        main(
            [
                '--dataset',
                'synthetic-200',
                '--pareto',
                '--n_trials',
                '3',
                '--epochs',
                '200',
                '--keep',
                '.9',
                '--cache_dir',
                folder,
            ]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert (
        'at least 90% of the best utility' in out
        and '★' in out
        and (tmp_path / 'synthetic-200_pareto.png').stat().st_size > 5000
    )
    with pytest.raises(SystemExit):
        main(['--pareto', '--keep', '95'])
    assert 'not a number between 0 and 1' in capsys.readouterr().err
