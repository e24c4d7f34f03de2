# `make demo` and `make test` work in a fresh clone. What they need is set up in .venv, once, and
# again when pyproject.toml or constraints.txt change. Another Python: make PYTHON=python3.12 ...

PYTHON ?= python3
PYTEST_ARGS ?=
BENCH_ARGS ?=
RAY_ARGS ?=
# Two workers with one thread each: the tests' models are too small to fill more threads.
# What is skipped is listed by name: not run is not passed.
PYTEST := OMP_NUM_THREADS=1 .venv/bin/pytest -n 2 -rs --no-fold-skipped

BIN := .venv/bin
# written last: without it a set-up was interrupted and starts from nothing
READY := .venv/.ready
# $(call install,ENVIRONMENT,LOCK,MORE): every file of the lock by its hash, then torch, whose build is the
# machine's (requirements/README.md), and what must agree with it, then this checkout
define install
@$(1)/bin/python -m pip install -qq --disable-pip-version-check --no-deps --require-hashes \
  -r requirements/$(2).txt
@$(1)/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt torch $(3)
@$(1)/bin/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
endef
# onnxruntime-gpu fills the same folder as onnxruntime: an environment of its own
GPU_BIN := .venv-gpu/bin
GPU_READY := .venv-gpu/.ready
GPU_EXTRAS := export,gpu,rtx,dev
# ray is 600 MB that few need: an environment of its own too
RAY_BIN := .venv-ray/bin
RAY_READY := .venv-ray/.ready
RAY_EXTRAS := export,cpu,labels,plot,ray,dev
EXTRAS := export,cpu,openvino,rtx,labels,plot,dev
# .venv, and beside it Triton's server and client, whose metadata ask for older numpy and protobuf than
# ours: they are installed as they are. The server's Python models have an environment of their own.
SERVE_BIN := .venv-serve/bin
SERVE_READY := .venv-serve/.ready
LOAD_ARGS ?=
DOCS_BIN := .venv-docs/bin
DOCS_READY := .venv-docs/.ready
DEMO := build/demo
MUTANTS_BIN := .venv-mutants/bin
MUTANTS_READY := .venv-mutants/.ready
MUTANTS ?=
comma := ,
DIST_BIN := .venv-dist/bin
DIST_READY := .venv-dist/.ready
STUBS := .venv/stubs

.DEFAULT_GOAL := help
.PHONY: help demo test coverage mutants test-slow test-gpu bench-gpu test-ray ray-run test-serve load-test docs dist lock audit sbom lint format clean

help:
	@echo 'make demo       export, build-trt and bench of T2T-ViT-14, in $(DEMO)'
	@echo 'make test       every check that needs no GPU and is not slow'
	@echo 'make coverage   make test, and the branches it takes: at least 90 %'
	@echo 'make mutants    are wrong versions of the rewrites, the placement, manifests noticed (mutmut)'
	@echo 'make test-slow  the slow ones; PYTEST_ARGS="tests/export -x" narrows either'
	@echo 'make test-gpu   the checks on a GPU; without one all are skipped, with the reason'
	@echo 'make bench-gpu  builds, checks and times engines; a report in docs/results'
	@echo 'make test-ray   predict --ray and evaluate --ray on clusters of this machine'
	@echo 'make ray-run    20,000 pictures on 2 workers, one killed: docs/batch-inference.md'
	@echo 'make test-serve the checks on a real Triton server, CPU only; Linux on x86-64'
	@echo 'make load-test  20,000 requests to that server, each answer checked'
	@echo 'make docs       the documentation site, strict, in build/site'
	@echo 'make dist       wheel and sdist, built and checked, in dist/'
	@echo 'make lock       hashes of what the lanes install, anew; needs network, as does audit'
	@echo 'make audit      known vulnerabilities of what is installed (pip-audit)'
	@echo 'make sbom       the parts list of .venv, build/sbom.cdx.json (CycloneDX)'
	@echo 'make lint       ruff, mypy (against three TensorRTs), import-linter'
	@echo 'make format     ruff, rewriting files'
	@echo 'make clean      remove .venv, build/ and caches; ./artifacts stays'

$(READY): pyproject.toml constraints.txt requirements/default.txt
	@command -v '$(PYTHON)' >/dev/null 2>&1 || { \
	  echo "make: '$(PYTHON)' not found; t2t-deploy needs Python 3.10 or newer:" \
	    'install it, or name one: make PYTHON=/path/to/python3' >&2; exit 1; }
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "make: '$(PYTHON)' is $$('$(PYTHON)' -V 2>&1); t2t-deploy needs Python 3.10 or newer:" \
	    'name one: make PYTHON=/path/to/python3' >&2; exit 1; }
	@'$(PYTHON)' -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "make: '$(PYTHON)' has no venv module; it makes the virtual environment:" \
	    'install it (Debian, Ubuntu: apt install python3-venv)' >&2; exit 1; }
	@echo 'Setting up .venv (a few minutes the first time) ...'
	@if [ -e $@ ]; then rm $@; else '$(PYTHON)' -m venv --clear .venv; fi
	$(call install,.venv,default)
	@touch $@

demo: $(READY)
	@rm -rf $(DEMO) && mkdir -p $(DEMO)
	@set -e; unset T2T_DEPLOY_WORKSPACE; \
	bin="$$PWD/$(BIN)"; cd $(DEMO); \
	step() { printf '\n$$ t2t-deploy %s\n' "$$*"; "$$bin/t2t-deploy" "$$@"; }; \
	left_out=; \
	step export --variant 14; \
	if "$$bin/python" -c 'import sys; from t2t_deploy._optional import is_installed; \
	sys.exit(not is_installed("tensorrt_rtx"))'; then \
	  step build-trt --fp16; \
	else \
	  left_out="build-trt --fp16: TensorRT-RTX is not installed; its wheels are for Linux and Windows on x86-64, this is $$(uname -s) on $$(uname -m)"; \
	  printf '\nLeft out: %s\n' "$$left_out"; \
	fi; \
	step bench; \
	step workspace list; \
	if [ -n "$$left_out" ]; then printf '\nLeft out: %s\n' "$$left_out"; fi; \
	printf '\nMade in %s\n' "$$PWD"

test: $(READY)
	@$(PYTEST) -m 'not slow and not gpu' $(PYTEST_ARGS)

# branches of the package that `make test` takes, in commands, workers and builders too
coverage: $(READY)
	@rm -rf build/coverage && mkdir -p build/coverage
	@OMP_NUM_THREADS=1 $(BIN)/coverage run -m pytest -n 2 -m 'not slow and not gpu' $(PYTEST_ARGS)
	@$(BIN)/coverage combine -q
	@$(BIN)/coverage report --fail-under=90

test-slow: $(READY)
	@$(PYTEST) -m 'slow and not gpu' $(PYTEST_ARGS)

$(GPU_READY): pyproject.toml constraints.txt requirements/gpu.txt
	@echo 'Setting up .venv-gpu ...'
	@if [ -e $@ ]; then rm $@; else '$(PYTHON)' -m venv --clear .venv-gpu; fi
	$(call install,.venv-gpu,gpu,'onnxruntime-gpu[cuda$(comma)cudnn]')
	@touch $@

# one process: the tests measure the device's free memory
test-gpu: $(GPU_READY)
	@$(GPU_BIN)/pytest -m gpu -rs tests/gpu $(PYTEST_ARGS)

bench-gpu: $(GPU_READY)
	@$(GPU_BIN)/python tools/bench_gpu.py $(BENCH_ARGS)

$(RAY_READY): pyproject.toml constraints.txt requirements/ray.txt
	@echo 'Setting up .venv-ray ...'
	@if [ -e $@ ]; then rm $@; else '$(PYTHON)' -m venv --clear .venv-ray; fi
	$(call install,.venv-ray,ray)
	@touch $@

# one process: each test's cluster has this machine's cores
test-ray: $(RAY_READY)
	@OMP_NUM_THREADS=1 $(RAY_BIN)/pytest -rs tests/serving $(PYTEST_ARGS)

ray-run: $(RAY_READY)
	@$(RAY_BIN)/python tools/ray_run.py $(RAY_ARGS)

$(SERVE_READY): $(READY) requirements/serve.txt requirements/server.txt
	@echo 'Setting up .venv-serve ...'
	@'$(PYTHON)' -m venv --clear .venv-serve
	@site=$$($(SERVE_BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	  $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$$site/t2t.pth"; \
	  echo "$$PWD" >> "$$site/t2t.pth"
	@$(SERVE_BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --require-hashes \
	  -r requirements/serve.txt
	@'$(PYTHON)' -m venv .venv-serve/server
	@.venv-serve/server/bin/python -m pip install -qq --disable-pip-version-check --no-deps \
	  --require-hashes -r requirements/server.txt
	@touch $@

test-serve: $(SERVE_READY)
	@OMP_NUM_THREADS=1 $(SERVE_BIN)/python -m pytest -rs tests/serving/triton $(PYTEST_ARGS)

load-test: $(SERVE_READY)
	@OMP_NUM_THREADS=1 $(SERVE_BIN)/python tools/load_test.py $(LOAD_ARGS)

# The pages' references are read from the sources: nothing of the package's extras is needed. The theme's
# newest needs Python 3.11.5.
$(DOCS_READY): pyproject.toml requirements/docs.txt
	@echo 'Setting up .venv-docs ...'
	@if [ -e $@ ]; then rm $@; else '$(PYTHON)' -m venv --clear .venv-docs; fi
	@$(DOCS_BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --require-hashes \
	  -r requirements/docs.txt
	@$(DOCS_BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# the variable silences the theme's advertisement of its successor
docs: $(DOCS_READY)
	@NO_MKDOCS_2_WARNING=1 $(DOCS_BIN)/mkdocs build --strict
	@echo 'Made build/site; to read it: python3 -m http.server -d build/site'

# mutmut beside .venv, whose packages it runs the tests with
$(MUTANTS_READY): $(READY) requirements/mutants.txt
	@echo 'Setting up .venv-mutants ...'
	@'$(PYTHON)' -m venv --clear .venv-mutants
	@site=$$($(MUTANTS_BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	  $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$$site/t2t.pth"
	@$(MUTANTS_BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --require-hashes \
	  -r requirements/mutants.txt
	@touch $@

# goes on where it stopped; MUTANTS='*place_dynamic*' narrows it.
mutants: $(MUTANTS_READY)
	@mkdir -p mutants # a path that is not there when Python starts is never looked at again
	@OMP_NUM_THREADS=1 PYTHONPATH="$$PWD/mutants" $(MUTANTS_BIN)/mutmut run $(MUTANTS)
	@OMP_NUM_THREADS=1 PYTHONPATH="$$PWD/mutants" $(MUTANTS_BIN)/mutmut results

$(DIST_READY): requirements/dist.txt
	@echo 'Setting up .venv-dist ...'
	@'$(PYTHON)' -m venv --clear .venv-dist
	@$(DIST_BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --require-hashes \
	  -r requirements/dist.txt
	@touch $@

# what is built here is what a release uploads; setuptools leaves folders behind in its source
dist: $(DIST_READY)
	@rm -rf dist build/lib build/bdist.*
	@SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) \
	  $(DIST_BIN)/python -m build --no-isolation --wheel --sdist . >/dev/null
	@$(DIST_BIN)/twine check --strict dist/*
	@$(DIST_BIN)/check-wheel-contents dist/*.whl

# needs network: a lock holds what the package index has. Releases stay those of constraints.txt.
UV_COMPILE = $(DIST_BIN)/uv pip compile -q --universal --python-version 3.10 --generate-hashes \
  --no-annotate --custom-compile-command 'make lock'
LOCK = $(UV_COMPILE) -c constraints.txt
LOCK_TORCH = $(LOCK) pyproject.toml requirements/torch-needs.in --override requirements/no-torch.override \
  --no-emit-package torch
extra_flags = $(foreach extra,$(subst $(comma), ,$(1)),--extra $(extra))

lock: $(DIST_READY)
	@$(LOCK_TORCH) $(call extra_flags,$(EXTRAS)) -o requirements/default.txt
	@$(LOCK_TORCH) $(call extra_flags,$(GPU_EXTRAS)) -o requirements/gpu.txt
	@$(LOCK_TORCH) $(call extra_flags,$(RAY_EXTRAS)) -o requirements/ray.txt
	@$(subst -version 3.10,-version 3.11.5,$(LOCK)) pyproject.toml --extra docs requirements/docs.in \
	  -o requirements/docs.txt
	@$(LOCK) requirements/dist.in -o requirements/dist.txt
	@$(LOCK) requirements/mutants.in -o requirements/mutants.txt
	@$(LOCK) --no-deps requirements/serve.in -o requirements/serve.txt
	@mkdir -p build && grep -v '^numpy==' constraints.txt > build/server-constraints.txt
	@$(UV_COMPILE) -c build/server-constraints.txt --no-deps requirements/server.in -o requirements/server.txt

# needs network: the advisories are asked for release by release. --strict: not audited is not passed.
audit: $(DIST_READY)
	@set -e; for lock in requirements/*.txt; do echo "$$lock"; \
	  $(DIST_BIN)/pip-audit --strict --disable-pip --require-hashes -r $$lock; done

# what `make demo` runs with, as CycloneDX 1.6
sbom: $(READY) $(DIST_READY)
	@mkdir -p build
	@$(DIST_BIN)/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml \
	  --output-reproducible --validate -o build/sbom.cdx.json
	@echo 'Made build/sbom.cdx.json'

$(STUBS)/.ready: $(READY) tools/tensorrt_stubs.py
	@$(BIN)/python tools/tensorrt_stubs.py $(STUBS)
	@touch $@

# types are checked against three TensorRTs, whose stubs stand for `tensorrt` in turn
lint: $(READY) $(STUBS)/.ready
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@MYPYPATH=$(STUBS)/classic $(BIN)/mypy
	@MYPYPATH=$(STUBS)/rtx $(BIN)/mypy --cache-dir .mypy_cache/rtx t2t_deploy tests/engine tests/runtime
	@if [ -e $(STUBS)/left_out ]; then cat $(STUBS)/left_out; else \
	  MYPYPATH=$(STUBS)/eleven $(BIN)/mypy --cache-dir .mypy_cache/eleven t2t_deploy tests/engine tests/runtime; fi
	@$(BIN)/lint-imports --no-logo

format: $(READY)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:
	@rm -rf .venv .venv-gpu .venv-ray .venv-serve .venv-docs .venv-dist .venv-mutants mutants build dist *.egg-info \
	  .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	@find t2t_deploy tests -name __pycache__ -type d -prune -exec rm -rf {} +
