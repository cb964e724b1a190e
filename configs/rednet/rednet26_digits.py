_base_ = [
    '../_base_/models/rednet50.py',
    '../_base_/datasets/digits.py',
    '../_base_/schedules/digits.py',
    '../_base_/digits_runtime.py',
]

model = dict(
    backbone=dict(depth=26, zero_init_residual=True),
    head=dict(num_classes=10, loss=dict(num_classes=10), topk=(1, )))
