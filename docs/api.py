"""Write docs/api.md from the docstrings and the comments beside parameters: `python docs/api.py` (with --check: only compare).

Names that people use from outside stand in NAMES; what else a module holds is in its notebook.
"""
import ast
import difflib
import inspect
import sys
from importlib import import_module
from pathlib import Path

from fastcore.docments import docments

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))

NAMES = {
    'Data': ('datasets.load_dataset', 'datasets.make_synthetic', 'datasets.data_card', 'datasets.leakage_audit', 'datasets.similarity_graph',
             'own_data.Card', 'own_data.write_card', 'own_data.encode'),
    'Tuning the experts': ('tune_experts.ExpertTuner', 'tune_experts.ExpertTuner.tune_expert', 'tune_experts.ExpertTuner.tune_all_experts',
                           'tune_experts.load_expert'),
    'A trade-off by choice': ('pareto.search_pareto', 'pareto.choose', 'pareto.load_pareto', 'pareto.plot_pareto'),
    'The mixture': ('trainer.MoETrainer', 'trainer.MoETrainer.tune_gate', 'trainer.MoETrainer.fine_tune', 'trainer.MoETrainer.evaluate',
                    'trainer.MoETrainer.run', 'trainer.load_mixture', 'trainer.predict_proba'),
    'scikit-learn': ('estimator.FairMoEClassifier', 'estimator.FairMoEClassifier.fit', 'estimator.FairMoEClassifier.predict_proba'),
    'Reports': ('report.run_report', 'report.write_page', 'report.write_index', 'report.load_winners', 'report.metrics_table',
                'report.rates_table', 'report.in_words', 'report.group_differences'),
    'Scores': ('metrics.accuracy', 'metrics.f1', 'metrics.roc_auc', 'metrics.utility', 'metrics.demographic_parity', 'metrics.equal_opportunity',
               'metrics.equalized_odds',
               'metrics.fair_result', 'metrics.fair_procedure', 'metrics.final_score', 'metrics.by_group', 'evaluation.Evaluator',
               'evaluation.bootstrap'),
    'Explanations': ('explain.graphlime', 'explain.integrated_gradients'),
}


def notebooks():
    "(notebook, module name, first line of the module's docstring), in the order data flows."
    for path in sorted((ROOT / 'nbs').glob('[0-9]*.ipynb')):
        name = path.stem.split('_', 1)[1]
        yield path.name, name, ast.get_docstring(ast.parse((ROOT / 'moe_expert' / f'{name}.py').read_text(encoding='utf-8')))


def find(name):
    module, *rest = name.split('.')
    found = import_module(f'moe_expert.{module}')
    for part in rest: found = getattr(found, part)
    return found


def cell(text):
    return ' '.join(str(text).split()).replace('|', '\\|').replace('<', '&lt;')


def entry(name):
    "Heading, docstring, and a row per parameter."
    thing = find(name)
    lines = [f'### `{name}`', '', inspect.getdoc(thing) or '', '']
    told = docments(thing, full=True)
    given = inspect.signature(thing).parameters
    rows = []
    for parameter, d in told.items():
        if parameter in ('self', 'return'): continue
        default = '' if d.default is inspect.Parameter.empty else f'`{d.default!r}`'
        star = {inspect.Parameter.VAR_KEYWORD: '**', inspect.Parameter.VAR_POSITIONAL: '*'}.get(given[parameter].kind, '')
        rows.append(f'| `{star}{parameter}` | {cell(default)} | {cell(d.docment or "")} |')
    if rows: lines += ['| parameter | default | meaning |', '|---|---|---|', *rows, '']
    if told.get('return') and told['return'].docment: lines += [f'Returns: {cell(told["return"].docment)}', '']
    return lines


def page():
    lines = ['# API', '', 'Written by `make docs` from the docstrings and the comments beside parameters. How things work is told by the notebooks;',
             '`help(name)` and `name?` say the same in a session.', '',
             '| notebook | module | |', '|---|---|---|']
    lines += [f'| [{notebook}](../nbs/{notebook}) | `moe_expert.{name}` | {cell(text.splitlines()[0])} |' for notebook, name, text in notebooks()]
    for title, names in NAMES.items():
        lines += ['', f'## {title}', '']
        for name in names: lines += entry(name)
    return '\n'.join(lines).rstrip() + '\n'


if __name__ == '__main__':
    path, new = DOCS / 'api.md', page()
    if '--check' in sys.argv:
        old = path.read_text(encoding='utf-8') if path.exists() else ''
        changes = list(difflib.unified_diff(old.splitlines(), new.splitlines(), 'docs/api.md', 'the code', lineterm='', n=0))
        sys.exit('\n'.join([*changes[:40], 'docs/api.md is not what the code says: run `make docs`']) if changes else 0)
    path.write_text(new, encoding='utf-8')
