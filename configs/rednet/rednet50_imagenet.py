_base_ = [
    '../_base_/models/rednet50.py',
    'mmpretrain::_base_/datasets/imagenet_bs32.py',
    '../_base_/schedules/imagenet_bs2048_coslr_130e.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/runtime.py',
]
