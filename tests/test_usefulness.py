"What speaks against a tuned model: each sign at its border, and noise flagged by every door."

import re
import subprocess
import sys
import warnings

import nbformat
import numpy as np
import pandas as pd
import pytest

from moe_expert import report
from moe_expert.data.synthetic import make_synthetic
from moe_expert.datasets import load_dataset
from moe_expert.errors import UsefulnessWarning
from moe_expert.estimator import FairMoEClassifier
from moe_expert.experts.floor import logistic_regression, simple_models
from moe_expert.experts.specs import EXPERTS
from moe_expert.mixture import comparison
from moe_expert.report.index import write_index
from moe_expert.report.mixture import test_table as table_of_test
from moe_expert.report.run import run_moe_report, run_report
from moe_expert.run_expert_tuning import closing_words
from moe_expert.run_expert_tuning import main as tune
from moe_expert.run_moe import main as train
from moe_expert.scores.evaluation import Evaluator
from moe_expert.scores.intervals import auc_interval
from moe_expert.tune_experts import ExpertTuner
from moe_expert.tuning.artifacts import read_json
from moe_expert.tuning.folder import ExpertFiles
from moe_expert.tuning.settings import GATE_DEFAULTS, default_params

# ---- each sign at its border

USEFUL = dict(
    expert_type='expert2',
    best_params=default_params(EXPERTS['expert2']) | dict(lr=2e-4),
    best_metrics=dict(auc=0.9, final_score=0.5),
    feasible=True,
    n_feasible=3,
    n_trials=30,
    floor=dict(utility=0.6, auc=0.7),
    outcomes=[60, 40],
    baselines=dict(majority_class=dict(final_score=0.5), logistic_regression=dict(final_score=0.5)),
)


def changed(**change):
    return comparison.search_doubts(USEFUL | change)


def with_scores(**scores):
    return changed(best_metrics=USEFUL['best_metrics'] | scores)


def beside(**scores):
    return changed(baselines={m: dict(final_score=v) for m, v in scores.items()})


def test_nothing_speaks_against_what_lies_just_inside_every_border():
    assert changed() == [] and comparison.doubts({'expert2': USEFUL}) == {}
    assert comparison.doubts_in_lines({'expert2': USEFUL}) == ''


@pytest.mark.parametrize('n, words', [(2, 'Only 2 of 30 trials'), (1, 'Only 1 of 30 trials')])
def test_fewer_than_three_feasible_trials(n, words):
    (sentence,) = changed(n_feasible=n)
    assert sentence.startswith(words) and 'expert2' in sentence


def test_no_feasible_trial():
    (sentence,) = changed(feasible=False, n_feasible=0)
    assert 'None of the 30 trials of expert2' in sentence and '0.600' in sentence


def test_the_interval_of_the_auc_reaches_one_half():
    "The border, found by bisection over the interval itself."
    low, high = 0.5, 0.9
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if auc_interval(middle, 40, 60)[0] <= 0.5 else (low, middle)
    (sentence,) = with_scores(auc=low)
    assert 'AUC of expert2 on the validation nodes' in sentence and 'includes 0.5' in sentence
    assert '[0.500, ' in sentence
    assert with_scores(auc=high) == []
    assert 'lies below 0.5' in with_scores(auc=0.2)[0]
    # the same AUC of ten times as many people is no longer doubted
    assert changed(best_metrics=dict(auc=low, final_score=0.5), outcomes=[600, 400]) == []


def test_a_constant_or_a_logistic_regression_is_better():
    for model, words in (('majority_class', 'A constant'), ('logistic_regression', 'A logistic')):
        (sentence,) = beside(**{model: 0.5 + 1e-9})
        assert sentence.startswith(words) and '(0.500)' in sentence and 'validation' in sentence
    (sentence,) = beside(majority_class=0.675, logistic_regression=0.6)
    assert 'A constant prediction (0.675) and a logistic regression (0.600) have' in sentence
    assert 'than expert2 (0.500)' in sentence


def test_the_default_trial_won():
    default = default_params(EXPERTS['expert2'])
    (sentence,) = changed(best_params=default)
    assert sentence == (
        'The winner of expert2 is the default trial: the search found nothing better in 30 trials.'
    )
    for name, value in default.items():
        assert changed(best_params=default | {name: np.nextafter(value, 1)}) == []
    gate = dict(expert_type='gate', best_params=dict(GATE_DEFAULTS))
    assert 'The winner of the gate is the default trial' in changed(**gate)[0]
    assert 'there was no other' in changed(best_params=default, n_trials=1, n_feasible=3)[0]


def test_one_expert_has_nearly_all_the_weight():
    usage = lambda w: dict(expert1=dict(mean_weight=w), expert2=dict(mean_weight=1 - w))
    assert comparison.one_expert_alone(usage(0.9)) == []
    (sentence,) = comparison.one_expert_alone(usage(0.93))
    assert 'The gate gives expert1 93 % of the weight' in sentence
    assert comparison.one_expert_alone(usage(np.nextafter(0.9, 1))) != []


def scored(auc=(0.7, 0.6, 0.8), final=0.4):
    as_record = lambda value, low, high: dict(value=value, low=low, high=high)
    return dict(auc=as_record(*auc), final_score=as_record(final, None, None))


def test_the_final_test_is_about_the_mixture_in_use():
    guess = scored(auc=(0.52, 0.48, 0.57), final=0.3)
    methods = dict(moe=scored(), expert1=scored(), majority_class=scored((0.5, 0.5, 0.5), 0.4))
    whole = dict(methods=methods, gate_usage=dict(all=dict(expert1=dict(mean_weight=0.9))))
    assert comparison.mixture_doubts(whole) == []  # the constant itself is not doubted
    later = whole | dict(methods=methods | dict(moe_finetuned=guess))
    found = comparison.mixture_doubts(later)
    assert [s.split(' of the mixture')[0][:30] for s in found] == [
        'The 95 % interval of the AUC',
        'A constant prediction (0.400) has a better'[:30],
    ]
    assert all('test nodes' in s for s in found)
    known = comparison.doubts({'expert2': USEFUL | dict(n_feasible=1)}, later)
    assert list(known) == ['mixture', 'expert2']  # the mixture comes first


def test_a_file_of_an_earlier_version_is_not_passed_over_in_silence():
    old = {k: v for k, v in USEFUL.items() if k not in ('baselines', 'outcomes')}
    (sentence,) = comparison.search_doubts(old)
    assert 'earlier version' in sentence
    (notice,) = report.result_notices({'expert2': old | dict(trials=[])})
    assert notice.text == sentence


def test_simple_models_are_those_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    data = make_synthetic(300, 6, seed=2)
    found = simple_models(Evaluator(data, 'val'))
    x, y, val = data.x.double().numpy(), data.y.numpy(), data.val_mask.numpy()
    train_rows = data.train_mask.numpy()
    fit = LogisticRegression(max_iter=10_000).fit(x[train_rows], y[train_rows])
    auc = roc_auc_score(y[val], fit.predict_proba(x[val])[:, 1])
    assert found['baselines']['logistic_regression']['auc'] == pytest.approx(auc, abs=1e-9)
    assert found['outcomes'] == [int((y[val] == 0).sum()), int((y[val] == 1).sum())]
    assert found['baselines']['majority_class']['fair_result'] == 0


@pytest.mark.parametrize('name', ['bail', 'synthetic-900'])
def test_the_logistic_regression_is_that_of_scikit_learn(name):
    from sklearn.linear_model import LogisticRegression

    data = load_dataset(name, edition='offline') if name == 'bail' else load_dataset(name)
    x, y = (t[data.train_mask].double().numpy() for t in (data.x, data.y))
    fit, ours = LogisticRegression(max_iter=10_000).fit(x, y), logistic_regression(data)
    assert ours.weight.numpy() == pytest.approx(fit.coef_, abs=1e-9)
    assert ours.bias.numpy() == pytest.approx(fit.intercept_, abs=1e-9)


def test_simple_models_import_no_scikit_learn():
    code = (
        'import sys, moe_expert.datasets as d, moe_expert.experts.floor as f\n'
        "f.logistic_regression(d.load_dataset('synthetic-100'))\n"
        "sys.exit('sklearn' in sys.modules)"
    )
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0


def test_linear_programs_find_what_the_logistic_regression_set_aside():
    code = """
import sys, moe_expert.datasets as d, moe_expert.experts.floor as f
f.logistic_regression(d.load_dataset('synthetic-100'))
before = 'scipy.linalg.interpolative' in sys.modules
from scipy.optimize import linprog
twice = dict(A_eq=[[1, 1], [2, 2]], b_eq=[1, 2], options={'rr_method': 'ID'})
found = linprog([1, 2], method='interior-point', **twice)
print(before, found.x.round().tolist(), 'scipy.linalg.interpolative' in sys.modules)
"""
    command = sys.executable, '-W', 'ignore::DeprecationWarning', '-c', code
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == 'False [1.0, 0.0] True\n', done.stderr


# ---- the constant in tables


def test_the_constant_is_last_grey_and_marked_in_every_table(capsys):
    estimate = dict(value=0.5, low=0.4, high=0.6)
    scores = dict.fromkeys([*report.score_meanings().index], estimate)
    methods = dict.fromkeys(('moe', 'majority_class', 'logistic_regression'), scores)
    test = comparison.Comparison(split='test', nodes=9, intervals='intervals', methods=methods)
    for html in (test._repr_html_(), table_of_test(test)._repr_html_()):
        grey = re.findall(r'<tr class="below" style="color:#595959[^>]*>(.*?)</tr>', html)
        assert len(grey) == 1 and '(below the floor)' in grey[0]
        assert html.rindex('<tr') == html.index('<tr class="below"')  # the last row
    lines = repr(test).splitlines()
    assert set(lines[-2]) == {'-'} and lines[-1].startswith('constant (below the floor)')
    assert list(test.table().index) == list(methods)  # for programs: names and order as recorded
    # contrast of #595959 on white by WCAG 2: at least 4.5
    part = (0x59 / 255 + 0.055) / 1.055
    assert 1.05 / (part**2.4 + 0.05) > 7


# ---- noise, from end to end

FEW = ['--n_trials', '2', '--epochs', '60', '--quiet']
TRAIN = [*FEW, '--no-fine_tune']


def noise(n=240):
    rng = np.random.default_rng(5)
    people = pd.DataFrame(rng.normal(size=(n, 4)), columns=list('abcd'))
    return people.assign(group=rng.integers(0, 2, n), outcome=rng.permutation(np.arange(n) % 2))


@pytest.fixture(scope='module')
def coin(tmp_path_factory):
    "A card of people whose outcome is a toss of a coin, and a folder with all stages run on them."
    folder = tmp_path_factory.mktemp('coin')
    noise().to_csv(folder / 'coin.csv', index=False)
    said = 'name: coin\ntable: coin.csv\nlabel: outcome\nsensitive: group\nprivileged: 1\n'
    (folder / 'card.yaml').write_text(said)
    options = ['--dataset', str(folder / 'card.yaml'), '--cache_dir', str(folder / 'cache')]
    assert train([*options, *TRAIN]) == 0
    return folder, options


GUESSING = 'it may be no better than guessing'


def test_the_terminal_flags_noise_at_its_end(coin, capsys):
    _, options = coin
    assert train([*options, *TRAIN]) == 0
    last = capsys.readouterr().out.split('Before you use this:')[1]
    assert GUESSING in last and 'of the mixture on the test nodes' in last
    assert tune([*options, *FEW]) == 0
    last = capsys.readouterr().out.split('Before you use this:')[1]
    assert GUESSING in last and 'of expert1 on the validation nodes' in last
    assert 'test nodes' not in last  # nothing of the test before the final evaluation


def test_the_index_flags_noise_before_its_tables(coin):
    folder, _ = coin
    page = write_index(folder / 'cache').read_text()
    first = page.split('<h2>coin</h2>')[1].split('<table')[0]
    assert GUESSING in first and 'Before you use this' in first
    assert '>constant (below the floor)</th>' in page


def test_the_report_flags_noise(coin):
    folder, _ = coin
    files = ExpertFiles(folder / 'cache', 'coin')
    results = {e: read_json(files.results(e)) for e in EXPERTS}
    tuned = report.result_notices(results)
    assert GUESSING in ' '.join(n.text for n in tuned)
    assert not any('test nodes' in n.text for n in tuned)
    tested = report.result_notices(results, read_json(files.moe_results))
    assert tested[0].title == 'Is the mixture of any use?' and 'test nodes' in tested[0].text


def outputs_in_order(path):
    "All that an executed notebook shows, as one text."
    shown = []
    for cell in nbformat.read(path, 4).cells:
        for output in cell.get('outputs', ()):
            data = output.get('data', {})
            shown.append(data.get('text/html') or data.get('text/plain', ''))
    return '\n'.join(shown)


@pytest.mark.slow
def test_both_reports_begin_with_the_notices(coin):
    _, options = coin
    tuned = run_report(options[1], cache_dir=options[3])
    for path in (tuned, run_moe_report(options[1], cache_dir=options[3], fine_tune=False)):
        shown = outputs_in_order(path)
        assert GUESSING in shown and shown.index(GUESSING) < shown.index('<table')
        page = path.with_suffix('.html').read_text()
        assert page.index(GUESSING) < page.index('<table')
    assert shown.index('on the test nodes') < shown.index('<table')
    assert '(below the floor)' in shown


def test_the_classifier_warns_of_noise():
    people = noise()
    X, y, s = people[list('abcd')], people['outcome'], people['group']
    model = FairMoEClassifier(n_trials=1, epochs=60, random_state=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        model.fit(X, y, sensitive_features=s)
    told = [w for w in caught if w.category is UsefulnessWarning]
    assert [str(w.message) for w in told] == model.notices_ != []
    assert GUESSING in ' '.join(model.notices_) and {w.filename for w in told} == {__file__}
    assert model.feasible_ == model.results_['feasible']
    alone = FairMoEClassifier(epochs=60, on_missing_groups='ignore', random_state=0)
    with pytest.warns(UsefulnessWarning, match=GUESSING):
        alone.fit(X, y)
    assert isinstance(alone.feasible_, bool)


# ---- where there is much to learn


@pytest.mark.slow
def test_nothing_speaks_against_experts_that_learned_and_a_search_that_found(tmp_path):
    "The outcome bends in one column, so that a linear model falls behind."
    rng, n = np.random.default_rng(1), 600
    x, group = rng.normal(size=(n, 4)), rng.integers(0, 2, n)
    margin = 1.6 * x[:, 0] + 1.2 * x[:, 1] + 2.0 * np.abs(x[:, 2]) - 2.6
    paid = (margin + 0.5 * rng.logistic(size=n) > 0).astype(int)
    people = pd.DataFrame(x, columns=list('abcd')).assign(group=group, paid=paid)
    said = dict(dataset_name='good', label='paid', sensitive='group', privileged=1, threshold=0.8)
    data = load_dataset(people, **said)
    tuner = ExpertTuner(data, cache_dir=tmp_path, epochs=300)
    results = tuner.tune_all_experts(30)
    assert comparison.doubts(results) == {}
    assert repr(report.result_notices(results)) == 'Nothing to flag here.'
    assert 'Before you use this' not in write_index(tmp_path).read_text()
    assert 'Before you use this' not in closing_words(tuner, results, set())
