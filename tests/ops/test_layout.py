"""The same rule for memory layouts in Python, in C++ and in the shapes of compiled graphs."""
import pytest
import torch

from mmcontext.ops import local_aggregation
from mmcontext.ops.conv_norm_act import Convolution, conv_norm_act
from mmcontext.ops.layout import is_channels_last, layout_of, lies_by_pixel
from mmcontext.ops.native_library import UNAVAILABLE

BOTH_WAYS = [(2, 1, 3, 4), (2, 8, 1, 1), (1, 1, 1, 1), (2, 1, 1, 4)]
FORMS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize('form', FORMS, ids=str)
def test_maps_that_lie_both_ways_count_as_contiguous(form):
    for size in BOTH_WAYS:
        x = torch.empty(size, memory_format=form)
        assert lies_by_pixel(x) and not is_channels_last(x)
    assert layout_of(torch.empty(2, 3, 1, 4, memory_format=form)) is form


@pytest.mark.skipif(bool(UNAVAILABLE), reason='no compiled library')
@pytest.mark.parametrize('form', FORMS, ids=str)
@pytest.mark.parametrize('size', [*BOTH_WAYS, (2, 8, 3, 4)], ids=str)
def test_compiled_operators_follow_the_rule(size, form):
    x = torch.empty(size, memory_format=form).uniform_()
    # With a border, a single pixel becomes nine, which have a definite layout.
    w = torch.rand(size[0], 1, 1, size[2] + 2, size[3] + 2)
    maps = [local_aggregation(x, w, 1, padding=1, backend=name) for name in ('native', 'torch')]
    maps.append(local_aggregation(x.to('meta'), w.to('meta'), 1, padding=1))
    assert len({y.stride() for y in maps}) == 1
    if lies_by_pixel(x):
        convolution = Convolution(torch.rand(8, size[1], 1, 1), padding=(1, 1))
        with torch.no_grad():
            maps.append(conv_norm_act(x, convolution, method='own'))
    assert all(layout_of(y) is layout_of(x) for y in maps)
