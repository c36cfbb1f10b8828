"Bars never go back, whatever is told, and the stages of a run tell what grows."

import dataclasses
import io
import os
import re

import optuna
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from moe_expert.data.synthetic import make_synthetic
from moe_expert.experts.initialisation import init_population
from moe_expert.experts.specs import GATE, Range
from moe_expert.experts.trainers import TrainSettings
from moe_expert.experts.training import TrainedModel
from moe_expert.mixture.crossfit import CrossfitSettings
from moe_expert.mixture.gate_training import GateSettings
from moe_expert.mixture.integration import NINE_WAYS
from moe_expert.run_expert_tuning import run_command
from moe_expert.trainer import MoESettings, MoETrainer
from moe_expert.tuning import studies, trials
from moe_expert.tuning.progress import (
    Interrupted,
    Meter,
    NotebookProgress,
    Progress,
    TerminalProgress,
    bar_line,
    moved,
    notebook_lines,
    trials_so_far,
)
from moe_expert.tuning.records import Search
from moe_expert.tuning.settings import TuneSettings
from moe_expert.tuning.storage import open_study

EVENTS = st.lists(
    st.builds(
        Progress,
        expert=st.just('gate'),
        trials=st.integers(0, 40),
        n_trials=st.just(30),
        epoch=st.integers(0, 100),
        epochs=st.just(100),
        running=st.integers(0, 15),
        best=st.none() | st.floats(0, 1),
        part=st.floats(0, 15),
    ),
    min_size=1,
    max_size=30,
)

FEW = settings(deadline=None, max_examples=40)


def bars_of(text):
    "Stage → the percentages of its bars, in order."
    found = {}
    for stage, percent in re.findall(r'^(.+?): +(\d+)%\|', text, re.M):
        found.setdefault(stage, []).append(int(percent))
    return found


def unfinished(events):
    "Those of one stage: nothing comes after it is finished."
    for i, p in enumerate(events):
        if p.trials >= p.n_trials and not p.running:
            return events[: i + 1]
    return events


@FEW
@given(EVENTS)
def test_a_meter_never_goes_back(events):
    meter, seen, counts = None, [], []
    for p in unfinished(events):
        first = meter or moved(None, p)
        meter = moved(meter or first, p)
        assert meter is first
        seen.append(meter.at)
        counts.append(meter.last.trials)
        assert trials_so_far(p) <= meter.at <= 30 and '%|' in bar_line(meter)
    assert seen == sorted(seen) and counts == sorted(counts)


@FEW
@given(EVENTS)
@example([Progress('gate', 0, 30, part=5e-324)])  # the time left would be infinite
def test_no_display_goes_back(events):
    stream = io.StringIO()
    with TerminalProgress(stream) as terminal, NotebookProgress() as notebook:
        terminal.every, lines = 0.0, []
        for p in unfinished(events):
            terminal(p)
            notebook(p)
            lines += notebook_lines(notebook)
    for text in (stream.getvalue().replace('\r', '\n'), '\n'.join(lines)):
        for percents in bars_of(text).values():
            assert percents == sorted(percents)
        done = [int(n) for n in re.findall(r'(\d+) of 30 trials', text)]
        assert done == sorted(done)


def test_a_stage_that_is_finished_may_begin_again():
    first = moved(None, Progress('expert1', 30, 30))
    again = moved(first, Progress('expert1', 0, 30, part=3.0))  # of other data
    assert again is not first and (again.initial, again.at) == (0, 3.0)
    assert moved(first, Progress('expert1', 30, 30)) is first  # said twice
    more = moved(first, Progress('expert1', 30, 50, running=15))  # of the same, but more of it
    assert more is not first and more.initial == 30
    assert Meter(Progress('expert1', 40, 30)).at == 30


def test_what_was_done_before_does_not_count_for_the_speed():
    meter = Meter(Progress('gate', 20, 30))
    meter.begun -= 50  # seconds
    meter.move(Progress('gate', 20, 30, running=10, part=5.0))
    assert bar_line(meter).endswith('00:50, 00:50 left') and '83%' in bar_line(meter)


def test_the_notebook_shows_the_bar_in_its_last_lines_and_ends_without_it():
    with NotebookProgress(every=0) as show:
        show.handle = None  # as outside a notebook, whether or not another test began a shell
        assert 'scrollIntoView' in show._repr_html_()
        show.handle = type('Handle', (), {'update': lambda self, shown: None})()
        show(Progress('expert1', 30, 30, best=0.7))
        show(Progress('expert2', 30, 30, cached=True))
        show(Progress('expert3', 3, 30, 10, 100, 12, part=1.5))
        *before, bar, state = notebook_lines(show)
        assert [line.split(':')[0] for line in before] == ['expert1', 'expert2']
        assert bar.startswith('expert3 (procedural fairness):  15%|') and bar.endswith(' left')
        assert state.startswith('expert3: 3 of 30 trials; epoch 10 of at most 100, 12 in training')
        assert '<script' not in show._repr_html_() and '<pre' in show._repr_html_()
    assert '%|' not in repr(show) and '<pre' not in show._repr_html_()
    show(Progress('expert1', 0, 30))  # by another cell: it is not shown here
    assert show.handle is None


def test_a_display_can_be_used_again():
    show = NotebookProgress()
    with show:
        show(Progress('expert1', 30, 30))
    with show:
        assert notebook_lines(show) == ['preparing (0 s)']
        show(Progress('pareto', 4, 4))
    assert repr(show) == 'Done in 0 s. pareto: 4 of 4 trials.'


@pytest.mark.parametrize('overwrite', [False, True])
def test_an_interrupt_is_one_line(overwrite):
    with pytest.raises(Interrupted) as stop:
        with NotebookProgress(overwrite=overwrite):
            raise KeyboardInterrupt
    (line,) = stop.value._render_traceback_()
    assert line.startswith('Interrupted. Finished trials are kept: ') and len(line) < 120
    assert ('set overwrite to False' in line) == overwrite
    assert stop.value.__suppress_context__


# --- what is told ---------------------------------------------------------------------------------


def steps(told):
    "Stage → how far it was, each time."
    found = {}
    for p in told:
        found.setdefault(p.expert, []).append(trials_so_far(p))
    return found


def assert_grows(told):
    for stage, done in steps(told).items():
        assert done == sorted(done), stage
        last = [p for p in told if p.expert == stage][-1]
        assert done[-1] == last.n_trials, stage
    units = {(p.expert, p.unit, p.n_trials) for p in told}
    assert len(units) == len(steps(told))  # a stage keeps its measure


SMALL = TuneSettings(TrainSettings(epochs=60, val_every=20), utility_fraction=0.5, auc_fraction=0.1)
FEW_WAYS = tuple(dataclasses.replace(w, epochs=4, val_every=2) for w in NINE_WAYS[:3])
KINDS = {
    'ways': FEW_WAYS,
    'crossfit': CrossfitSettings(rates=(3e-3,), losses=((1.0, 0.0),), steps=40, parts=2),
}


@pytest.fixture(scope='module')
def data():
    return make_synthetic(200, n_features=5, seed=0, group_bias=0.5)


@pytest.mark.parametrize('kind', ['ways', pytest.param('crossfit', marks=pytest.mark.slow)])
def test_all_stages_grow_to_their_end(data, tmp_path, kind):
    told, gate = [], GateSettings(epochs=20, val_every=10)
    options = dict(use_cached_experts=False, cache_dir=tmp_path, n_trials=2, progress=told.append)
    options |= dict(tune_settings=SMALL, settings=MoESettings(gate, KINDS[kind]), device='cpu')
    trainer = MoETrainer(data, **options)
    trainer.run(2)
    assert_grows(told)
    stages = ['expert1', 'expert2', 'expert3', 'gate', 'fine-tuning', 'scores']
    assert list(steps(told)) == stages
    tuning = steps(told)['fine-tuning']
    assert len(set(tuning)) >= 5 and tuning[0] == 0
    assert len(set(steps(told)['scores'])) >= 6
    assert all(steps(told)[stage][0] == 0 for stage in stages)


# --- a study that is shared, interrupted, repeated ------------------------------------------------


ONE = init_population([0], 3)


def model(params):
    score = 1 - params['x'] ** 2
    return TrainedModel(
        params, 'final_score', ONE, score, {'final_score': score}, (-0.1,) * 3, 100, 100
    )


class Worker:
    "A search in a storage, with all that it told."

    def __init__(self, storage, train=None):
        study = open_study(storage, 'shared', True)
        self.told, self.batches, self.inside = [], [], train or (lambda batch, show: None)
        options = dict(epochs=100, progress=self.told.append)
        space = {'x': Range(-1.0, 1.0)}
        self.search = Search(study, GATE, space, 0, self.train, {'x': 0.5}, **options)

    def train(self, batch, show):
        self.batches.append(batch)
        for epoch in (50, 100):
            show(epoch, len(batch) if epoch < 100 else 0)
            self.inside(batch, show)
        return [model(params) for params in batch]

    @property
    def positions(self):
        return [trials_so_far(p) for p in self.told]


@pytest.fixture
def storage():
    return optuna.storages.InMemoryStorage()


def test_a_study_that_goes_on_begins_where_it_was(storage):
    Worker(storage).search.run(20)
    more = Worker(storage)
    more.search.run(33)
    # 20 + 10 to the end of a batch, then three more
    assert more.positions == [20, 25, 30, 30, 31.5, 33]


def test_an_interrupted_batch_is_repeated_and_does_not_count_twice(storage):
    def stop(batch, show):
        if len(first.batches) == 2:
            raise KeyboardInterrupt

    first = Worker(storage, stop)
    with pytest.raises(KeyboardInterrupt):
        first.search.run(30)
    again = Worker(storage)
    again.search.run(30)
    assert again.batches == [first.batches[1]]
    assert again.positions == [15, 22.5, 30] and again.told[-1].running == 0


def test_a_batch_in_halves_is_counted_once(storage):
    def too_large(batch, show):
        if len(batch) > 8:
            raise MemoryError('too large')

    worker, meter, seen = Worker(storage, too_large), None, []
    worker.search.run(15)
    for p in worker.told:
        meter = moved(meter, p)
        seen.append(meter.at)
    assert [len(b) for b in worker.batches] == [15, 7, 8]
    assert seen == sorted(seen) and max(seen) == 8  # the end is told by `tune`


def test_who_waits_for_another_worker_sees_its_trials(storage, monkeypatch):
    worker = Worker(storage)
    study, theirs = worker.search.study, []
    for _ in range(3):  # of a process that lives
        trial = study.ask()
        storage_id = trial._trial_id
        name = f'{trials._machine()}:{os.getppid()}:a'
        study._storage.set_trial_user_attr(storage_id, 'worker', name)
        theirs.append(trial)

    def finish(seconds):
        trial = trials.with_id(study.get_trials(), theirs.pop()._trial_id)
        trials.tell(study, trial, trials.Outcome(0.5, {'floor': -1.0}), 1.0)

    monkeypatch.setattr(studies.time, 'sleep', finish)
    worker.search.run(15)
    assert worker.positions == [0, 6, 12, 12, 13, 14]  # its own, then those of the other
    assert not theirs and not worker.told[-1].running


# --- in a terminal --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'door, argv, words',
    [
        ('tune', ['--cache_dir', 'w'], 'finished trials are kept in w. The same command continues'),
        ('train', ['--overwrite'], 'The same command without --overwrite continues from there.'),
        ('datasets', [], 'interrupted; the same command does it again.'),
    ],
)
def test_an_interrupted_command_says_how_to_go_on(door, argv, words, capsys):
    def stop(given):
        raise KeyboardInterrupt

    assert run_command(door, stop, argv) == 130
    err = capsys.readouterr().err
    assert words in err and 'Traceback' not in err and len(err.strip().splitlines()) == 1
