_base_ = [
    '../_base_/models/ccnn_4_140_points.py',
    '../_base_/datasets/ccnn_modelnet40.py',
    '../_base_/schedules/ccnn_200e.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/runtime.py',
]

optim_wrapper = dict(accumulative_counts=4)
