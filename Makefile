# `make demo` and `make test` work in a fresh clone: environments are set up once, and again when what they are
# made of changes. `make help` shows the texts behind ##. PYTEST_ARGS, ARGS (of a tool) and MUTANTS ('*place_dynamic*') are
# handed on. Another Python: make PYTHON=python3.12 ...
PYTHON ?= python3
PYTHONS ?= 3.10 3.11 3.12 3.13 3.14
# one thread each: the tests' models fill no more. What is skipped is listed by name: not run is not passed.
PYTEST := OMP_NUM_THREADS=1 .venv/bin/pytest -n 2 -rs --no-fold-skipped
FAST := -m 'not slow and not gpu'
.PHONY: help demo test test-pythons coverage mutants test-slow test-gpu bench-gpu bench-peers test-runtimes test-ray ray-run test-serve load-test web-runtime docs dist lock audit sbom lint format clean

help:
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

demo: .venv/.ready ## export, build-trt, bench and tune of T2T-ViT-14, in build/demo
	@rm -rf build/demo && mkdir -p build/demo; set -e; unset T2T_DEPLOY_WORKSPACE; PATH="$$PWD/.venv/bin:$$PATH"; cd build/demo; \
	step() { printf '\n$$ t2t-deploy %s\n' "$$*"; t2t-deploy "$$@"; }; \
	left_out='build-trt --fp16: TensorRT-RTX is not installed; its wheels are for Linux and Windows on x86-64'; \
	step export --variant 14; \
	if python -c 'from t2t_deploy._optional import is_installed as has; exit(not has("tensorrt_rtx"))'; then step build-trt --fp16; left_out=; fi; \
	step bench; step tune --variant 14 --within 2; step workspace list; \
	printf '\n%s\n' $${left_out:+"Left out: $$left_out"} "Made in $$PWD"

test: .venv/.ready ## every check that needs no GPU and is not slow
	@$(PYTEST) $(FAST) $(PYTEST_ARGS)
test-slow: .venv/.ready ## the slow ones; PYTEST_ARGS="tests/export -x" narrows either
	@$(PYTEST) -m 'slow and not gpu' $(PYTEST_ARGS)
test-pythons: ## make test in each Python of PYTHONS='3.10 3.12 ...' that is here, in .venv-VERSION; pyproject.toml names those that passed
	@passed= failed= missing=; for version in $(PYTHONS); do \
	  python$$version -c '' 2>/dev/null || { missing="$$missing $$version"; continue; }; \
	  $(MAKE) -s PYTHON=python$$version .venv-$$version/.ready && $(PYTEST:.venv/%=.venv-$$version/%) $(FAST) $(PYTEST_ARGS) \
	    && passed="$$passed $$version" || failed="$$failed $$version"; \
	done; echo "Python passed:$${passed:- none}; failed:$${failed:- none}; not run, as not here:$${missing:- none}"; \
	test -n "$$passed" && test -z "$$failed"
coverage: .venv/.ready ## make test, and the branches it takes, also in workers: at least 90 %
	@rm -rf build/coverage && mkdir -p build/coverage && OMP_NUM_THREADS=1 .venv/bin/coverage run -m pytest -n 2 $(FAST) $(PYTEST_ARGS)
	@.venv/bin/coverage combine -q && .venv/bin/coverage report --fail-under=90
# goes on where it stopped; Python never looks again at a folder of its path that is not there when it starts
mutants: .venv-mutants/.ready ## are wrong versions of the rewrites, the placement, manifests noticed (mutmut)
	@mkdir -p mutants; export OMP_NUM_THREADS=1 PYTHONPATH="$$PWD/mutants"; \
	.venv-mutants/bin/mutmut run $(MUTANTS) && .venv-mutants/bin/mutmut results

# lanes with environments of their own; one process each: the tests measure the device's memory, a cluster has this machine's cores
test-gpu: .venv-gpu/.ready ## the checks on a GPU; without one all are skipped, with the reason
test-ray: .venv-ray/.ready ## predict --ray and evaluate --ray on clusters of this machine
test-serve: .venv-serve/.ready ## the checks on a real Triton server, CPU only; Linux on x86-64
bench-peers: ARGS ?= --variant 14
test-gpu: TESTS = -m gpu tests/gpu
test-ray: TESTS = tests/serving
test-serve: TESTS = tests/serving/triton
test-ray test-serve load-test test-runtimes: export OMP_NUM_THREADS := 1
test-gpu test-ray test-serve:
	@$(<D)/bin/python -m pytest -rs $(TESTS) $(PYTEST_ARGS)
bench-gpu: .venv-gpu/.ready ## builds, checks and times engines; a report in docs/results
bench-peers: .venv-peers/.ready ## what one would use instead on an x86 CPU, timed beside our files: docs/cpu.md
test-runtimes: .venv/.ready ## our files in other runtimes, in .venv-runtimes: docs/runtimes.md
ray-run: .venv-ray/.ready ## 20,000 pictures on 2 workers, one killed: docs/batch-inference.md
load-test: .venv-serve/.ready ## 20,000 requests to that server, each answer checked
bench-gpu bench-peers test-runtimes ray-run load-test:
	@$(<D)/bin/python tools/$(subst -,_,$(@:test-%=%)).py $(ARGS)
# hundreds of files in the package, three of which a page needs: docs/how-to/web.md
WEB_RUNTIME := build/web-runtime/onnxruntime-web-1.30.0.tgz
web-runtime: $(WEB_RUNTIME) ## what a page of `package --web` runs, in build/web-runtime; needs npm and network
$(WEB_RUNTIME):
	@command -v npm >/dev/null || { echo 'make: npm not found; it brings the package: install it (Debian, Ubuntu: apt install npm)' >&2; exit 1; }
	@mkdir -p $(@D) && npm pack --silent --pack-destination $(@D) onnxruntime-web@1.30.0 >/dev/null
	@echo 'd2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71  $@' | shasum -a 256 -c --quiet || { rm -f $@; echo "make: $@ has not the expected hash, or there is no shasum; it is removed" >&2; exit 1; }

# the variable silences the theme's advertisement of its successor
docs: .venv-docs/.ready ## the documentation site, strict, in build/site
	@NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict && echo 'Made build/site; to read it: python3 -m http.server -d build/site'
# what is built here is what a release uploads; setuptools leaves folders behind in its source
dist: .venv-dist/.ready ## wheel and sdist, built and checked, in dist/
	@rm -rf dist build/lib build/bdist.*
	@SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) .venv-dist/bin/python -m build -n -w -s . >/dev/null
	@.venv-dist/bin/twine check --strict dist/* && .venv-dist/bin/check-wheel-contents dist/*.whl

# Releases stay those of constraints.txt. Triton's Python backend alone needs an older numpy.
LOCK = .venv-dist/bin/uv pip compile -q --universal --python-version 3.10 --generate-hashes --no-annotate \
  --custom-compile-command 'make lock' -o requirements/$(1).txt
LOCK_TORCH = $(LOCK) -c constraints.txt pyproject.toml requirements/torch-needs.in \
  --override requirements/no-torch.override --no-emit-package torch $(addprefix --extra ,$(2))
lock: .venv-dist/.ready ## hashes of what users install, anew; needs network, as does audit
	@$(call LOCK_TORCH,default,export cpu openvino rtx labels plot dev)
	@$(call LOCK_TORCH,gpu,export gpu rtx dev)
	@$(call LOCK_TORCH,ray,export cpu labels plot ray dev)
	@$(call LOCK,serve) -c constraints.txt --no-deps requirements/serve.in
	@mkdir -p build && grep -v '^numpy==' constraints.txt > build/server-constraints.txt && $(call LOCK,server) -c build/server-constraints.txt --no-deps requirements/server.in
# the advisories are asked for release by release. --strict: not audited is not passed.
audit: .venv-dist/.ready ## known vulnerabilities of what is installed (pip-audit)
	@.venv-dist/bin/pip-audit --strict --disable-pip --require-hashes $(patsubst %,-r %,$(wildcard requirements/*.txt))
	@.venv-dist/bin/pip-audit --strict $(patsubst %,-r requirements/%.in,docs dist mutants peers)
sbom: .venv/.ready .venv-dist/.ready ## the parts list of .venv, build/sbom.cdx.json (CycloneDX)
	@mkdir -p build && .venv-dist/bin/cyclonedx-py environment .venv/bin/python --pyproject pyproject.toml \
	  --output-reproducible --validate -o build/sbom.cdx.json && echo 'Made build/sbom.cdx.json'

lint: .venv/.ready .venv/stubs/.ready ## ruff, mypy (against three TensorRTs), import-linter
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/lint-imports --no-logo
	@MYPYPATH=.venv/stubs/classic .venv/bin/mypy
	@MYPYPATH=.venv/stubs/rtx .venv/bin/mypy --cache-dir .mypy_cache/rtx t2t_deploy tests/engine tests/runtime
	@if [ -e .venv/stubs/left_out ]; then cat .venv/stubs/left_out; else \
	  MYPYPATH=.venv/stubs/eleven .venv/bin/mypy --cache-dir .mypy_cache/eleven t2t_deploy tests/engine tests/runtime; fi
format: .venv/.ready ## ruff, rewriting files
	@.venv/bin/ruff check --fix . && .venv/bin/ruff format .
clean: ## remove .venv, build/ and caches; ./artifacts stays
	@rm -rf .venv .venv-* mutants build dist *.egg-info .*_cache .hypothesis $$(find t2t_deploy tests -name __pycache__)

# Environments. .ready is written last: without it a set-up was interrupted and starts from nothing.
PIP = bin/python -m pip install -qq --disable-pip-version-check
LOCKED = $(PIP) --no-deps --require-hashes
FILE = $(firstword $(filter requirements/%,$^))
SITE = $$($(1)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
OTHERS := $(PYTHONS:%=.venv-%/.ready)
PACKAGE := .venv/.ready .venv-gpu/.ready .venv-ray/.ready $(OTHERS)
TOOLS := .venv-docs/.ready .venv-dist/.ready .venv-mutants/.ready .venv-peers/.ready
.venv/.ready $(OTHERS): requirements/default.txt
.venv-gpu/.ready .venv-ray/.ready .venv-serve/.ready: .venv-%/.ready: requirements/%.txt
$(TOOLS): .venv-%/.ready: requirements/%.in
.venv-mutants/.ready .venv-serve/.ready: .venv/.ready
.venv-serve/.ready: requirements/server.txt
$(PACKAGE) $(TOOLS) .venv-serve/.ready: pyproject.toml constraints.txt
	@'$(PYTHON)' -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	  echo "make: '$(PYTHON)' is no Python 3.10 or newer with its venv module (Debian, Ubuntu: apt install python3-venv):" \
	  'install that, or name another: make PYTHON=/path/to/python3' >&2; exit 1; }
	@echo 'Setting up $(@D) (a few minutes the first time) ...'
	@if [ -e $@ ]; then rm $@; else '$(PYTHON)' -m venv --clear $(@D); fi
	@$(@D)/$(if $(filter %.in,$(FILE)),$(PIP),$(LOCKED)) -r $(FILE)
	@$(THEN)
	@touch $@
# torch's build is the machine's: requirements/README.md
$(PACKAGE) .venv-docs/.ready .venv-peers/.ready: THEN = $(@D)/$(PIP) -c constraints.txt --no-build-isolation $(TORCH) -e .
$(PACKAGE): TORCH = torch
.venv-gpu/.ready: TORCH = torch 'onnxruntime-gpu[cuda,cudnn]'
# mutmut beside .venv, with whose packages it runs the tests
.venv-mutants/.ready: THEN = echo "$(call SITE,.venv)" > "$(call SITE,$(@D))/t2t.pth"
# beside .venv Triton, whose metadata ask for older packages; the server's Python models have an environment of their own
.venv-serve/.ready: THEN = printf '%s\n' "$(call SITE,.venv)" "$$PWD" > "$(call SITE,$(@D))/t2t.pth" && \
  '$(PYTHON)' -m venv $(@D)/server && $(@D)/server/$(LOCKED) -r requirements/server.txt
# stubs of three TensorRTs, which stand for `tensorrt` in turn
.venv/stubs/.ready: .venv/.ready tools/tensorrt_stubs.py
	@.venv/bin/python tools/tensorrt_stubs.py .venv/stubs && touch $@
