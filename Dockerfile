# docker build --build-arg PLATFORM=cpu|gpu|tpu --tag gmsrm:cpu .     docs/scale.md says how to run it
FROM python:3.12-slim

ARG PLATFORM=cpu
# root where device files or a mounted bucket belong to root, as on TPU machines and in the pods of xpk.
ARG RUN_AS=gmsrm

# HOME: any --user may write there. LD_LIBRARY_PATH: where GKE mounts the driver; elsewhere there is no such folder.
ENV HOME=/tmp PYTHONUNBUFFERED=1 LD_LIBRARY_PATH=/usr/local/nvidia/lib64
WORKDIR /app

# Only what names the packages comes first, so that a change of the code does not install them again.
COPY pyproject.toml requirements.txt README.md ./
COPY gmsrm_jax/__init__.py gmsrm_jax/
# hadolint ignore=DL3013
RUN case "$PLATFORM" in \
      cpu) what=".[serve]" ;; \
      gpu) what=".[cuda,serve]" ;; \
      tpu) what=".[tpu,serve]" ;; \
      *) echo "PLATFORM=$PLATFORM is unknown: choose from cpu, gpu, tpu" >&2; exit 2 ;; \
    esac \
 && pip install --no-cache-dir "$what" \
 && pip uninstall --yes gmsrm-jax

COPY run.py ./
COPY gmsrm_jax gmsrm_jax
COPY experiments experiments
COPY scripts/keep_running.sh scripts/
RUN useradd --create-home gmsrm && mkdir runs && chmod 1777 runs

USER ${RUN_AS}
ENTRYPOINT ["python", "run.py"]
