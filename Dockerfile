# vlm-jax on a CPU: docker build -t vlm-jax . && docker run --rm vlm-jax --help
FROM python:3.12-slim

WORKDIR /src
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE ./
COPY configs configs
COPY convert convert
COPY vlm_jax vlm_jax
RUN pip install --no-cache-dir . && rm -rf /src/*

ENV HF_HOME=/cache/huggingface XDG_CACHE_HOME=/cache
RUN useradd --create-home --uid 1000 user && mkdir -p /work /cache && chown user /work /cache
USER 1000
WORKDIR /work
ENTRYPOINT ["vlm-jax"]
CMD ["--help"]
