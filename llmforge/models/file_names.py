"""Which files of a model's folder are read, as patterns of names; the light client knows them too."""

SMALL_FILES = ["*.json", "*.jinja", "*.model", "*.txt"]
ADAPTER_FILES = ["adapter_config.json", "adapter_model.safetensors"]
WEIGHT_FILES = ["*.safetensors", "*.safetensors.index.json"]
