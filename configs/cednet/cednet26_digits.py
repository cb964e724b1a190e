_base_ = [
    '../_base_/models/cednet50.py',
    '../_base_/datasets/digits.py',
    '../_base_/schedules/digits.py',
    '../_base_/digits_runtime.py',
]

model = dict(
    # Residual branches initialised to zero keep the first gradients small enough for a schedule
    # of minutes.
    backbone=dict(depth=26, zero_init_residual=True),
    head=dict(
        num_classes=10, loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, num_classes=10),
        topk=(1, )))
