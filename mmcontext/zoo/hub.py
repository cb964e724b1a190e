"""Networks of the zoo on the Hugging Face hub, or in a folder of the same form."""
import os
from typing import Optional, Union

from mmcontext.utils.errors import required
from mmcontext.zoo.classifier import ZooClassifier
from mmcontext.zoo.create import load_pretrained
from mmcontext.zoo.index import find

_PURPOSE = 'mmcontext.HubModel needs'
PyTorchModelHubMixin = required('huggingface_hub', _PURPOSE, kind=ImportError).PyTorchModelHubMixin
required('safetensors', _PURPOSE, kind=ImportError)


class HubModel(ZooClassifier, PyTorchModelHubMixin, library_name='mmcontext',
               tags=['image-classification']):
    """A classifier of the zoo that can be saved to and loaded from the Hugging Face hub.

    ``HubModel.from_pretrained(FOLDER or 'user/name')``, ``model.save_pretrained(FOLDER)`` and
    ``model.push_to_hub('user/name')`` are those of ``PyTorchModelHubMixin``: the arguments are
    in config.json, the weights in model.safetensors, which ``create_model(name,
    pretrained=FOLDER)`` reads too. Arguments given to ``from_pretrained`` override those of
    config.json; weights are then adapted, and wrong files refused, as by ``create_model``.

    Args:
        name: Name in the zoo.
        num_classes: As for :func:`mmcontext.create_model`.
        in_channels: As there.
        pretrained: As there; not saved in config.json.
        **backbone_options: As there.
    """

    def __init__(self, name: str, num_classes: Optional[int] = None,
                 in_channels: Optional[int] = None,
                 pretrained: Union[str, os.PathLike, None] = None, **backbone_options) -> None:
        entry = find(name)
        if entry.task != 'classification':
            raise ValueError(f'name must be that of a classifier, got {name!r}')
        super().__init__(entry, num_classes, in_channels, **backbone_options)
        if pretrained is not None:
            load_pretrained(self, entry, pretrained)
        # A path on this machine.
        self._hub_mixin_config.pop('pretrained', None)

    @classmethod
    def _load_as_safetensor(cls, model: 'HubModel', model_file: str, map_location: str,
                            strict: bool) -> 'HubModel':
        load_pretrained(model, find(model.default_cfg['architecture']), model_file)
        return model.to(map_location)
