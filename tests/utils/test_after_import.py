import subprocess
import sys

PROGRAM = '''
import sys
sys.path.insert(0, {folder!r})
from mmcontext.utils.after_import import after_import
seen = []
after_import('late', lambda module: seen.append(module.VALUE))
after_import('missing', lambda module: seen.append('never'))
import late
assert seen == [1] and late.__spec__.loader is late.__loader__, seen
after_import('late', lambda module: seen.append('now'))
assert seen == [1, 'now'], seen
try:
    import missing
except ImportError:
    print('done')
'''


def test_callbacks_run_once_the_module_is_there(tmp_path):
    (tmp_path / 'late.py').write_text('VALUE = 1\n')
    result = subprocess.run([sys.executable, '-c', PROGRAM.format(folder=str(tmp_path))],
                            capture_output=True, text=True)
    assert result.stdout == 'done\n', result.stderr
