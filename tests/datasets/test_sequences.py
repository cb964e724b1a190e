import math
import wave

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS, init_default_scope
from tolerances import assert_close

from mmcontext.datasets import ImageToSequence, mfcc
from mmcontext.datasets.speech_commands import read_wave
from mmcontext.utils.errors import DataError

WORDS = ('yes', 'no', 'up', 'down', 'left', 'right', 'on', 'off', 'stop', 'go')
PACK = [dict(type='PackInputs')]


def build(name, root, **kwargs):
    init_default_scope('mmpretrain')
    return DATASETS.build(dict(type=f'mmcontext.{name}', data_root=str(root), **kwargs))


# Images.


def test_pixels_are_read_row_by_row():
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    out = ImageToSequence(mean=[1., 2., 3.], std=[1., 2., 4.])(dict(img=image))['img']
    assert out.shape == (3, 6) and out.dtype == torch.float32
    for c in range(3):
        expected = (image[..., c].reshape(-1) - (c + 1.)) / 2**c
        np.testing.assert_allclose(out[c].numpy(), expected)


def test_grey_images():
    image = np.arange(6, dtype=np.uint8).reshape(2, 3)
    for img in (image, image[..., None]):
        assert ImageToSequence()(dict(img=img))['img'].tolist() == [[0, 1, 2, 3, 4, 5]]


def test_permutation_is_fixed_and_complete():
    image = np.arange(784, dtype=np.float32).reshape(28, 28)
    out = ImageToSequence(permute_seed=3)(dict(img=image))['img'][0].long()
    assert sorted(out.tolist()) == list(range(784)) and out.tolist() != list(range(784))
    np.testing.assert_array_equal(out, np.random.RandomState(3).permutation(784))
    other = ImageToSequence(permute_seed=4)(dict(img=image))['img'][0].long()
    assert not torch.equal(out, other)


def test_image_mistakes_are_named():
    with pytest.raises(ValueError, match='std must not be zero'):
        ImageToSequence(std=0)
    with pytest.raises(ValueError, match='mean must have 1 or 1 values'):
        ImageToSequence(mean=[1, 2, 3])(dict(img=np.zeros((2, 2))))
    with pytest.raises(ValueError, match=r'img must be \[H, W\]'):
        ImageToSequence()(dict(img=np.zeros(4)))


# Audio.


def test_mfcc_against_the_definition():
    """Frame by frame in float64: window, DFT, mel triangles, log, DCT."""
    samples = torch.randn(1000)
    out = mfcc(samples, 8000, num_coefficients=5, num_mels=12, n_fft=64)
    x = np.pad(samples.double().numpy(), 32, mode='reflect')
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(64) / 64)
    bins = np.arange(33) * 8000 / 64

    def to_hertz(mel):
        return 700 * (10**(mel / 2595) - 1)

    edges = to_hertz(np.linspace(0, 2595 * math.log10(1 + 4000 / 700), 14))
    for frame in range(1000 // 32 + 1):
        part = x[32 * frame:32 * frame + 64] * window
        power = np.array([abs(sum(part * np.exp(-2j * np.pi * k * np.arange(64) / 64)))**2
                          for k in range(33)])
        logs = []
        for lo, mid, hi in zip(edges, edges[1:], edges[2:]):
            up, down = (bins - lo) / (mid - lo), (hi - bins) / (hi - mid)
            logs.append(math.log(power @ np.clip(np.minimum(up, down), 0, None) + 1e-6))
        for c in range(5):
            scale = math.sqrt((1 if c == 0 else 2) / 12)
            expected = scale * sum(v * math.cos(math.pi * c * (m + 0.5) / 12)
                                   for m, v in enumerate(logs))
            assert out[c, frame].item() == pytest.approx(expected, abs=1e-3)  # float32


def test_mfcc_shape_of_the_paper():
    assert mfcc(torch.randn(2, 16000)).shape == (2, 20, 161)
    with pytest.raises(ValueError, match='num_coefficients must not exceed num_mels 10'):
        mfcc(torch.randn(16000), num_mels=10)


def write_wave(path, samples, rate=16000):
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), 'wb') as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype('<i2').tobytes())


@pytest.fixture
def speech(tmp_path):
    r = np.random.RandomState(0)
    for label, word in enumerate(WORDS):
        for i in range(7):
            write_wave(tmp_path / word / f'{i}.wav',
                       3000 * r.standard_normal(16000) + 100 * label)
        write_wave(tmp_path / word / 'short.wav', np.zeros(100))
    return tmp_path


@pytest.mark.parametrize('features, shape', [('raw', (1, 16000)), ('mfcc', (20, 161))])
def test_speech_commands(speech, features, shape):
    splits = {s: build('SpeechCommands', speech, split=s, features=features, pipeline=PACK)
              for s in ('train', 'val', 'test')}
    assert {s: len(d) for s, d in splits.items()} == dict(train=50, val=10, test=10)
    paths = [d.get_data_info(i)['img_path'] for d in splits.values() for i in range(len(d))]
    assert len(set(paths)) == 70 and not any('short' in p for p in paths)
    samples = [splits['train'][i] for i in range(50)]
    x = torch.stack([s['inputs'] for s in samples])
    assert x.shape == (50, *shape)
    # Each channel is standardised over the training part, by constants with four digits.
    assert_close(x.mean((0, 2)), torch.zeros(shape[0]), atol=1e-3, rtol=0)
    assert_close(x.std((0, 2)), torch.ones(shape[0]), atol=1e-3, rtol=0)
    for i, sample in enumerate(samples):
        word = splits['train'].get_data_info(i)['img_path'].split('/')[-2]
        assert sample['data_samples'].gt_label.item() == WORDS.index(word)


def test_speech_of_another_rate_is_refused(tmp_path):
    write_wave(tmp_path / 'a.wav', np.zeros(16000), 8000)
    with pytest.raises(DataError, match='must be mono 16-bit 16000 Hz, got 1 channels of 16 bits'
                                        ' at 8000 Hz'):
        read_wave(str(tmp_path / 'a.wav'))


# Long-range arena.


def test_listops(tmp_path):
    rows = {'train': [('( ( [MAX 4 ) 3 ) ]', 4), ('[MIN 1 1 ]', 1)], 'val': [('[MED 9 ]', 9)],
            'test': [('[MAX 1 2 3 4 5 6 ]', 6)]}
    for split, samples in rows.items():
        text = 'Source\tTarget\n' + ''.join(f'{s}\t{t}\n' for s, t in samples)
        (tmp_path / f'basic_{split}.tsv').write_text(text)
    train = build('LRAListOps', tmp_path, max_length=8, pipeline=PACK)
    # By count, then by code point: 1 and X twice; 3 4 [MAX [MIN once. 2 is the end.
    ids = dict(zip(['1', 'X', '3', '4', '[MAX', '[MIN'], range(3, 9)))
    expected = [0, 0, 0, ids['[MAX'], ids['4'], ids['3'], ids['X'], 2]
    assert train[0]['inputs'].tolist() == [expected]
    assert train[0]['data_samples'].gt_label.item() == 4
    # Reading twice gives the same.
    assert train[0]['inputs'].tolist() == [expected]
    val = build('LRAListOps', tmp_path, split='val', max_length=8)
    assert val[0]['img'].tolist() == [[0, 0, 0, 0, 1, 1, ids['X'], 2]]
    # The tail is cut off for the end token.
    test = build('LRAListOps', tmp_path, split='test', max_length=8)
    assert test[0]['img'].tolist() == [[ids['[MAX'], ids['1'], 1, ids['3'], ids['4'], 1, 1, 2]]


def test_text(tmp_path):
    for split in ('train', 'test'):
        for name, text in (('neg', 'bad'), ('pos', 'good ☺')):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            (folder / '0_1.txt').write_text(text, encoding='utf-8')
    data = build('LRAText', tmp_path, max_length=6, min_count=2)
    # d and o occur twice.
    assert data[0]['img'].tolist() == [[0, 0, 1, 1, 3, 2]] and data[0]['gt_label'] == 0
    assert data[1]['img'].tolist() == [[1, 4, 4, 3, 1, 2]] and data[1]['gt_label'] == 1
    assert len(build('LRAText', tmp_path, split='val', max_length=6)) == 2


def test_pathfinder(tmp_path):
    (tmp_path / 'metadata').mkdir()
    (tmp_path / 'imgs' / '0').mkdir(parents=True)
    lines = []
    for i in range(21):
        path = tmp_path / 'imgs' / '0' / f'sample_{i}.png'
        cv2.imwrite(str(path), np.full((4, 4), i, np.uint8))
        lines.append(f'imgs/0 sample_{i}.png {i} {i % 2} 0.5')
    (tmp_path / 'imgs' / '0' / 'sample_20.png').write_bytes(b'')
    (tmp_path / 'metadata' / '0.npy').write_text('\n'.join(lines[:10]) + '\n')
    (tmp_path / 'metadata' / '10.npy').write_text('\n'.join(lines[10:]) + '\n')
    pipeline = [dict(type='LoadImageFromFile', color_type='grayscale'),
                dict(type='mmcontext.ImageToSequence', std=255.), *PACK]
    splits = [build('LRAPathfinder', tmp_path, split=s, pipeline=pipeline)
              for s in ('train', 'val', 'test')]
    assert [len(d) for d in splits] == [16, 2, 2]
    seen = []
    for data in splits:
        for sample in data:
            value = round(sample['inputs'][0, 0].item() * 255)
            assert sample['inputs'].shape == (1, 16)
            assert sample['data_samples'].gt_label.item() == value % 2
            seen.append(value)
    assert sorted(seen) == list(range(20))


def test_stl10(tmp_path):
    image = np.arange(96 * 96 * 3, dtype=np.uint32).reshape(96, 96, 3).astype(np.uint8)
    for split, labels in (('train', [1, 10]), ('test', [3])):
        stored = np.stack([image] * len(labels)).transpose(0, 3, 2, 1)
        stored.tofile(tmp_path / f'{split}_X.bin')
        np.array(labels, dtype=np.uint8).tofile(tmp_path / f'{split}_y.bin')
    data = build('STL10', tmp_path)
    assert [data[i]['gt_label'] for i in range(2)] == [0, 9]
    np.testing.assert_array_equal(data[1]['img'], image)
    assert build('STL10', tmp_path, split='test')[0]['gt_label'] == 2


@pytest.mark.parametrize('name', ['SpeechCommands', 'LRAListOps', 'LRAText', 'LRAPathfinder',
                                  'STL10'])
def test_missing_files_and_splits_are_named(name, tmp_path):
    with pytest.raises(DataError, match=f'no .* {tmp_path}.* data_root'):
        build(name, tmp_path)
    with pytest.raises(ValueError, match="split must be .* got 'dev'"):
        build(name, tmp_path, split='dev')


@pytest.mark.parametrize('name, files, message', [
    ('LRAListOps', {'basic_train.tsv': b'Source\tResult\n( [MAX 1 2 ] )\t2\n'},
     'basic_train.tsv cannot be read: expected tab-separated columns Source and Target'),
    ('LRAListOps', {'basic_train.tsv': b'Source\tTarget\n1\t12\n'},
     r'label 12 is not in \[0, 10\)'),
    ('LRAListOps', {'basic_train.tsv': b'Source\tTarget\n\xff\t1\n'}, 'UnicodeDecodeError'),
    ('LRAText', {'train/neg/0.txt': b'\xff'}, '0.txt cannot be read: expected UTF-8 text'),
    ('LRAPathfinder', {'metadata/1.npy': b'imgs 1.png\n'}, '1.npy cannot be read: expected lines'),
    ('SpeechCommands', {'yes/a.wav': b''}, 'a.wav is no readable WAV file: it is too short'),
    ('SpeechCommands', {'yes/a.wav': b'RIFF0000nothing'}, 'a.wav is no readable WAV file'),
    ('STL10', {'train_X.bin': bytes(5), 'train_y.bin': b'\1'}, 'train_X.bin and .* do not fit'),
    ('STL10', {'train_X.bin': bytes(27648), 'train_y.bin': b'\0'}, 'must hold labels from 1 to 10'),
])
def test_damaged_files_are_named(tmp_path, name, files, message):
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    with pytest.raises(DataError, match=message):
        build(name, tmp_path)


def test_listops_takes_windows_line_ends(tmp_path):
    (tmp_path / 'basic_train.tsv').write_bytes(b'Source\tTarget\r\n( [MAX 1 2 ] )\t2\r\n')
    data = build('LRAListOps', tmp_path, max_length=6)
    assert len(data) == 1 and data.get_data_info(0)['gt_label'] == 2


def test_a_recording_that_is_cut_short_is_refused(tmp_path):
    with wave.open(str(tmp_path / 'a.wav'), 'wb') as file:
        file.setparams((1, 2, 16000, 0, 'NONE', ''))
        file.writeframes(bytes(200))
    content = (tmp_path / 'a.wav').read_bytes()
    (tmp_path / 'a.wav').write_bytes(content[:-100])
    with pytest.raises(DataError, match='a.wav is cut short: 50 of 100 samples'):
        read_wave(str(tmp_path / 'a.wav'))
