_base_ = './pyconvresnet50_augment_imagenet.py'

# Trained at 224, tested at 320.
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = 366
test_pipeline[2].crop_size = 320
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
