_base_ = [
    '../_base_/models/cotnet50.py',
    '../_base_/datasets/imagenet_bs80_cotnet_224.py',
    '../_base_/schedules/imagenet_bs640_coslr_350e.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/runtime.py',
]
