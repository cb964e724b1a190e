_base_ = [
    '../_base_/models/pyconvresnet18.py',
    '../_base_/datasets/digits.py',
    '../_base_/schedules/digits.py',
    '../_base_/digits_runtime.py',
]

model = dict(
    backbone=dict(zero_init_residual=True),
    head=dict(num_classes=10, topk=(1, )))
