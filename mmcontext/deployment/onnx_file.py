"""ONNX files as protocol buffers, read and written without the onnx package."""
import json
from pathlib import Path
from typing import Iterator, Set, Tuple

from mmcontext.utils.errors import UserError


def _varint(content: bytes, at: int) -> Tuple[int, int]:
    """A varint of a protocol buffer, and the position of its end."""
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _fields(content: bytes) -> Iterator[Tuple[int, bytes]]:
    """Length-delimited fields of a protocol buffer; numbers are skipped."""
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        if key & 7 == 0:
            at = _varint(content, at)[1]
            continue
        size, at = _varint(content, at)
        yield key >> 3, content[at:at + size]
        at += size


def operator_sets(path: str) -> Set[str]:
    """Domains of the operators of an ONNX file, without the onnx package.

    Args:
        path: The file.
    """
    # opset_import is field 8 of a model, and the domain field 1 of that.
    return {dict(_fields(entry)).get(1, b'').decode()
            for number, entry in _fields(Path(path).read_bytes()) if number == 8}


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited field of a protocol buffer."""
    size, length = len(content), b''
    while size > 127:
        length += bytes([size & 127 | 128])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


def write_metadata(path: str, metadata: dict) -> None:
    """Add entries to the metadata of an ONNX file, without the onnx package.

    Fields may be appended to a protocol buffer, and ``metadata_props`` is field 14 of a model.

    Args:
        path: The file.
        metadata: Entries; every value is written as JSON.
    """
    with open(path, 'ab') as file:
        for key, value in metadata.items():
            file.write(_field(14, _field(1, key.encode())
                              + _field(2, json.dumps(value).encode())))


def prepare_output(path: str) -> None:
    """Create the folder of a file that is going to be written.

    Args:
        path: The file.

    Raises:
        UserError: The file cannot be created.
    """
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'{path} cannot be written: {error}') from error
    if Path(path).is_dir():
        raise UserError(f'{path} cannot be written: it is a folder')
