"""Write what the study's pages say about its rows: `python docs/study_tables.py`.

With --check the pages are only compared; `--same FOLDER` compares the rows of another run with
those of the study. Everything between two marks is made from the plan and from docs/study/runs.csv.
By hand the text compares methods on development pairs only. Before the last row is there, the pages
only say how many there are.
"""

import argparse
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

import pandas as pd  # noqa: E402

from moe_expert.report.look import Picture  # noqa: E402
from moe_expert.scores.facts import COMPOSITES  # noqa: E402
from moe_expert.study import statistics, tables  # noqa: E402
from moe_expert.study.ledger import Ledger  # noqa: E402
from moe_expert.study.plan import ANALYSES, CLAIMS, MAIN_METHOD, STUDY_SETS  # noqa: E402
from moe_expert.study.runs import planned_runs  # noqa: E402

STUDY, TRIALS = DOCS / 'study', 10  # trials per expert of the confirmatory run
PAGE, APPENDIX, README = DOCS / 'study.md', DOCS / 'study_appendix.md', DOCS.parent / 'README.md'
RULES = {
    'all': 'holds if it is better than each',
    'holm': "each by itself, with Holm's correction",
    'word': 'the verdict is the outcome, whichever it is',
}
CAPTIONS = {  # of the three pictures of the page, by file name
    'gains.png': 'What the cross-fitted mixture has more than three others, on each data set, with '
    '95 % intervals, which may be wider than the picture. The first two columns cross the two '
    'classes of labels.',
    'plane.png': 'Means over families; better is to the right and below.',
    'sources.png': 'Left: over families. Right: each data set; it crosses the two classes.',
}
SAME = 1e-8  # rows have nine digits
LABELS_OTHERS = ('single_network', 'single_crossfit')  # compared where there are 100 labels
Section = tuple[str, pd.DataFrame]  # heading, table
SCORE = 'final_score'  # of the claims
Found = dict[str, pd.DataFrame]  # what became of the claims, by each of `statistics.SCORES`


def cell(value, is_probability: bool = False) -> str:
    if value is None or isinstance(value, float) and pd.isna(value):
        return '–'
    if is_probability and not 0.0005 <= value < 0.9995:
        return '< 0.001' if value < 0.5 else '> 0.999'
    return f'{value:.3f}' if isinstance(value, float) else str(value).replace('|', '\\|')


def markdown(table: pd.DataFrame) -> str:
    "Probabilities and p-values, by the names of their columns, are never 0 or 1."
    head = [str(column) for column in table.columns]
    sure = [name.lower().startswith(('p_', 'p(', 'p by', 'hierarchical_')) for name in head]
    rows = [list(map(cell, row, sure)) for row in table.itertuples(index=False)]
    return '\n'.join('| ' + ' | '.join(r) + ' |' for r in [head, ['---'] * len(head), *rows])


def wrapped(text: str, indent: str = '') -> str:
    look = dict(width=100, break_long_words=False, break_on_hyphens=False)
    return textwrap.fill(text, subsequent_indent=indent, **look)


def bullets(sentences: Iterable[str]) -> str:
    return '\n'.join(wrapped(f'- {sentence}', '  ') for sentence in sentences)


# --- The plan


def families() -> str:
    "The data sets, by family."
    of = {}
    for name, known in STUDY_SETS.items():
        leak = f' (without {", ".join(f"`{c}`" for c in known.leak)})' if known.leak else ''
        of.setdefault(known.family, []).append(name + leak)
    shared = [names for names in of.values() if len(names) > 1]
    alone = [names[0] for names in of.values() if len(names) == 1]
    made = [f'one family: {"; ".join(names)}' for names in shared]
    return bullets([*made, f'a family each: {", ".join(alone)}'])


def claims() -> str:
    "What is claimed, and how it is decided."
    made = []
    for claim in CLAIMS:
        named = ', '.join(tables.METHOD_WORDS[o] for o in claim.opponents)
        crosses = '; it crosses the two classes of labels' if claim.crosses else ''
        made.append(f'**{claim.name}** ({RULES[claim.rule]}{crosses}): against {named}.')
    return bullets(made)


# --- The rows


def by_default(found: pd.DataFrame) -> str:
    "Claim A decides how stage 3 trains by default."
    met = statistics.claim_outcome(found) == 'met'
    return f'so the default {"is `crossfit`" if met else "stays `one`"}'


def outcome_words(line) -> str:
    "A claim that is not met may still have a verdict."
    told = line.outcome == line.verdict or line.verdict in ('better', 'undecided')
    return f'**{line.outcome}**' + ('' if told else f', {line.verdict}')


def outcomes(found: pd.DataFrame) -> str:
    "What became of the claims."
    lead = wrapped(
        f'Claim A, as a whole: **{statistics.claim_outcome(found)}**, {by_default(found)}; it '
        'crosses the two classes: the mixture has learned from validation labels, too, the methods '
        'that claim A names have not.'
    )
    found = found.dropna(subset='mean')
    shown = {
        'claim': found.claim,
        'the mixture against': found.other.map(tables.METHOD_WORDS),
        'outcome': [outcome_words(line) for line in found.itertuples()],
        'difference [95 %]': [
            tables.difference_in_words(line, probability=False) for _, line in found.iterrows()
        ],
        'P(better)': found.p_better,
        'P(equivalent)': found.p_equivalent,
        'p by Holm': found.p_holm,
    }
    return f'{lead}\n\n{markdown(pd.DataFrame(shown))}'


def beside(every: pd.DataFrame, main: pd.DataFrame, found: Found) -> str:
    "What was to stand beside the claims: other scores, few labels, and where nothing was trained."
    by_other = '; '.join(
        f'by {words} **{statistics.claim_outcome(found[score])}**'
        for score, words in statistics.SCORES.items()
        if score != SCORE
    )
    few = statistics.family_verdicts(statistics.analysis_rows(every, 'labels-100'))
    few = {o: tables.difference_in_words(few[few.other == o].iloc[0], False) for o in LABELS_OTHERS}
    few_words = ', '.join(f'{tables.METHOD_WORDS[o]} {found}' for o, found in few.items())
    ours = main[main.method == MAIN_METHOD]
    before = int(ours.note.str.startswith('no way').sum())
    return bullets(
        [
            f'Claim A by other measures: {by_other}.',
            *no_longer(found[SCORE], found['own_final_score']),
            f'With 100 training labels, the mixture minus {few_words}. The first crosses the two '
            'classes of labels.',
            f'On {before} of {len(ours)} pairs no way reaches the floor, and the mixture is that '
            'of the gate.',
        ]
    )


def no_longer(by_rule: pd.DataFrame, without: pd.DataFrame) -> list[str]:
    "What claim B loses without the rule of the floor, as a sentence; none if nothing."
    both = by_rule.merge(without, on=['claim', 'other'], suffixes=('', '_without'))
    lost = both[(both.claim == 'B') & (both.outcome != both.outcome_without)]
    if lost.empty:
        return []
    words = [
        f'**{outcome}** against {" and ".join(some.other.map(tables.METHOD_WORDS))}'
        for outcome, some in lost.groupby('outcome_without')
    ]
    return [f'Claim B without the rule of the floor: {"; ".join(words)}.']


def short(found: pd.DataFrame) -> str:
    "Claim A and the control of claim B, as in the README."
    control = found[found.other == 'single_crossfit'].iloc[0]
    return bullets(
        [
            'From the same data, `--ways crossfit`, taught by validation labels too, is '
            'better than the gate, the uniform mixture, one network and the picked expert: '
            f'**{statistics.claim_outcome(found)}**, {by_default(found)}.',
            f'Against one network with the same labels: **{control.outcome}**, within '
            f'±{statistics.MARGIN_FAMILIES} '
            f'({tables.difference_in_words(control)}).',
        ]
    )


def sections(every: pd.DataFrame, found: Found) -> Iterator[Section]:
    "All tables of the appendix."
    for analysis in ANALYSES:
        rows = statistics.analysis_rows(every, analysis)
        if MAIN_METHOD not in set(rows.method):
            continue
        for score, words in statistics.SCORES.items():
            if analysis == 'main':
                yield f'The claims by {words}', found[score]
        for taught in ('train', 'all'):
            some = rows[(rows.taught == taught) | (rows.method == MAIN_METHOD)]
            title = f'{analysis}: the cross-fitted mixture minus methods of the class `{taught}`'
            yield f'{title}, over families', statistics.family_verdicts(some)
            yield f'{title}, on each data set', statistics.data_set_verdicts(some)
            scores = statistics.score_summary(rows[rows.taught == taught]).reset_index()
            yield f'{analysis}: scores of the class `{taught}`', scores
    main = statistics.analysis_rows(every)
    if MAIN_METHOD in set(main.method):
        yield 'What each step brings', statistics.step_table(main)
        yield 'The gain over one network, and the labels', statistics.label_gains(every)
        yield 'With and without the leaking columns', tables.leak_table(every)
        yield 'Gaps, and what chance alone gives', statistics.beyond_chance(main)
        yield 'Validation and test', statistics.validation_agreement(main)


def filled(page: Path, **made: str) -> str:
    "The page with what stands between its marks made anew."
    text = page.read_text(encoding='utf-8')
    for name, new in made.items():
        begin, end = f'<!-- {name}: made by docs/study_tables.py -->', f'<!-- end of {name} -->'
        old = re.compile(f'{re.escape(begin)}.*?{re.escape(end)}', re.S)
        if len(old.findall(text)) != 1:
            sys.exit(f'{page.name} needs exactly one part between {begin} and {end}')
        before, after = old.split(text)
        text = f'{before}{begin}\n\n{new}\n\n{end}{after}'
    return text


def waiting(ledger: Ledger) -> str:
    "How many rows there are, while some are missing; '' when all are there."
    planned = planned_runs('confirmatory', n_trials=TRIALS)
    done = len(planned) - len(ledger.missing(planned))
    if done == len(planned):
        return ''
    return wrapped(
        f'The confirmatory run is under way: {done:,} of {len(planned):,} rows are there. What '
        'became of the claims is said when all are.'
    )


def pictures(every: pd.DataFrame, main: pd.DataFrame) -> dict[str, Picture]:
    "The pictures, by file name."
    steps, gains = statistics.step_table(main), statistics.label_gains(every)
    made = tables.plot_gains(main), tables.plot_plane(main), tables.plot_sources(steps, gains)
    return dict(zip(CAPTIONS, made, strict=True))


def pages() -> tuple[dict[Path, str], dict[str, Picture]]:
    "All pages with everything made anew, and their pictures: none while rows are missing."
    ledger, parts = Ledger(STUDY), dict(families=families(), claims=claims())
    if wait := waiting(ledger):
        made, figures = dict.fromkeys(('outcomes', 'short', 'tables'), wait), {}
    else:
        every = ledger.rows()
        every = every[every.phase == 'confirmatory']
        main = statistics.analysis_rows(every)
        found = {score: statistics.claim_table(main, score) for score in statistics.SCORES}
        texts = [
            f'## {heading}\n\n{markdown(t)}' for heading, t in sections(every, found) if len(t)
        ]
        told = f'{outcomes(found[SCORE])}\n\n{beside(every, main, found)}'
        made = dict(outcomes=told, short=short(found[SCORE]), tables='\n\n'.join(texts))
        figures = pictures(every, main)
    shown = [
        f'![{figure.alt}](study/{name})\n\n{wrapped(f"*{CAPTIONS[name]}*")}'
        for name, figure in figures.items()
    ]
    parts |= dict(outcomes=made['outcomes'], pictures='\n\n'.join(shown))
    return {
        PAGE: filled(PAGE, **parts),
        APPENDIX: filled(APPENDIX, tables=made['tables']),
        README: filled(README, short=made['short']),
    }, figures


def compared(folder: str) -> str:
    "How many rows of another run are those of the study; an error where a score differs."
    ours, theirs = (Ledger(f).rows().set_index('name') for f in (STUDY, Path(folder)))
    names = theirs.index.intersection(ours.index)
    if not len(names):
        sys.exit(f'{folder} has no row of the study')
    scores = list(COMPOSITES)
    pair = [rows.loc[names, scores].astype(float) for rows in (ours, theirs)]
    gap = (pair[0] - pair[1]).abs().where(pair[0].isna() == pair[1].isna(), float('inf'))
    largest = gap.max(axis=1).fillna(0)
    if (differ := largest[largest > SAME]).size:
        sys.exit(f'{len(differ)} of {len(names)} rows differ:\n{differ.to_string()}')
    return f'{len(names)} rows, the same scores: the largest difference is {largest.max():.1e}'


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.split(':')[0])
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument('--check', action='store_true', help='write nothing, say what differs')
    asked.add_argument('--same', metavar='FOLDER', help='write nothing, compare its rows')
    given = parser.parse_args()
    if given.same is not None:
        print(compared(given.same))
        sys.exit()
    made, figures = pages()
    if given.check:
        differ = [p.name for p, text in made.items() if text != p.read_text(encoding='utf-8')]
        if differ:
            sys.exit(f'{differ} differ from docs/study/runs.csv: run python docs/study_tables.py')
        sys.exit()
    for page, text in made.items():
        page.write_text(text, encoding='utf-8')
    for name, figure in figures.items():
        figure.savefig(STUDY / name, dpi=150)
    print(f'{APPENDIX}: {made[APPENDIX].count("## ")} tables')
