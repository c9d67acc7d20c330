# Rankscope in a container; docs/container.md has the commands.
FROM python:3.11-slim

# Which build of PyTorch: cpu, or for NVIDIA GPUs the CUDA version, such as cu128.
ARG TORCH=cpu

COPY pyproject.toml README.md LICENSE /rankscope/
COPY src /rankscope/src

# A build such as 2.9.0+cpu counts as newer than 2.9.0 of the default index, so pip takes it.
RUN pip install --no-cache-dir --extra-index-url "https://download.pytorch.org/whl/${TORCH}" /rankscope

# Folders and names that also serve a user who exists only outside (docker run --user).
ENV HOME=/tmp/home USER=rankscope
RUN mkdir -m 1777 /tmp/home /work && rankscope --version

WORKDIR /work
ENTRYPOINT ["rankscope"]
CMD ["quickstart"]
