_base_ = [
    '../_base_/models/pyconvresnet50.py',
    'mmpretrain::_base_/datasets/imagenet_bs32_pil_resize.py',
    '../_base_/schedules/imagenet_bs256_90e.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/runtime.py',
]
