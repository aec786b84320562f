# CPU:  docker build -t gpunet .                          && docker run --rm gpunet
# GPU:  docker build -t gpunet --build-arg EXTRA=cuda .   && docker run --rm --gpus all gpunet
FROM debian:bookworm-slim

# Extras of the package to install, such as "cuda" or "cuda,plot".
ARG EXTRA=""

RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/gpunet
COPY pyproject.toml README.md LICENSE ./
COPY gpunet gpunet
COPY kernels kernels
RUN python3 -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir ".${EXTRA:+[$EXTRA]}"
ENV PATH=/opt/venv/bin:$PATH

# What NVIDIA's container runtime makes visible; without it, they mean nothing.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

RUN useradd --create-home user
USER user
WORKDIR /home/user

CMD ["gpunet", "train"]
