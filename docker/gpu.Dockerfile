# Runs engines and ONNX files on a GPU, and builds engines for it. No GPU has run it yet: docs/gpu.md.
#
#     docker build -f docker/gpu.Dockerfile -t t2t-deploy:gpu .
#     docker run --rm --gpus all -v "$PWD:/work" --user "$(id -u):$(id -g)" t2t-deploy:gpu doctor
#
# With --build-arg EXTRAS=export,gpu,rtx it exports as well and benches against eager PyTorch: some GB more.
# No HEALTHCHECK: it is a command that ends, not a service.
FROM nvidia/cuda:13.0.2-cudnn-runtime-ubuntu24.04 AS build

ARG EXTRAS=gpu,rtx,labels
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# the base image pins the release; Ubuntu's archive keeps only the newest of its packages
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3-venv \
 && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/t2t
WORKDIR /src
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE CHANGELOG.md constraints.txt ./
COPY t2t_deploy t2t_deploy
COPY docs/man docs/man
RUN /opt/t2t/bin/pip install -c constraints.txt ".[${EXTRAS}]" \
 && find /opt/t2t -name __pycache__ -type d -prune -exec rm -rf {} +

FROM nvidia/cuda:13.0.2-cudnn-runtime-ubuntu24.04

# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/t2t /opt/t2t
ENV PATH=/opt/t2t/bin:$PATH PYTHONDONTWRITEBYTECODE=1
RUN useradd --create-home --uid 10001 t2t \
 && mkdir /work \
 && chown t2t /work
USER 10001
WORKDIR /work
ENTRYPOINT ["t2t-deploy"]
CMD ["doctor"]
