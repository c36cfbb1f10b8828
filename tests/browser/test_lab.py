"""tune.ipynb as a person meets it: JupyterLab in a browser, Run All, until the plots are there.

Needs Chromium and its driver, so it is not part of `make test`: `.ci/browser` installs them and
runs this with `-m browser`.
Screenshots are left in the folder named by MOE_EXPERT_SCREENSHOTS, for a person to look at.
"""

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import pytest

pytestmark = pytest.mark.browser
SMALL = {'dataset': "'synthetic-400'", 'n_trials': '4', 'epochs': '400'}
CHROMIUM = [
    '--headless=new',
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
    '--window-size=1200,1500',
]
SETTINGS = {
    'apputils-extension/notification': {'fetchNews': 'false'},
}


def small_copy(source, target, parameters):
    "A notebook with other parameters."
    text = source.read_text()
    for name, value in parameters.items():
        text, n = re.subn(rf'"{name} = [^"\\]+', f'"{name} = {value}', text)
        assert n == 1, f'{name} is assigned {n} times in {source.name}'
    target.write_text(text)


@pytest.fixture
def lab(tmp_path, repo_root):
    "JupyterLab on a copy of the notebook: (folder, address with token)."
    (tmp_path / 'work' / 'nbs').mkdir(parents=True)
    ignore = shutil.ignore_patterns('__pycache__')
    shutil.copytree(repo_root / 'moe_expert', tmp_path / 'work' / 'moe_expert', ignore=ignore)
    small_copy(repo_root / 'nbs' / 'tune.ipynb', tmp_path / 'work' / 'nbs' / 'tune.ipynb', SMALL)
    for name, value in SETTINGS.items():
        path = tmp_path / 'settings' / '@jupyterlab' / f'{name}.jupyterlab-settings'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))
    with socket.socket() as s:
        s.bind(('localhost', 0))
        port = s.getsockname()[1]
    token = secrets.token_hex(16)
    env = os.environ | dict(
        HOME=str(tmp_path),
        JUPYTERLAB_SETTINGS_DIR=str(tmp_path / 'settings'),
        JUPYTER_PREFER_ENV_PATH='1',
        OMP_NUM_THREADS='1',
    )
    env.pop('MPLBACKEND', None)
    command = [
        sys.executable,
        '-m',
        'jupyterlab',
        '--no-browser',
        '--allow-root',
        '--ServerApp.ip=localhost',
        f'--ServerApp.port={port}',
        '--ServerApp.port_retries=0',
        f'--IdentityProvider.token={token}',
        f'--ServerApp.root_dir={tmp_path / "work"}',
    ]
    with open(tmp_path / 'lab.log', 'w') as log:
        server = subprocess.Popen(
            command, env=env, stdout=log, stderr=subprocess.STDOUT, cwd=tmp_path
        )
    try:
        wait_for(
            lambda: server.poll() is not None or answers(f'http://localhost:{port}/api'),
            60,
            'JupyterLab to start',
        )
        assert server.poll() is None, (tmp_path / 'lab.log').read_text()[-3000:]
        yield tmp_path / 'work', f'http://localhost:{port}/lab/tree/nbs/tune.ipynb?token={token}'
    finally:
        server.terminate()
        server.wait(20)


def answers(url):
    try:
        return urllib.request.urlopen(url, timeout=2).status == 200
    except (urllib.error.URLError, OSError):
        return False


def wait_for(condition, seconds, what):
    "Poll; returns the first true value."
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := condition():
            return found
        time.sleep(0.2)
    pytest.fail(f'waited {seconds} s for {what}')


@pytest.fixture
def browser(tmp_path):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which('chromium') or pytest.fail(
        'chromium is not installed: run .ci/browser'
    )
    for argument in [*CHROMIUM, f'--user-data-dir={tmp_path / "chromium"}']:
        options.add_argument(argument)
    driver = webdriver.Chrome(
        options=options, service=webdriver.ChromeService(shutil.which('chromedriver'))
    )
    driver.set_script_timeout(20)
    yield driver
    driver.quit()


def click(browser, selector, text):
    "Click the shown element with this text."

    def shown():
        found = [
            e
            for e in browser.find_elements('css selector', selector)
            if e.is_displayed() and e.text.strip() == text
        ]
        return found[0] if found else None

    wait_for(shown, 30, f'{text!r} to be shown').click()


PROMPTS = (
    "return [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(e => e.textContent)"
)
PROGRESS = """return [...document.querySelectorAll('.jp-OutputArea-output')].map(e => e.textContent)
    .filter(t => /^(preparing|expert\\d: \\d+ of|Done in|STOPPED|Interrupted)/.test(t.trim()))"""
# where the bar of a cell that works is: [its text, is it in sight?, is it the cell's last output?]
BAR = """const bar = [...document.querySelectorAll('.jp-OutputArea-output pre')].find(
    e => e.textContent.includes('%|') && e.textContent.includes(' left'));
if (!bar) return null;
const outer = bar.closest('.jp-WindowedPanel-outer').getBoundingClientRect();
const box = bar.getBoundingClientRect();
const outputs = bar.closest('.jp-OutputArea').querySelectorAll('.jp-OutputArea-child');
const lines = bar.innerText.split('\\n');
return [bar.innerText, box.top >= outer.top && box.bottom <= outer.bottom,
        outputs[outputs.length - 1].contains(bar) && lines.at(-2).includes(' left')]"""
PICTURES = """return [...document.querySelectorAll('.jp-OutputArea-output img')].map(
    i => [i.naturalWidth, i.getBoundingClientRect().width])"""
ERRORS = """return ['error', 'stderr'].flatMap(kind => [
    ...document.querySelectorAll(`[data-mime-type="application/vnd.jupyter.${kind}"]`)])
    .map(e => e.textContent)"""


def picture(browser, name, element=None):
    "A screenshot, with the element in its middle."
    if not (folder := os.environ.get('MOE_EXPERT_SCREENSHOTS')):
        return
    if element is not None:
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        time.sleep(0.5)
    Path(folder).mkdir(parents=True, exist_ok=True)
    assert browser.save_screenshot(str(Path(folder, f'{name}.png')))


def run_all(browser, url):
    "Open the notebook, and run all cells."
    browser.get(url)
    wait_for(lambda: len(browser.execute_script(PROMPTS)) > 15, 60, 'the notebook to open')
    wait_for(
        lambda: 'Idle' in browser.find_element('tag name', 'body').text, 60, 'the kernel to be idle'
    )
    click(browser, '.lm-MenuBar-itemLabel', 'Run')
    click(browser, '.lm-Menu-itemLabel', 'Run All Cells')


def saved(browser, path):
    "The code cells of the notebook once it is saved."
    click(browser, '.lm-MenuBar-itemLabel', 'File')
    click(browser, '.lm-Menu-itemLabel', 'Save Notebook')

    def read():
        cells = nbformat.read(path, 4).cells
        some = any(c.get('execution_count') for c in cells)
        return [c for c in cells if c.cell_type == 'code'] if some else None

    cells = wait_for(read, 20, 'the notebook to be saved')
    kinds = {kind for c in cells for o in c.outputs for kind in o.get('data', {})}
    assert not [kind for kind in kinds if 'widget' in kind], kinds
    return cells


def outputs_of_the_work(cells):
    (outputs,) = [c.outputs for c in cells if 'NotebookProgress' in c.source]
    assert '<script' not in str(outputs)
    return outputs


def test_run_all_in_jupyterlab(lab, browser):
    folder, url = lab
    run_all(browser, url)
    bars = []  # as `BAR` tells

    def done():
        if bar := browser.execute_script(BAR):
            if len(bars) in (2, 12):
                picture(browser, f'progress{len(bars)}')
            bars.append(bar)
        prompts, errors = browser.execute_script(PROMPTS), browser.execute_script(ERRORS)
        assert not errors, errors
        return prompts and all(re.fullmatch(r'\[\d+\]:', p.strip()) for p in prompts)

    wait_for(done, 120, 'all cells to have run')

    assert bars, 'no bar was shown while it worked'
    assert all(in_sight and is_last for _, in_sight, is_last in bars), bars
    last = browser.execute_script(PROGRESS)
    assert len(last) == 1 and last[0].startswith('Done in'), last  # one line is left
    wait_for(lambda: len(browser.execute_script(PICTURES)) == 9, 20, 'nine figures')
    for natural, shown in browser.execute_script(PICTURES):
        assert natural >= 900 and shown >= 0.75 * natural / 2, (  # drawn twice as fine
            f'a figure {natural} pixels wide is shown at {shown:.0f}: too small to read'
        )
    images = browser.find_elements('css selector', '.jp-OutputArea-output img')
    for i in (0, 2, 4, 5, 8):
        picture(browser, f'figure{i}', images[i])

    line = outputs_of_the_work(saved(browser, folder / 'nbs' / 'tune.ipynb'))
    assert len(line) == 1 and 'Done in' in line[0]['data']['text/html']
    copy = nbformat.read(
        folder / 'weights' / 'moe_experts' / 'synthetic-400_experts_tuning_report.ipynb', 4
    )
    assert (
        sum('image/png' in o.get('data', {}) for c in copy.cells for o in c.get('outputs', ())) == 9
    )


def test_the_stop_button_in_jupyterlab(lab, browser):
    folder, url = lab
    notebook = folder / 'nbs' / 'tune.ipynb'
    small_copy(notebook, notebook, {'n_trials': '300'})
    run_all(browser, url)

    def second_batch():
        bar = browser.execute_script(BAR)
        return bar and ' 15 of 300 trials; ' in bar[0]

    wait_for(second_batch, 120, 'the second batch')
    picture(browser, 'before_stop')
    browser.find_element('css selector', '[data-jp-item-name="interrupt"]').click()
    (error,) = wait_for(lambda: browser.execute_script(ERRORS), 20, 'the cell to stop')
    assert error.strip() == (
        'Interrupted. Finished trials are kept: run this cell again to go on, then those below it.'
    )
    wait_for(
        lambda: '[*]:' not in [p.strip() for p in browser.execute_script(PROMPTS)],
        20,
        'the cells below to be called off',
    )
    picture(browser, 'stopped')
    line, stop = outputs_of_the_work(saved(browser, notebook))
    assert 'Interrupted after' in line['data']['text/html'] and stop['ename'] == 'Interrupted'
    assert (folder / 'weights' / 'moe_experts' / 'synthetic-400_studies.db').exists()
