"The git hook that reads commit messages (`make hooks`)."

import os
import subprocess

import pytest

BODY = '\n\nBecause a reader wants to know why.\n'


def hook(repo_root, tmp_path, message):
    "Exit code and complaint of the hook for a message."
    file = tmp_path / 'message'
    file.write_text(message, encoding='utf-8')
    command = ['bash', str(repo_root / '.ci' / 'hooks' / 'commit-msg'), str(file)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {'LC_ALL': 'C.UTF-8'}
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    'message',
    [
        'x' * 72 + BODY,
        'é' * 72 + BODY,
        'Short' + BODY + '# a comment of git, which may be much longer than a subject: ' + '#' * 80,
        'Merge branch "with a name that is longer than the seventy-two characters of a subject"',
        'fixup! Short',
    ],
)
def test_good_messages_pass(repo_root, tmp_path, message):
    assert hook(repo_root, tmp_path, message) == (0, '')


@pytest.mark.parametrize(
    'message, complaint',
    [
        ('x' * 73 + BODY, '73 characters'),
        ('Short\nand on' + BODY, 'second line'),
        ('Short\n', 'why'),
        ('Short\n\n# only a comment\n', 'why'),
        ('\n', 'empty'),
    ],
)
def test_bad_messages_are_refused(repo_root, tmp_path, message, complaint):
    code, said = hook(repo_root, tmp_path, message)
    assert code == 1 and complaint in said
