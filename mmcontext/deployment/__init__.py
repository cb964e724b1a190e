"""Networks of configs as ONNX graphs of standard operators, and such graphs instead of networks.

``build_graph`` builds the exported module of a config, ``export`` writes it, ``OnnxGraph`` runs a
file and ``serve`` puts it into the model of a config.
"""
