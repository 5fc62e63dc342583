# nas-retrain for the CPU:   docker build -t nas-retrain .
# for NVIDIA GPUs:           docker build -t nas-retrain --build-arg BASE=nvidia/cuda:13.0.1-base-ubuntu24.04 --build-arg TORCH=cuda .
# A run keeps its results:   docker run --rm -v "$PWD/results:/nas-retrain/results" nas-retrain make dry-run
ARG BASE=debian:trixie-slim
FROM ${BASE}
ARG TORCH=cpu
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends ca-certificates git make python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /nas-retrain
COPY Makefile pyproject.toml requirements.txt README.md LICENSE ./
COPY benchmarks benchmarks
COPY benchmarks benchmarks
COPY configs configs
COPY scripts scripts
COPY slurm slurm
COPY src src
RUN make install TORCH=${TORCH}
ENV PATH=/nas-retrain/.venv/bin:$PATH
CMD ["make", "help"]
