"""Training needs no further package: a GPU machine without a network may lack it."""

import json
import subprocess
import sys

# what saekit imports to train, and what these bring
KNOWN = set(
    "torch transformers numpy scipy h5py safetensors tokenizers huggingface_hub jaxtyping rich "
    "tqdm saekit PIL accelerate anyio charset_normalizer cython_runtime dill filelock google h11 "
    "httpcore2 httpx2 idna jinja2 markupsafe mpmath packaging psutil regex sentencepiece sniffio "
    "sympy torchgen triton truststore typing_extensions yaml".split()
)


def test_the_trainer_loads_only_known_packages():
    code = (
        "import json, sys\nimport saekit.sae.training.trainer\n"
        "names = {name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)\n"
        "print(json.dumps(sorted(name for name in names if not name.startswith('_'))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    assert {"saekit", "torch"} <= loaded
    assert loaded - KNOWN == set()
