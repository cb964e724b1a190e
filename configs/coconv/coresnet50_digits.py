_base_ = [
    '../_base_/models/coresnet50.py',
    '../_base_/datasets/digits.py',
    '../_base_/schedules/digits.py',
    '../_base_/digits_runtime.py',
]

# A quarter of the published width.
model = dict(
    backbone=dict(base_channels=16, zero_init_residual=True),
    head=dict(num_classes=10, in_channels=512, topk=(1, )))
