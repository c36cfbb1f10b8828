"""Write the tables of docs/study.md from the study's own rows: `python docs/study_tables.py` (with --check: only compare).

What stands between the two marks is made here, from docs/study/runs.csv; the text around it is written by hand.
"""
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

import pandas as pd  # noqa: E402

from moe_expert.study import tables as study_tables
from moe_expert.study.plan import BENCHMARKS, MAIN, VARIANTS
from moe_expert.study.ledger import Ledger

PAGE = DOCS / 'study.md'
BEGIN, END = '<!-- tables: made by docs/study_tables.py -->', '<!-- end of tables -->'


def cell(value):
    if isinstance(value, float): return '–' if pd.isna(value) else f'{value:.3f}'
    return '–' if value is None else str(value).replace('|', '\\|')


def markdown(table):
    rows = [list(map(cell, r)) for r in table.itertuples(index=False)]
    head = [str(c) for c in table.columns]
    return '\n'.join('| ' + ' | '.join(r) + ' |' for r in [head, ['---'] * len(head), *rows])


def sections(rows):
    "(heading, table) of everything there are rows for."
    main = rows[(rows.phase == 'confirmatory') & (rows.setting == MAIN)]
    parts = study_tables.parts(main)
    standard = next(iter(parts.values()), main)
    yield 'The claim, on the standard split', study_tables.verdict(standard).reset_index()
    for part, some in parts.items():
        benchmarks = some[some.variant.isin(BENCHMARKS)]
        yield f'All four data sets together (exploratory): the mixture minus the other, `final_score` ({part})', study_tables.pooled(benchmarks)
        better = [dict(variant=v, methods=', '.join(m) or 'none') for v, m in study_tables.dominators(some).items()]
        yield f'Methods whose means are better than the mixture\'s in all three aims ({part})', pd.DataFrame(better)
    for part, some in parts.items():
        for v in [v for v in VARIANTS if v in set(some.variant)]:
            alike = some[some.variant.isin(BENCHMARKS) == (v in BENCHMARKS)]  # Holm is over these
            yield f'{v}: {part}', study_tables.method_table(alike, v)
    yield 'What chance alone gives (standard split)', study_tables.beyond_chance(standard)
    yield 'Noise of `final_score`', study_tables.noise(main[main.method.isin(list(study_tables.READ))]).reset_index()
    yield 'Does a choice by validation carry over to the test (`final_score`, standard split)?', study_tables.agreement(standard)
    yield 'With and without the leaking columns (standard split)', study_tables.leakage(standard)
    yield 'Utility: the ceiling of the default backbone and space, other settings, and the mark', study_tables.ceiling(rows)
    yield 'Beside published figures', study_tables.beside_published(standard)
    yield 'Ablations: the released mixture minus the mixture of the setting, `final_score`', study_tables.ablation_table(study_tables.developed(rows))
    other = study_tables.redesigned(rows, 'stage-3')
    for part, some in study_tables.parts(other).items():
        leaky = some.variant.isin(BENCHMARKS)
        score = f'`final_score` ({part})'
        if part.startswith('standard'): yield 'The claim with the other stage 3, on the standard split', study_tables.verdict(some).reset_index()
        yield f'The other stage 3 minus the other method, {score}', study_tables.against_all(some[leaky])
        yield f'The other stage 3 minus the other method, all four data sets together (exploratory), {score}', study_tables.pooled(some[leaky])
        if not leaky.all(): yield f'The other stage 3 minus the other method, without the leak, {score}', study_tables.against_all(some[~leaky])


def text():
    rows = Ledger(DOCS / 'study').rows()
    parts = [f'### {heading}\n\n{markdown(table)}' for heading, table in sections(rows) if len(table)]
    before, rest = PAGE.read_text(encoding='utf-8').split(BEGIN)
    return before + '\n\n'.join([BEGIN, *parts, END]) + rest.split(END)[1]


if __name__ == '__main__':
    made = text()
    if sys.argv[1:] == ['--check']:
        same = made == PAGE.read_text(encoding='utf-8')
        sys.exit(0 if same else 'docs/study.md is not what docs/study/runs.csv says: run python docs/study_tables.py')
    PAGE.write_text(made, encoding='utf-8')
    print(f'{PAGE}: {made.count("### ")} sections')
