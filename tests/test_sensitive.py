"`--sensitive` and `--combine`: other groups than those of the card, from each door to the report."

import json
import re

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from test_tune_notebook import outputs, text_of, tool

from moe_expert import cli, report
from moe_expert.datasets import load_dataset
from moe_expert.errors import ArtifactError
from moe_expert.mixture.checkpoints import tuning_command
from moe_expert.mixture.reading import as_recorded, to_run
from moe_expert.mixture.verify import verify
from moe_expert.parameters import check
from moe_expert.trainer import MoETrainer
from moe_expert.tune_experts import ExpertTuner

FEW = ['--n_trials', '1', '--epochs', '20', '--quiet']


def people(n=400):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            'income': rng.normal(size=n).round(3),
            'years': rng.integers(0, 20, n),
            'sex': rng.choice(['f', 'm'], n),
            'region': rng.choice(['north', 'south', 'west'], n),
        }
    )
    favour = 0.3 * (frame.sex == 'm') - 0.4 * (frame.region == 'west')
    frame['repaid'] = (frame.income + favour + rng.normal(size=n) > 0).astype(int)
    return frame


@pytest.fixture(scope='module')
def card(tmp_path_factory):
    "A card that compares two groups, about a table that also holds three regions."
    folder = tmp_path_factory.mktemp('loans')
    people().to_csv(folder / 'loans.csv', index=False)
    said = 'name: loans\ntable: loans.csv\nlabel: repaid\nsensitive: sex\nprivileged: m\n'
    (folder / 'card.yaml').write_text(said)
    return str(folder / 'card.yaml')


def read_only(door, card, folder):
    "The parameters of a report, as the files say."
    said = dict(dataset=card, cache_dir=str(folder), read_only=True)
    return as_recorded(check(door, said))


@pytest.fixture(scope='module')
def trained(card, tmp_path_factory):
    "The folder of all stages for three groups, tuned by one command and trained by another."
    folder = tmp_path_factory.mktemp('regions')
    said = ['--dataset', card, '--sensitive', 'region', '--cache_dir', str(folder), *FEW]
    assert cli.main(['tune', *said]) == 0
    assert cli.main(['train', *said, '--use_cached_experts']) == 0
    return folder


def test_all_stages_know_the_groups_that_were_asked_for(trained, card):
    test = json.loads((trained / 'loans_moe_results.json').read_text())
    assert test['settings']['card_changes'] == {'sensitive': 'region'}
    data = load_dataset(card, sensitive='region')
    assert data.group_names == ['north', 'south', 'west']
    assert test['settings']['fingerprint'] == data.fingerprint != load_dataset(card).fingerprint
    loaded = MoETrainer(card, True, sensitive=['region'], cache_dir=trained)
    assert loaded.data.fingerprint == data.fingerprint


def test_reports_and_the_check_of_files_find_the_same_people(trained, card):
    for door in ('tune.ipynb', 'moe.ipynb'):
        given = read_only(door, card, trained)
        data, _ = report.read_data(given)
        assert data.fingerprint == load_dataset(card, sensitive='region').fingerprint
        assert 'the groups are those of region)' in report.about(given).data
        assert '--sensitive region' in to_run('train', given)
    assert report.read_mixture(given, data).data.group_names == data.group_names
    assert verify(trained, card).exit_code == 0
    adapted = load_dataset(card, sensitive='sex', privileged=None)
    assert verify(trained, adapted).exit_code == 1


def test_files_belong_to_one_choice_of_groups(trained, card, capsys):
    same = ['--dataset', card, '--cache_dir', str(trained), *FEW]
    assert cli.main(['tune', *same, '--sensitive', 'sex,region']) == 1
    err = capsys.readouterr().err
    assert '"sensitive": "region"} there, {"sensitive": ["sex", "region"]} asked for' in err
    assert cli.main(['tune', *same]) == 1
    assert '"sensitive": "region"} there, not set asked for' in capsys.readouterr().err
    with pytest.raises(ArtifactError, match='card_changes is .*region.* there, None is asked for'):
        MoETrainer(card, True, cache_dir=trained)


def test_overwrite_starts_anew_with_other_groups(card, tmp_path):
    said = ['tune', '--dataset', card, '--cache_dir', str(tmp_path), '--expert', 'expert1', *FEW]
    assert cli.main(said) == 0
    assert cli.main([*said, '--overwrite', '--sensitive', 'sex', 'region']) == 0
    found = read_only('tune.ipynb', card, tmp_path)
    assert (found.sensitive, found.combine) == (('sex', 'region'), None)
    asked = load_dataset(card, sensitive=['sex', 'region'])
    assert report.read_data(found)[0].fingerprint == asked.fingerprint
    assert len(asked.group_names) > 3


@pytest.mark.parametrize(
    'own, changes',
    [
        ({}, {}),
        (dict(sensitive='sex'), {}),
        (dict(sensitive=('sex',), groups='separate'), {}),  # one column cannot be combined
        (dict(sensitive=['region']), {'sensitive': 'region'}),
        (dict(sensitive=('sex', 'region'), groups='crossed'), {'sensitive': ['sex', 'region']}),
        (
            dict(sensitive='region', privileged=np.array(['west'])),
            {'sensitive': 'region', 'privileged': ['west']},
        ),
        (
            dict(sensitive=['sex', 'region'], groups='separate'),
            {'sensitive': ['sex', 'region'], 'groups': 'separate'},
        ),
    ],
)
def test_the_same_groups_have_the_same_settings(card, own, changes):
    data = load_dataset(card, **own)
    assert getattr(data, 'card_changes', {}) == changes
    assert load_dataset(card, **changes).fingerprint == data.fingerprint


def test_the_cure_names_the_groups_of_a_shipped_card(tmp_path):
    rng = np.random.default_rng(1)
    exam = pd.DataFrame(
        {
            'Position': rng.choice(['Captain', 'Lieutenant'], 118),
            'Oral': rng.normal(70, 10, 118).round(2),
            'Written': rng.normal(70, 10, 118).round(),
            'Race': rng.choice(['W', 'B', 'H'], 118),
        }
    )
    exam['Combine'] = (0.6 * exam.Written + 0.4 * exam.Oral).round(3)
    exam.to_csv(tmp_path / 'ricci.csv', index=False)
    two = dict(sensitive=['Race', 'Position'], groups='separate')
    with pytest.warns(UserWarning, match='is not the published ricci.csv'):
        data = load_dataset('ricci', data_dir=tmp_path, **two)
        few = load_dataset('ricci', data_dir=tmp_path, **two, min_group=2)
    said = tuning_command(data, 0, 'w')
    assert said.startswith('python -m') and 'Race Position --combine separate' in said
    assert "'Position'], groups='separate', min_group=2)" in tuning_command(few, 0, 'w')


@pytest.mark.parametrize(
    'argv, code, said',
    [
        (['tune', '--sensitive', 'RACE'], 1, 'sensitive: only for your own data .* of WHITE'),
        (['run', 'synthetic-300', '--sensitive', 'c1'], 1, 'for synthetic-300 data_dir'),
        (['tune', '--dataset', 'CARD', '--sensitive', 'rgion'], 1, "Did you mean 'region'"),
        (['tune', '--dataset', 'CARD', '--sensitive', 'repaid'], 1, 'the same column, .repaid'),
        (['train', '--dataset', 'CARD', '--sensitive', 'income'], 1, 'bands: {income: '),
        (['tune', '--dataset', 'TABLE', '--sensitive', 'sex'], 1, 'is a table, and nothing says'),
        (['run', 'CARD', '--combine', 'separate'], 2, 'combine has no effect without --sensitive'),
        (['tune', '--sensitive', 'sex', '--combine', 'both'], 2, "invalid choice: 'both'"),
        (['datasets', '--sensitive', 'sex'], 2, 'sensitive has no effect without a dataset'),
        (['report', '--sensitive', 'sex'], 2, 'sensitive is an option of tune, train, run, '),
    ],
)
def test_what_cannot_be_is_one_line(argv, code, said, card, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    places = {'CARD': card, 'TABLE': card.replace('card.yaml', 'loans.csv')}
    argv = [places.get(word, word) for word in argv]
    try:
        ended = cli.main(argv)
    except SystemExit as end:
        ended = end.code
    err = capsys.readouterr().err
    assert ended == code and re.search(said, err) and err.count('\n') == 1
    assert not list(tmp_path.iterdir())  # nothing was begun


def test_the_data_card_shows_the_groups_before_anything_is_tuned(card, capsys):
    assert cli.main(['datasets', card, '--sensitive', 'sex,region', '--combine', 'separate']) == 0
    assert 'sex: f / m; region: north / south / west' in capsys.readouterr().out


@pytest.mark.slow
def test_papermill_and_the_report_that_only_reads(card, tmp_path):
    folder = tmp_path / 'files'
    given = dict(dataset=card, sensitive='sex,region', combine='separate', cache_dir=folder)
    given |= dict(expert='expert2', n_trials=1, epochs=20)
    words = [w for k, v in given.items() for w in ('-p', k, v)]
    command = ['papermill', 'nbs/tune.ipynb', tmp_path / 'out.ipynb', '--no-progress-bar']
    done = tool(*command, *words, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    first = text_of(outputs(tmp_path / 'out.ipynb'))
    assert 'the groups are those of sex, region (separate)' in first
    again = report.run_report(card, 'expert2', cache_dir=folder)
    said = text_of(outputs(again))
    assert 'the groups are those of sex, region (separate)' in said and 'only reads' in said
    tuner = ExpertTuner(
        card, epochs=20, cache_dir=folder, sensitive=['sex', 'region'], groups='separate'
    )
    assert tuner.data.fingerprint in said  # the data of the report are those of the files
    wrong = tool(*command, *words, '-p', 'combine', 'both', cwd=ROOT)
    assert wrong.returncode == 1 and "combine must be 'crossed', 'separate'" in wrong.stderr
