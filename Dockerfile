# CPU:  docker build -t gpunet .
#       docker run --rm gpunet
# GPU:  docker build -t gpunet --build-arg EXTRA=cuda --build-arg ARCH=sm_80,sm_90 .
#       docker run --rm --gpus all gpunet
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

# Compiled kernels are where any user of the image can read them.
ENV GPUNET_CACHE_DIR=/opt/gpunet-kernels
RUN useradd --create-home user && install -d -o user -g user $GPUNET_CACHE_DIR
USER user
WORKDIR /home/user
# GPUs whose kernels to compile now, so that no container has to: such as "sm_80,sm_90" (A100, H100), or "all". Needs
# EXTRA=cuda. Kernels for other GPUs are compiled when they are first used.
ARG ARCH=""
RUN [ -z "$ARCH" ] || gpunet kernels compile --arch "$ARCH"

CMD ["gpunet", "train"]
