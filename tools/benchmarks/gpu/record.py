"""Results of a task so far, written after every row so that a killed task keeps them."""
import contextlib
import json
import os
import traceback
from typing import Iterator


class Record:
    """Tables, notes and failures of one task, mirrored in a JSON file.

    Args:
        path: File to write, or '' for none. If it exists, its rows are kept.
    """

    def __init__(self, path: str = '') -> None:
        self._path = path
        self.content = dict(tables={}, notes={}, failures=[])
        if path and os.path.exists(path):
            with open(path) as file:
                self.content = json.load(file)

    def has(self, table: str, **values) -> bool:
        """Whether a table has a row with these values."""
        return any(all(row.get(key) == value for key, value in values.items())
                   for row in self.content['tables'].get(table, []))

    def row(self, table: str, **values) -> None:
        """Add a row to a table."""
        self.content['tables'].setdefault(table, []).append(values)
        self._write()

    def note(self, **values) -> None:
        """Record individual figures."""
        self.content['notes'].update(values)
        self._write()

    def fail(self, what: str, reason: str) -> None:
        """Record that something did not work, and continue."""
        self.content['failures'].append(dict(what=what, reason=reason))
        print(f'FAILED {what}: {reason}', flush=True)
        self._write()

    @contextlib.contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Turn an exception into a recorded failure, so that the next row is still measured.

        A device error is recorded and raised: nothing works in that process afterwards.
        """
        try:
            yield
        except Exception as error:
            lines = str(error).strip().splitlines() or ['']
            self.fail(what, f'{type(error).__name__}: {lines[0][:300]}')
            if 'CUDA error' in str(error):
                raise
            traceback.print_exc()

    def _write(self) -> None:
        if not self._path:
            return
        temporary = f'{self._path}.{os.getpid()}'
        with open(temporary, 'w') as file:
            json.dump(self.content, file)
        os.replace(temporary, self._path)
