_base_ = [
    '../_base_/models/cotnet50.py',
    '../_base_/datasets/digits.py',
    '../_base_/schedules/digits.py',
    '../_base_/digits_runtime.py',
]

# A quarter of the published width; a dozen epochs need less regularisation than 350.
model = dict(
    backbone=dict(base_channels=16, drop_path_rate=0.),
    head=dict(num_classes=10, in_channels=512, dropout=0., loss=dict(num_classes=10), topk=(1, )),
    train_cfg=None)
