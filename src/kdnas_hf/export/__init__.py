"""Students as they are deployed.

`optimum_onnx` and `transformers_exporters` are adapters to other exporters; nothing imports them unasked.
"""
