"""Process of one task: ``python -m gpu.task JSON`` with the options that the campaign gives."""
import argparse
import importlib
import json
import sys

from gpu.record import Record


def run(options: argparse.Namespace) -> Record:
    """Call the task's function with a record and the options."""
    record = Record(options.path)
    module, function = options.function.split(':')
    getattr(importlib.import_module(module), function)(record, options)
    record.note(finished=True)
    return record


if __name__ == '__main__':
    run(argparse.Namespace(**json.loads(sys.argv[1])))
