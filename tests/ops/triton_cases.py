"""Cases for the Triton kernels; read by the test and by its worker process."""
from typing import Iterator, Tuple

# Largest error relative to the largest element of a float64 result. bfloat16 has 8 bits and
# the interpreter truncates where the hardware rounds.
DTYPES = {'float64': 1e-14, 'float32': 1e-6, 'float16': 1e-3, 'bfloat16': 8e-3}


def _geometry(kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1),
              interleaved=False) -> dict:
    return dict(kernel_size=kernel_size, stride=stride, padding=padding, dilation=dilation,
                interleaved=interleaved)


def _case(shape: tuple, groups: int, channels_last: bool = False, dtypes=tuple(DTYPES),
          **geometry) -> dict:
    return dict(shape=shape, groups=groups, channels_last=channels_last, dtypes=dtypes,
                geometry=_geometry(**geometry))


_EXACT = ('float64', )

CASES = {
    'block': _case((2, 6, 5, 4), 2),
    'block_last': _case((2, 6, 5, 4), 2, True, stride=(2, 2)),
    'interleaved': _case((1, 6, 4, 5), 3, interleaved=True),
    'interleaved_last': _case((1, 6, 4, 5), 3, True, interleaved=True),
    'k7': _case((1, 4, 5, 3), 1, dtypes=_EXACT, kernel_size=(7, 7), padding=(3, 3)),
    'even_kernel': _case((1, 2, 4, 4), 2, dtypes=_EXACT, kernel_size=(2, 4), padding=(0, 2)),
    'k1': _case((1, 4, 3, 2), 2, dtypes=_EXACT, kernel_size=(1, 1), padding=(0, 0)),
    'dilation': _case((1, 4, 7, 9), 2, dtypes=_EXACT, dilation=(2, 3), padding=(2, 3)),
    'stride_dilation': _case((1, 4, 9, 8), 2, True, dtypes=_EXACT, stride=(3, 2),
                             dilation=(2, 1), padding=(2, 0), interleaved=True),
    'stride_over_kernel': _case((1, 2, 7, 7), 1, dtypes=_EXACT, kernel_size=(1, 2),
                                stride=(3, 3), padding=(0, 0)),
    'channel_chunks': _case((1, 66, 3, 3), 1, dtypes=_EXACT),
    'channel_chunks_interleaved': _case((1, 68, 3, 3), 2, dtypes=_EXACT, interleaved=True),
    'position_tiles': _case((1, 1, 17, 18), 1, dtypes=_EXACT),
    'one_pixel': _case((1, 4, 1, 1), 2, dtypes=_EXACT),
    'one_by_one_stride': _case((1, 2, 3, 1), 1, dtypes=_EXACT, stride=(2, 2)),
}

_LOW = tuple(dtype for dtype in DTYPES if dtype != 'float64')

FUSED_CASES = {
    'fused': dict(_case((2, 4, 5, 4), 2, dtypes=_LOW), reduced=5, optional=True),
    'fused_last': dict(_case((1, 6, 5, 6), 2, True, dtypes=_LOW, stride=(2, 2)),
                       reduced=3, optional=False),
    'fused_k7': dict(_case((1, 2, 6, 7), 1, dtypes=('float32', ), kernel_size=(7, 7),
                           padding=(3, 3)), reduced=70, optional=True),
    'fused_dilated': dict(_case((1, 6, 4, 3), 3, dtypes=('float32', ), dilation=(2, 2),
                                padding=(2, 2)), reduced=2, optional=True),
}


def case_id(name: str, dtype: str) -> str:
    return f'{name}-{dtype}'


def all_cases() -> Iterator[Tuple[str, str, dict]]:
    """Name, dtype and description of every case."""
    for name, case in {**CASES, **FUSED_CASES}.items():
        for dtype in case['dtypes']:
            yield name, dtype, case
