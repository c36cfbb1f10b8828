"Tables and figures hold what the records say, in good times and bad; parameters and progress."

import ast
import base64
import gc
import io
import json
import re
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure
from PIL import Image

from moe_expert import report
from moe_expert.data import audit as data_audit
from moe_expert.data.styled import score_html
from moe_expert.data.synthetic import make_synthetic
from moe_expert.datasets import load_dataset
from moe_expert.errors import ArtifactError, DataWarning, OfflineEditionWarning, ParameterError
from moe_expert.experts.specs import EXPERTS
from moe_expert.experts.trainers import TrainSettings
from moe_expert.parameters import check, collect, names
from moe_expert.report import groups as report_groups
from moe_expert.report import index as report_index
from moe_expert.report import look as report_look
from moe_expert.report import pages as report_pages
from moe_expert.report import people as report_people
from moe_expert.report import run as report_run
from moe_expert.report import search as report_search
from moe_expert.report import winners as report_winners
from moe_expert.scores import facts as scores_facts
from moe_expert.scores import intervals as scores_intervals
from moe_expert.scores.evaluation import Evaluator
from moe_expert.tune_experts import ExpertTuner
from moe_expert.tuning import progress as tuning_progress
from moe_expert.tuning import winners as tuning_winners
from moe_expert.tuning.artifacts import read_json, write_json
from moe_expert.tuning.folder import ExpertFiles, make_folder
from moe_expert.tuning.progress import Progress
from moe_expert.tuning.settings import TuneSettings


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A tuning run on synthetic people: (data, results, files)."
    data = make_synthetic(300, 8, seed=1)
    settings = TuneSettings(TrainSettings(epochs=100, val_every=20))
    tuner = ExpertTuner(data, cache_dir=tmp_path_factory.mktemp('cache'), settings=settings)
    return data, tuner.tune_all_experts(6), tuner.files


@pytest.fixture(scope='module')
def winners(run):
    data, _, files = run
    return tuning_winners.load_winners(files.cache_dir, data)


def infeasible(result):
    "The same record as if no trial had reached the floor."
    trials = [
        t | dict(feasible=False, constraints=[0.1, 0.1, 0.0]) if t['state'] == 'complete' else t
        for t in result['trials']
    ]
    return result | dict(feasible=False, n_feasible=0, trials=trials)


def failed(result, number):
    "The same record as if one trial had failed."
    lost = dict(
        state='fail',
        score=None,
        feasible=False,
        metrics=None,
        constraints=None,
        epoch=None,
        error='NaN in epoch 3',
    )
    return result | dict(
        trials=[t | lost if t['number'] == number else t for t in result['trials']]
    )


def test_every_score_of_a_result_has_a_meaning(run):
    shown = set(report_look.score_meanings().index)
    assert set(run[1]['expert1']['best_metrics']) - {'selection_rate'} == shown
    assert {s.objective for s in EXPERTS.values()} <= shown
    assert all(
        row.meaning.endswith('.') and row.better in ('higher', 'lower')
        for row in report_look.score_meanings().itertuples()
    )


def test_tables_show_long_texts_and_escape(run):
    html = report_look.score_meanings()._repr_html_()
    assert scores_facts.FACTS['att_jsd'].meaning.split(':')[1].strip() in html.replace(
        '&#x27;', "'"
    )
    evil = report_look.table([dict(a='<script>')], 'x < y')._repr_html_()
    assert '<script>' not in evil and 'x &lt; y' in evil


def test_notices():
    offline = load_dataset('bail', edition='offline')
    assert [n.title for n in report_people.data_notices(offline)] == ['Offline edition']
    data = make_synthetic(400, 8, seed=0)  # enough people to judge leaks by
    data.x[:, 2] = -data.y * 1.0  # a column that says the outcome the other way round
    (note,) = report_people.data_notices(data)
    assert note.title == 'Possible leakage' and data.feature_names[2] in note.text
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        warnings.warn('not the published file', DataWarning, stacklevel=1)
        warnings.warn('offline', OfflineEditionWarning, stacklevel=1)
        warnings.warn('other', UserWarning, stacklevel=1)
    assert [n.text for n in report_people.data_notices(data, caught)[1:]] == [
        'not the published file'
    ]
    assert '&lt;b&gt;' in report_look.Notices([report_look.Notice('x', '<b>')])._repr_html_()
    assert 'role="note"' in report_people.data_notices(offline)._repr_html_()


def test_an_infeasible_winner_is_shouted_everywhere(run):
    _, results, _ = run
    bad = {'expert2': infeasible(results['expert2'])}
    assert 'infeasible' in report_search.result_notices(bad)[0].title
    assert 'INFEASIBLE' in report_winners.winners_table(bad)['status'].iloc[0]
    assert 'INFEASIBLE' in ' '.join(report_search.trials_table(bad['expert2'])['verdict'])
    figures = report_search.plot_history(bad), report_search.plot_tradeoff(bad)
    labels = [t.get_text() for figure in figures for legend in figure.legends for t in legend.texts]
    assert (
        'kept, but infeasible' in labels
        and 'winner' not in labels
        and 'best feasible so far' not in labels
    )
    flagged = [n.title for n in report_search.result_notices(results)]
    for expert, r in results.items():
        assert (f'{expert} is infeasible' in flagged) == (not r['feasible'])


def test_a_failed_trial_is_told_and_breaks_nothing(run):
    r = run[1]['expert1']
    lost = next(t['number'] for t in r['trials'] if t['number'] != r['best_trial'])
    bad = {'expert1': failed(r, lost)}
    told = report_search.result_notices(bad)[-1]  # after what speaks against the winner
    assert told.title == 'expert1: 1 failed trials' and 'NaN in epoch 3' in told.text
    assert report_search.trials_table(bad['expert1']).loc[lost, 'verdict'] == 'fail: NaN in epoch 3'
    for figure in (
        report_search.plot_history(bad),
        report_search.plot_importance(bad),
        report_search.plot_tradeoff(bad),
    ):
        assert figure._repr_png_().startswith(b'\x89PNG')


@pytest.mark.parametrize('n', range(1, 7))
def test_importance_with_few_trials(run, n):
    r = run[1]['expert2']
    importance = report_search.parameter_importance(r | dict(trials=r['trials'][:n]))
    assert ('too few' in importance.attrs['method']) == (n < 5)
    assert len(importance) == (0 if n < 5 else 4) and importance.between(0, 1).all()


def test_importance_finds_the_parameter_that_matters():
    rng = np.random.default_rng(0)
    space = dict(
        lr=dict(low=1e-5, high=1e-3, log=True), weight_decay=dict(low=1e-6, high=1e-3, log=True)
    )
    draws = [
        dict(lr=10 ** rng.uniform(-5, -3), weight_decay=10 ** rng.uniform(-6, -3))
        for _ in range(30)
    ]
    trials = [
        dict(number=i, state='complete', params=p, score=float(np.log(p['lr'])))
        for i, p in enumerate(draws)
    ]
    for n, method in ((8, 'rank correlation'), (30, 'fANOVA')):
        importance = report_search.parameter_importance(
            dict(trials=trials[:n], search_space=space, direction='maximize')
        )
        assert (
            method in importance.attrs['method']
            and importance.index[0] == 'lr'
            and importance['lr'] > 0.8
        )
    again = report_search.parameter_importance(
        dict(trials=trials, search_space=space, direction='maximize')
    )
    assert again.equals(importance)  # seeded
    flat = report_search.parameter_importance(
        dict(trials=[t | dict(score=0.5) for t in trials], search_space=space, direction='maximize')
    )
    assert flat.empty and 'same objective' in flat.attrs['method']


def test_figures_have_labelled_axes_and_no_pyplot(run, winners):
    import matplotlib.pyplot as plt

    data, results, _ = run
    figures = [
        report_search.plot_history(results),
        report_search.plot_importance(results),
        report_search.plot_tradeoff(results),
        report_search.plot_learning(results),
        report_winners.plot_attributions(data, winners),
        report_winners.plot_intervals(winners),
    ]
    assert plt.get_fignums() == []
    for figure in figures:
        assert figure.get_figwidth() <= 10
        assert figure.axes[-1].get_xlabel()
        figure._repr_png_()
    stars = (
        report_search.plot_history(results, winners),
        report_search.plot_tradeoff(results, winners),
    )
    assert all(
        "winner's 95 % interval" in [t.get_text() for t in figure.legends[0].texts]
        for figure in stars
    )
    one = report_search.plot_tradeoff({'expert3': results['expert3']})
    assert len(one.axes) == 2


def test_a_picture_is_drawn_once_and_as_matplotlib_draws_it(run, monkeypatch):
    figure, saved, drawn = report_search.plot_history(run[1]), io.BytesIO(), []
    figure.savefig(saved, format='png')
    draw = Figure.draw
    monkeypatch.setattr(Figure, 'draw', lambda self, r: (drawn.append(self), draw(self, r))[1])
    narrow, _ = figure._repr_mimebundle_()
    shown = figure._repr_png_()
    assert len(drawn) == 2 and len(set(drawn)) == 2 and narrow  # as it is, and below each other
    exact, few = (np.asarray(Image.open(f).convert('RGB'), int) for f in (saved, io.BytesIO(shown)))
    error = np.abs(exact - few).max(axis=2)
    assert error.max() > 0  # there are few colours
    assert error.mean() < 1 and (error > 32).mean() < 1e-3
    assert type(figure.canvas) is FigureCanvasBase  # its pixels are not kept


def test_winners_are_the_recorded_ones(run, winners):
    data, results, files = run
    for e, w in winners.items():
        scores = w.record.scores()
        assert all(abs(scores[n].item() - v) < 1e-6 for n, v in results[e]['best_metrics'].items())
    table = report_winners.metrics_table(winners)
    assert (
        table.caption
        == 'selected on these nodes: optimistic; node sampling only, not training seeds'
        == report_winners.SELECTED
    )
    w = winners['expert2']
    value, low, high = (
        float(v)
        for v in table.loc['utility', 'expert2'].replace('[', ',').replace(']', '').split(',')
        if v
    )
    assert (
        abs(
            value
            - w.result['best_score' if w.result['objective'] == 'utility' else 'best_metrics'][
                'utility'
            ]
        )
        < 6e-4
    )
    assert abs(low - w.intervals['utility'].low.item()) < 6e-4 and low <= high


def test_a_checkpoint_that_does_not_give_the_recorded_score_stops_the_report(run, tmp_path):
    data, _, files = run
    for path in files.cache_dir.glob('*expert1*'):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    there = tmp_path / files.results('expert1').name
    write_json(there, read_json(there) | dict(best_score=0.99))  # with a new seal
    with pytest.raises(ArtifactError, match='0.99'):
        tuning_winners.load_winner(tmp_path, data, 'expert1')


def test_attributions_are_the_group_means(run, winners):
    data, _, _ = run
    table = report_winners.mean_attributions(data, winners['expert1'])
    a = winners['expert1'].record.attributions[0].abs()
    share, val = a / a.sum(-1, keepdim=True), data.val_mask
    expected = torch.stack([share[data.sens[val] == s].mean(0) for s in (0, 1)], 1)
    assert np.allclose(table.to_numpy(), expected.numpy())
    assert list(table.columns) == list(data.group_names)


def test_group_scores_explain_the_gaps(run, winners):
    table = report_groups.group_scores(run[0], winners)
    for e, w in winners.items():
        gaps = table.loc[(e, 'difference')]
        assert abs(gaps['selection rate'] - w.result['best_metrics']['dp']) < 1e-9
        assert abs(gaps['true positive rate'] - w.result['best_metrics']['eo']) < 1e-9


def test_cells_of_tables_are_aligned_and_intervals_stay_on_one_line(winners):
    html = report_winners.metrics_table(winners)._repr_html_()
    assert all(
        re.search(
            rf'{w.result["best_metrics"]["dp"]:.3f}<br><small style="white-space:nowrap">\[', html
        )
        for w in winners.values()
    )
    html = report_look.table(
        [dict(n=3, text='three 3', share='41.4%', interval='0.783 [0.771, 0.794]')]
    )._repr_html_()
    assert (
        '<td data-label="n">3</td>' in html  # notebooks and pages align to the right
        and '<td data-label="text" style="text-align:left">three 3</td>' in html
    )
    assert '<td data-label="share">41.4%</td>' in html


def loads(html):
    "Everything a page would fetch: not links to follow."
    attributes = re.findall(
        r'<(?!a\b)\w+[^>]*?\b(?:src|href|srcset|data|poster)\s*=\s*["\']?([^"\'\s>]+)', html
    )
    return [
        u
        for u in attributes + re.findall(r'(?:url\(|@import|import\()\s*["\']?([^"\')\s]+)', html)
        if not u.startswith(('data:', '#', '{'))
    ]


def test_the_helper_sees_what_a_page_loads():
    assert loads(
        '<script src="https://a/x.js"></script><link href=\'//b/y.css\'>'
        '<style>@import "z.css"; a {b: url(q.png)}</style>'
    ) == ['https://a/x.js', '//b/y.css', 'z.css', 'q.png']
    assert loads('<a href="https://a">x</a><img src="data:image/png;base64,AA">') == []


def executed(made, path):
    "A notebook that shows these objects, as a kernel would have saved it."
    from IPython.core.formatters import DisplayFormatter
    from nbformat import v4, write

    shown = []
    for thing in made:
        data, metadata = DisplayFormatter().format(thing)
        data |= (
            {'image/png': base64.b64encode(data['image/png']).decode()}
            if 'image/png' in data
            else {}
        )
        shown.append(
            v4.new_code_cell(
                'show()', outputs=[v4.new_output('display_data', data, metadata=metadata)]
            )
        )
    write(
        v4.new_notebook(
            cells=[v4.new_markdown_cell('# Tuning report\n\nutility − fair_result'), *shown]
        ),
        path,
    )


def test_pages_load_nothing_and_describe_their_pictures(run, winners, tmp_path):
    executed(
        [
            report_winners.metrics_table(winners),
            report_winners.plot_intervals(winners),
            report_search.plot_history(run[1]),
        ],
        tmp_path / 'r.ipynb',
    )
    html = report_pages.write_page(tmp_path / 'r.ipynb').read_text()
    assert loads(html) == [] and '<script' not in html and html.count('src="data:image/png') == 2
    assert (
        'One panel per expert: expert1, expert2, expert3.' in html
        and 'No description has been provided' not in html
    )
    assert (
        'show()' not in html and 'utility − fair_result' in html and report_winners.SELECTED in html
    )


def test_the_index_shows_the_scores_of_the_reports(run, winners, tmp_path):
    data, results, files = run
    shutil.copytree(files.cache_dir, tmp_path, dirs_exist_ok=True)
    files = ExpertFiles(tmp_path, data.name)
    html = report_index.write_index(tmp_path).read_text()
    assert (
        html.count('no report shows its scores yet') == 3
        and html.count(f'<h2>{data.name}</h2>') == 1
        and loads(html) == []
    )
    executed([report_winners.metrics_table(winners)], files.report())
    report_pages.write_page(files.report())
    files.report('expert2').with_suffix('.failed.ipynb').write_text('{}')
    html = report_index.write_index(tmp_path).read_text()
    fair_result = tuning_winners.text_record(winners['expert2'])['fair_result']
    value, *beside = score_html(scores_intervals.interval_text(*fair_result)).split('<br>')
    assert len(beside) == 3 and 'debiased ' in beside[1] and 'by chance ' in beside[2]
    assert '<br>'.join([f'<b>{value}</b>', *beside]) in html and 'no report shows' not in html
    links = re.findall(r'href="([^"]+)"', html)
    assert (
        all((tmp_path / link).exists() for link in links)
        and f'{data.name}_experts_tuning_report.html' in links
    )
    assert 'A report stopped' in html and f'{data.name}_expert2_tuning_report.failed.ipynb' in links
    changed = read_json(files.results('expert1')) | dict(checkpoint_sha256='0' * 64)
    write_json(files.results('expert1'), changed)
    assert report_index.write_index(tmp_path).read_text().count('of an earlier state') == 1


def test_the_index_shows_the_test_of_the_mixture(run, tmp_path):
    data, _, files = run
    shutil.copytree(files.cache_dir, tmp_path, dirs_exist_ok=True)
    files = ExpertFiles(tmp_path, data.name)
    known, unknown = dict(value=0.5, low=0.4, high=0.6), dict(value=0.5, low=None, high=None)
    methods = {
        'moe': dict.fromkeys(scores_facts.FACTS, known),
        '<x>': dict.fromkeys(scores_facts.FACTS, unknown),
    }
    texts = dict.fromkeys(('split', 'intervals', 'mixture_sha256'), '')
    settings = read_json(files.settings)['settings']
    facts = dict(seed=0, gate_usage={}, roles={}, versions={}, settings=settings)
    write_json(files.moe_results, texts | facts | dict(nodes=1234, methods=methods))
    html = report_index.write_index(tmp_path).read_text()
    assert (
        'mixture, as the gate was tuned</th>' in html
        and html.count('>[0.400, 0.600]<') == 4
        and '&lt;x&gt;' in html
        and '1,234 people' in html
    )
    files.moe_results.write_text('{')
    assert f'{data.name}_moe_results.json' in report_index.write_index(tmp_path).read_text()


def test_the_index_names_what_it_cannot_read(run, tmp_path):
    data, _, files = run
    shutil.copytree(files.cache_dir, tmp_path, dirs_exist_ok=True)
    ExpertFiles(tmp_path, data.name).results('expert2').write_text('{')
    html = report_index.write_index(tmp_path).read_text()
    assert f'{data.name}_expert2_tuning_results.json' in html and 'class="note"' in html
    assert (
        'no tuned experts' in report_index.write_index(make_folder(tmp_path / 'empty')).read_text()
    )


def test_rates_and_their_words_are_those_of_fairlearn(run, winners):
    from fairlearn.metrics import (
        MetricFrame,
        demographic_parity_difference,
        false_positive_rate,
        selection_rate,
        true_positive_rate,
    )

    data = run[0]
    rates = report_groups.group_rates(data, winners)
    for e, w in winners.items():
        decided = (w.record.p1[0] >= 0.5).long().numpy()
        metrics = {
            'selection rate': selection_rate,
            'true positive rate': true_positive_rate,
            'false positive rate': false_positive_rate,
        }
        frame = MetricFrame(
            metrics=metrics,
            y_true=w.record.y.numpy(),
            y_pred=decided,
            sensitive_features=w.record.sens.numpy(),
        )
        for s in (0, 1):
            assert all(
                abs(rates[e][s][name][0] - frame.by_group.loc[s, name]) < 1e-9
                for name in frame.by_group
            )
        gap = scores_intervals.newcombe(
            rates[e][0]['selection rate'], rates[e][1]['selection rate']
        )
        dp = demographic_parity_difference(
            w.record.y.numpy(), decided, sensitive_features=w.record.sens.numpy()
        )
        assert abs(abs(gap[0]) - dp) < 1e-9 and gap[1] <= gap[0] <= gap[2]
        cell = report_groups.rates_table(data, winners).loc[
            (e, ' − '.join(data.group_names)), 'selection rate'
        ]
        shown = f'{100 * gap[0]:.1f} [{100 * gap[1]:.1f}, {100 * gap[2]:.1f}]'
        chance = 100 * w.intervals['dp'].by_chance[0].item()  # by another formula, of tensors
        assert cell == f'{shown}, by chance {chance:.1f}'
    sentences = report_groups.in_words(data, winners)
    assert len(sentences) == 3 and all(
        e in s and s.count('percentage points') == s.count('by chance alone') == 3
        for e, s in zip(winners, sentences)
    )
    assert sentences._repr_html_().count('<li>') == 3


@pytest.mark.parametrize('share, n', [(0.0, 5), (0.5, 2), (0.03, 400), (1.0, 7)])
def test_wilson_is_scipys(share, n):
    from scipy.stats import binomtest

    low, high = scores_intervals.wilson(share, n, z=1.959963984540054)
    there = binomtest(round(share * n), n).proportion_ci(method='wilson')
    assert abs(low - there.low) < 1e-9 and abs(high - there.high) < 1e-9


def test_nothing_of_the_test_nodes_enters(run, winners):
    data, results, files = run
    blind = data.clone()
    blind.y = torch.where(data.test_mask, 1 - data.y, data.y)  # every test label wrong
    again = tuning_winners.load_winners(files.cache_dir, blind)
    assert report_winners.metrics_table(again).equals(report_winners.metrics_table(winners))
    assert report_groups.group_scores(blind, again).equals(
        report_groups.group_scores(data, winners)
    )
    assert report_people.leakage_table(blind).equals(report_people.leakage_table(data))
    assert set(winners['expert1'].record.nodes.tolist()) == set(
        Evaluator(data, 'val').nodes.tolist()
    )


def test_saved_files_are_all_there(run):
    import hashlib

    _, results, files = run
    table = report_index.saved_files(files)
    assert len(table) == 9
    for path, digest in table['SHA-256'].items():
        if digest != '–':
            assert hashlib.sha256(open(path, 'rb').read()).hexdigest() == digest
    assert len(report_index.saved_files(files, ['expert2'])) == 5


@pytest.mark.parametrize(
    'drop, expected',
    [
        ([], ()),
        (None, ()),
        ('', ()),
        ('TIME', ('TIME',)),
        ('a, b', ('a', 'b')),
        (['a', 'b'], ('a', 'b')),
        ("['a', 'b']", ('a', 'b')),
    ],
)
def test_forms_of_drop(drop, expected):
    assert check('tune.ipynb', dict(drop=drop)).drop == expected


@pytest.mark.parametrize(
    'given, message',
    [
        (
            dict(expert='expert4'),
            "expert must be 'all', 'expert1', 'expert2', 'expert3', not 'expert4'",
        ),
        (dict(expert=None), 'expert must be'),
        (dict(n_trials=0), 'n_trials must be a whole number of at least 1, not 0'),
        (dict(n_trials=2.5), 'not 2.5'),
        (dict(n_trials=True), 'not True'),
        (dict(n_trials='30'), "not '30'"),
        (dict(seed=-1), 'seed must be'),
        (dict(seed=2**32), 'seed must be'),
        (dict(epochs='many'), 'epochs must be'),
        (dict(edition='ofline'), "edition must be 'auto', 'full'"),
        (dict(drop=3), 'drop must be'),
        (dict(drop=['a', 3]), 'drop must be'),
        (dict(drop='[a'), 'drop must be'),
        (dict(overwrite='yes'), 'overwrite must be True or False'),
        (dict(cache_dir=''), 'cache_dir must be'),
        (dict(data_dir=1), 'data_dir must be'),
        (dict(dataset=None), 'dataset must be'),
        (dict(n_trial=5), r"unknown parameter 'n_trial'. Did you mean 'n_trials'\?"),
        (dict(colour=5), "unknown parameter 'colour'. Known: dataset, .*expert"),
    ],
)
def test_wrong_parameters(given, message):
    with pytest.raises(ParameterError, match=message):
        check('tune.ipynb', given)


def test_all_wrong_parameters_are_named_at_once():
    cells = ['# Parameters\nepoch = 3\n', 'other = 1']
    with pytest.raises(ParameterError) as err:
        collect('tune.ipynb', dict(seed='x', expert='y', In=cells))
    assert all(word in str(err.value) for word in ('seed', 'expert', "unknown parameter 'epoch'"))
    assert 'other' not in str(err.value)


@pytest.mark.parametrize('name', ['tune.ipynb', 'moe.ipynb'])
def test_notebook_defaults_are_the_parameters(repo_root, name):
    import nbformat

    cells = nbformat.read(repo_root / 'nbs' / name, 4).cells
    (cell,) = [c for c in cells if 'parameters' in c.metadata.get('tags', [])]
    given = {}
    exec(cell.source, {}, given)
    assert dict(check(name, given)) == dict(check(name))
    assert set(given) == set(names(name))
    prose = ''.join(c.source for c in cells if c.cell_type == 'markdown')
    assert all(f'| `{option}` |' in prose for option in given)
    assert (f'## {report_winners.SELECTED}\n' in prose + '\n') == (name == 'tune.ipynb')


@pytest.mark.parametrize('name', ['tune.ipynb', 'moe.ipynb'])
def test_the_notebooks_open_on_the_result(repo_root, name):
    cells = json.loads((repo_root / 'nbs' / name).read_text(encoding='utf-8'))['cells']
    texts = [''.join(c['source']) for c in cells if c['cell_type'] == 'markdown']
    sections = re.findall('^## (.*)', '\n'.join(texts), flags=re.M)
    assert sections[:3] == ['The result', 'What was asked for', 'What the scores mean']
    work = [c for c in cells if 'work' in c['metadata'].get('tags', [])]
    assert len(work) == 1 and 'NotebookProgress' in ''.join(work[0]['source'])


def test_every_name_of_the_door_resolves():
    rooms = {room.split('.')[-1] for room in report.ROOMS}
    assert len(report.__all__) == len(set(report.__all__)) and not rooms & set(report.__all__)
    for room, held in report.ROOMS.items():
        module = __import__(f'moe_expert.{room}', fromlist=held)
        assert all(getattr(report, name) is getattr(module, name) for name in held)
    assert set(report.__all__) <= set(dir(report))
    with pytest.raises(AttributeError, match='plot_nothing'):
        _ = report.plot_nothing


def test_the_notebooks_use_names_of_the_door_only(repo_root):
    for name in ('tune.ipynb', 'moe.ipynb'):
        cells = json.loads((repo_root / 'nbs' / name).read_text())['cells']
        code = '\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'code')
        used = set(re.findall(r'\breport\.(\w+)', code))
        assert used <= set(report.__all__) and len(used) > 15


@pytest.mark.parametrize('backbone', [None, 'gcn'])
def test_the_mixture_is_run_with_the_backbone_that_was_asked_for(backbone):
    asked = check('moe.ipynb', dict(dataset='synthetic-200', backbone=backbone))
    arguments = report_run.trainer_arguments(asked, 'MoETrainer')
    assert arguments.get('backbone') == backbone
    assert not {'dataset', 'data_dir', 'edition', 'drop'} & set(arguments)


def test_progress_lines():
    cached = Progress('expert1', 30, 30, best=0.8, cached=True)
    assert tuning_progress.progress_line(cached) == 'expert1: 30 trials, all from the cache'
    assert 'no feasible trial yet' in tuning_progress.progress_line(
        Progress('expert1', 10, 30, 300, 2000, 7)
    )


def test_terminal_progress_writes_only_to_its_stream(capsys):
    stream = io.StringIO()
    with tuning_progress.TerminalProgress(stream) as show:
        for e in ('expert1', 'expert2'):
            for epoch in range(0, 2001, 100):
                show(Progress(e, 0, 10, epoch, 2000, 5))
            show(Progress(e, 10, 10, best=0.7))
    assert capsys.readouterr() == ('', '')
    text = stream.getvalue()
    assert (
        'expert2 (result fairness): 100%' in text
        and '10 of 10 trials, best fair_result 0.7000' in text
    )
    assert len(text) < 3000  # a log is not flooded


def test_notebook_progress_outside_a_notebook(capsys):
    with tuning_progress.NotebookProgress() as show:
        show(Progress('expert1', 3, 3, best=0.5))
    assert repr(show).startswith('Done in 0 s')


def message(kind, parent, **content):
    return dict(
        msg_type=kind,
        header=dict(msg_type=kind),
        parent_header=dict(msg_id=parent),
        content=content,
    )


def test_recorded_outputs_follow_the_protocol():
    cells = report_pages.executed_cells(
        [
            message('stream', 'before', name='stdout', text='not ours'),
            message('execute_input', 'a', code='x', execution_count=1),
            message('stream', 'a', name='stdout', text='1\n'),
            message('stream', 'a', name='stderr', text='!'),
            message('clear_output', 'a', wait=False),
            message('stream', 'a', name='stdout', text='2\n'),
            message('stream', 'a', name='stdout', text='3\n'),
            message(
                'execute_result', 'a', data={'text/plain': '4'}, metadata={}, execution_count=1
            ),
            message('execute_input', 'b', code='y', execution_count=2),
            message('error', 'b', ename='E', evalue='v', traceback=[]),
            message('execute_input', 'c', code='y\n', execution_count=3),
            message('status', 'c', execution_state='idle'),
        ]
    )
    assert [o['output_type'] for o in cells['x'][1]] == ['stream', 'execute_result']
    assert cells['x'][1][0]['text'] == '2\n3\n'
    assert cells['y'] == (3, [])  # the last run counts


def test_cells_of_the_user_are_kept_where_they_ran():
    from nbformat.v4 import new_code_cell, new_notebook

    shipped = new_notebook(cells=[new_code_cell('a'), new_code_cell('b')])
    filled = report_pages.fill(shipped, {'b': (3, []), 'a': (1, []), 'mine': (2, [])})
    assert [(c['source'], c['execution_count']) for c in filled['cells']] == [
        ('a', 1),
        ('mine', 2),
        ('b', 3),
    ]
    assert all(c.execution_count is None for c in shipped.cells)


# --- What a report costs, in counted work ------------------------------------------------


def test_notebooks_are_read_without_checks_of_addresses():
    pytest.importorskip('rfc3987_syntax')  # JupyterLab brings it
    code = """
import sys
from moe_expert.report.pages import quick_notebooks
with quick_notebooks():
    import nbformat, papermill
loaded = {'rfc3987_syntax', 'lark'} & set(sys.modules)
from jsonschema import FormatChecker
iri = FormatChecker(['iri'])  # the check itself is as it was
print(loaded, iri.conforms('http://example.org/ä', 'iri'), iri.conforms('no <iri>', 'iri'))
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == 'set() True False'


def test_a_report_audits_once_and_scores_each_winner_once(run, monkeypatch):
    data, _, files = run
    notebook = json.loads(report_pages.notebook_path().read_text(encoding='utf-8'))
    audits, scored, drawn = [], [], []
    count = lambda calls, f: lambda *args: (calls.append(f), f(*args))[1]
    monkeypatch.setattr(data_audit, '_KEPT', {})
    monkeypatch.setattr(data_audit, '_all_checks', count(audits, data_audit._all_checks))
    monkeypatch.setattr(Evaluator, 'record', count(scored, Evaluator.record))
    monkeypatch.setattr(report_people, 'load_dataset', lambda *_, **__: data)
    monkeypatch.setattr(report_look, '_png', lambda figure: drawn.append(figure))
    given = dict(dataset='synthetic-300', cache_dir=str(files.cache_dir), read_only=True)
    space, threshold = {'display': lambda *shown: [show(o) for o in shown]}, gc.get_threshold()

    def show(output):
        for name in ('_repr_html_', '_repr_png_'):
            getattr(output, name, lambda: None)()

    for cell in notebook['cells']:
        if cell['cell_type'] == 'code':
            *lines, last = ast.parse(''.join(cell['source'])).body
            exec(compile(ast.Module(lines, []), 'cell', 'exec'), space)
            if isinstance(last, ast.Expr):
                show(eval(compile(ast.Expression(last.value), 'cell', 'eval'), space))
            else:
                exec(compile(ast.Module([last], []), 'cell', 'exec'), space)
            if 'parameters' in cell['metadata'].get('tags', []):
                space |= given
    gc.set_threshold(*threshold)
    gc.unfreeze()
    assert (len(audits), len(scored), len(drawn)) == (1, 3, 9)
